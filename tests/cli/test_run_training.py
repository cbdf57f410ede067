"""The folder of a training command, also where its process is killed."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from gap.classifiers.options import PretrainOptions
from gap.core.artifact import (
    CARD,
    CHECKPOINT,
    CONFIG,
    MARKER_FILE,
    METRICS,
    RUN_FILES,
    TENSORS,
    Artifact,
    prepare_run_dir,
)
from gap.core.errors import GapError, GapWarning
from gap.core.options import Options
from gap.training.run import run_in_folder
from gap.training.trainer import Callback, TrainingProgress

FIRST_PROGRESS = TrainingProgress(step=0, steps=5, epoch=0.0, metrics={}, images_per_second=0.0)


class Settings(PretrainOptions):
    lr: float = 0.5


class Killed(BaseException):
    pass


def killed_after_start(options: Options, folder: Path, callbacks: Sequence[Callback], resume: bool) -> Artifact:
    """A run whose process is killed as soon as it has prepared its folder."""
    callbacks[0](FIRST_PROGRESS)
    raise Killed


def is_killed_before_change(folder: Path, allowed_changes: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Prepare a folder in a process that is killed after this many changes to the disk; False if there were fewer."""
    changes = 0

    def with_count(change: Callable[..., Any]) -> Callable[..., Any]:
        def count_and_change(*arguments: Any, **keywords: Any) -> Any:
            nonlocal changes
            changes += 1
            if changes > allowed_changes:
                raise Killed
            return change(*arguments, **keywords)

        return count_and_change

    with monkeypatch.context() as patch:
        for owner, name in ((os, "replace"), (Path, "unlink"), (Path, "rmdir")):
            patch.setattr(owner, name, with_count(getattr(owner, name)))
        with pytest.raises(Killed):
            run_in_folder("work", killed_after_start, Settings(), folder, [])
    return changes > allowed_changes


def make_run_folder(folder: Path, *names: str) -> Path:
    """A folder with these files of a run, and with a file of the user."""
    (folder / "tensorboard").mkdir(parents=True)
    for name in (TENSORS, METRICS, "notes.txt", "tensorboard/events.out.tfevents.1"):
        (folder / name).write_text("old")
    contents = {CARD: {"kind": "classifier", "versions": {}}, CONFIG: Settings(lr=0.1).to_dict(), CHECKPOINT: "old"}
    for name in names:
        (folder / name).write_text(yaml.safe_dump(contents[name]))
    return folder


@pytest.mark.parametrize("names", [(CARD,), (CARD, CONFIG), (CHECKPOINT, CONFIG)])
def test_run_in_folder_killed_before_any_disk_change_leaves_a_usable_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    """Catches: an order of changes that loses the marker of gap, or leaves new options beside an old artifact."""
    for allowed_changes in range(100):
        folder = make_run_folder(tmp_path / str(allowed_changes), *names)
        if not is_killed_before_change(folder, allowed_changes, monkeypatch):
            break
        prepare_run_dir(folder, resume=True)
        prepare_run_dir(folder, overwrite=True)
        file_names = set(os.listdir(folder))
        has_new_options = CONFIG in file_names and yaml.safe_load((folder / CONFIG).read_text()) == Settings().to_dict()
        assert not (has_new_options and file_names & {CARD, CHECKPOINT}), "new options beside an old artifact"
    assert allowed_changes > 5
    assert sorted(os.listdir(folder)) == [CONFIG, "notes.txt"]


def test_run_in_folder_partial_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    for name in (MARKER_FILE, *RUN_FILES, "notes.txt"):
        (tmp_path / f".{name}.123.part").write_text("half")
    (tmp_path / f".{CARD}.mine.part").write_text("kept")
    with pytest.raises(Killed):
        run_in_folder("work", killed_after_start, Settings(), tmp_path, [])
    assert sorted(os.listdir(tmp_path)) == sorted([f".{CARD}.mine.part", ".notes.txt.123.part", CONFIG])


def test_run_in_folder_invalid_options_keep_the_old_files(tmp_path: Path) -> None:
    def refuses(*arguments: Any, **keywords: Any) -> Artifact:
        raise GapError("no")

    folder = make_run_folder(tmp_path / "out", CARD, CONFIG)
    before = sorted(os.listdir(folder))
    with pytest.raises(GapError, match="no"):
        run_in_folder("work", refuses, Settings(), folder, [])
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("kind", [GapError, ZeroDivisionError])
def test_run_in_folder_error_before_the_first_checkpoint_removes_the_folder(
    tmp_path: Path, kind: type[Exception]
) -> None:
    def fails(options: Options, folder: Path, callbacks: Sequence[Callback], resume: bool) -> Artifact:
        callbacks[0](FIRST_PROGRESS)
        raise kind("no")

    (tmp_path / "out").mkdir()
    with pytest.raises(kind, match="no"):
        run_in_folder("work", fails, Settings(), tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("rank", "expect_warning"), [("0", True), ("1", False)])
def test_run_in_folder_several_processes_only_rank_0_warns(
    rank: str, expect_warning: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warns(*arguments: Any, **keywords: Any) -> Artifact:
        warnings.warn("look", GapWarning, stacklevel=1)
        return Artifact(tmp_path, {})

    monkeypatch.setenv("RANK", rank)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_in_folder("work", warns, Settings(), tmp_path, [])
    assert bool(caught) == expect_warning
