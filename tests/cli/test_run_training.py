"""The folder that a training verb works in, whatever becomes of the process."""

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

START = TrainingProgress(step=0, steps=5, epoch=0.0, metrics={}, images_per_second=0.0)


class Settings(PretrainOptions):
    lr: float = 0.5


class Killed(BaseException):
    pass


def begun(options: Options, folder: Path, callbacks: Sequence[Callback], resume: bool) -> Artifact:
    """A process that ends as soon as it has opened its folder."""
    callbacks[0](START)
    raise Killed


def killed_in(folder: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Open a folder in a process that ends before its `at`-th change to the disk; whether it came to that."""
    changes = 0

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*given: Any, **named: Any) -> Any:
            nonlocal changes
            changes += 1
            if changes > at:
                raise Killed
            return change(*given, **named)

        return counting

    with monkeypatch.context() as patch:
        for where, name in ((os, "replace"), (Path, "unlink"), (Path, "rmdir")):
            patch.setattr(where, name, counted(getattr(where, name)))
        with pytest.raises(Killed):
            run_in_folder("work", begun, Settings(), folder, [])
    return changes > at


def left_by_a_run(folder: Path, *names: str) -> Path:
    """A folder with these files of a run, beside one of the user's own."""
    (folder / "tensorboard").mkdir(parents=True)
    for name in (TENSORS, METRICS, "notes.txt", "tensorboard/events.out.tfevents.1"):
        (folder / name).write_text("old")
    contents = {CARD: {"kind": "classifier", "versions": {}}, CONFIG: Settings(lr=0.1).to_dict(), CHECKPOINT: "old"}
    for name in names:
        (folder / name).write_text(yaml.safe_dump(contents[name]))
    return folder


@pytest.mark.parametrize("names", [(CARD,), (CARD, CONFIG), (CHECKPOINT, CONFIG)])
def test_killed_at_any_moment_of_its_beginning_the_folder_is_still_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    for at in range(100):
        folder = left_by_a_run(tmp_path / str(at), *names)
        if not killed_in(folder, at, monkeypatch):
            break
        prepare_run_dir(folder, resume=True)
        prepare_run_dir(folder, overwrite=True)
        there = set(os.listdir(folder))
        new = CONFIG in there and yaml.safe_load((folder / CONFIG).read_text()) == Settings().to_dict()
        assert not (new and there & {CARD, CHECKPOINT}), "new options, old work"
    assert at > 5
    assert sorted(os.listdir(folder)) == [CONFIG, "notes.txt"]


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    for name in (MARKER_FILE, *RUN_FILES, "notes.txt"):
        (tmp_path / f".{name}.123.part").write_text("half")
    (tmp_path / f".{CARD}.mine.part").write_text("kept")
    with pytest.raises(Killed):
        run_in_folder("work", begun, Settings(), tmp_path, [])
    assert sorted(os.listdir(tmp_path)) == sorted([f".{CARD}.mine.part", ".notes.txt.123.part", CONFIG])


def test_options_that_do_not_fit_lose_nothing(tmp_path: Path) -> None:
    def refuses(*given: Any, **named: Any) -> Artifact:
        raise GapError("no")

    folder = left_by_a_run(tmp_path / "out", CARD, CONFIG)
    before = sorted(os.listdir(folder))
    with pytest.raises(GapError, match="no"):
        run_in_folder("work", refuses, Settings(), folder, [])
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("kind", [GapError, ZeroDivisionError])
def test_a_run_that_fails_before_its_first_checkpoint_leaves_nothing(tmp_path: Path, kind: type[Exception]) -> None:
    def fails(options: Options, folder: Path, callbacks: Sequence[Callback], resume: bool) -> Artifact:
        callbacks[0](START)
        raise kind("no")

    (tmp_path / "out").mkdir()
    with pytest.raises(kind, match="no"):
        run_in_folder("work", fails, Settings(), tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("rank", "heard"), [("0", True), ("1", False)])
def test_of_several_processes_one_warns(
    rank: str, heard: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warns(*given: Any, **named: Any) -> Artifact:
        warnings.warn("look", GapWarning, stacklevel=1)
        return Artifact(tmp_path, {})

    monkeypatch.setenv("RANK", rank)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_in_folder("work", warns, Settings(), tmp_path, [])
    assert bool(caught) == heard
