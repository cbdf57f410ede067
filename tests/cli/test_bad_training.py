"""Training that fails: a loss that is not finite, and runs whose process was killed."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gap.core import files


def test_pretrain_nan_loss_exits_and_leaves_no_folder(run: Callable[..., Any], tmp_path: Path) -> None:
    result = run("pretrain", "--lr=1e30", "--epochs=1", "--out", tmp_path / "out")
    assert "no longer a number" in result.error_line and "--lr" in result.error_line
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def killed(
    run: Callable[..., Any],
    classifier: Path,
    small_generator: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of a run of two epochs whose process was killed after the first."""
    folder = tmp_path_factory.mktemp("killed") / "work"
    arguments = [
        "train",
        "--classifier",
        classifier,
        "--budget=linf:0.1",
        "--epochs=2",
        *small_generator,
        "--out",
        folder,
    ]
    checkpoints: list[bytes] = []
    replace = os.replace

    def replace_and_record(source: Path, target: Path) -> None:
        replace(source, target)
        if Path(target).name == "checkpoint.pt":
            checkpoints.append(Path(target).read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "replace", replace_and_record)
        assert run(*arguments).code == 0
    for name in ("card.yaml", "model.safetensors"):
        (folder / name).unlink()
    (folder / "checkpoint.pt").write_bytes(checkpoints[0])
    return folder


@pytest.fixture
def unfinished(killed: Path, tmp_path: Path) -> Path:
    shutil.copytree(killed, tmp_path / "unfinished")
    return tmp_path / "unfinished"


def test_resume_unfinished_run_finishes_it_and_other_commands_refuse_it(
    run: Callable[..., Any], unfinished: Path
) -> None:
    assert "unfinished; go on with --resume" in run("perturb", unfinished, unfinished, "--out", unfinished).error_line
    assert "--resume" in run("train", "--classifier=mnist-cnn", "--budget=linf:0.1", "--out", unfinished).error_line
    for name in (unfinished, f"mnist-cnn@{unfinished}"):
        assert "unfinished; go on with --resume" in run("inspect", name).error_line
    other_command_error = run("harden", "--resume", "--out", unfinished).error_line
    assert f"gap harden cannot go on with the work in {unfinished}" in other_command_error
    changed_option_error = run("train", "--resume", "--budget=linf:0.2", "--out", unfinished).error_line
    assert "budget" in changed_option_error and "would change" in changed_option_error
    result = run("train", "--resume", "--out", unfinished)
    assert result.code == 0, result.err
    assert yaml.safe_load((unfinished / "card.yaml").read_text())["budget"] == "linf:0.1"
    assert not (unfinished / "checkpoint.pt").exists()


def test_resume_missing_folder_exits_with_error(run: Callable[..., Any], tmp_path: Path) -> None:
    assert "nothing to resume" in run("pretrain", "--resume", "--out", tmp_path / "out").error_line
    assert not (tmp_path / "out").exists()


def test_resume_config_that_is_not_text_exits_with_its_name(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"data: caf\xe9\n")
    assert "config.yaml is not readable YAML" in run("pretrain", "--resume", "--out", tmp_path).error_line


@pytest.mark.parametrize("size", [0, 100, 200_000])
def test_resume_truncated_checkpoint_exits_and_keeps_the_file(
    run: Callable[..., Any], unfinished: Path, size: int
) -> None:
    checkpoint = unfinished / "checkpoint.pt"
    assert checkpoint.stat().st_size > 200_000
    checkpoint.write_bytes(checkpoint.read_bytes()[:size])
    error_line = run("train", "--resume", "--out", unfinished).error_line
    assert str(checkpoint) in error_line and "cut short" in error_line and "--overwrite" in error_line
    assert checkpoint.stat().st_size == size


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_resume_checkpoint_with_code_exits_and_does_not_run_it(
    run: Callable[..., Any],
    unfinished: Path,
    tmp_path: Path,
    pickled_code: object,
    save: Callable[[object, Path], None],
) -> None:
    save({"step": 1, "modules": {}, "training": pickled_code}, unfinished / "checkpoint.pt")
    error_line = run("train", "--resume", "--out", unfinished).error_line
    assert "checkpoint.pt" in error_line and "not opened" in error_line
    assert not (tmp_path / "ran").exists()
