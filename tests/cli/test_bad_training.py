"""Training that goes wrong: a loss that is no number, and work whose process was killed."""

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


def test_a_loss_that_turns_nan(run: Callable[..., Any], tmp_path: Path) -> None:
    ended = run("pretrain", "--lr=1e30", "--epochs=1", "--out", tmp_path / "out")
    assert "no longer a number" in ended.complaint and "--lr" in ended.complaint
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def killed(
    run: Callable[..., Any], classifier: Path, small: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What is left of a run of two epochs whose process was killed after the first."""
    folder = tmp_path_factory.mktemp("killed") / "work"
    given = ["train", "--classifier", classifier, "--budget=linf:0.1", "--epochs=2", *small, "--out", folder]
    saved: list[bytes] = []
    replace = os.replace

    def keep(source: Path, target: Path) -> None:
        replace(source, target)
        if Path(target).name == "checkpoint.pt":
            saved.append(Path(target).read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "replace", keep)
        assert run(*given).code == 0
    for name in ("card.yaml", "model.safetensors"):
        (folder / name).unlink()
    (folder / "checkpoint.pt").write_bytes(saved[0])
    return folder


@pytest.fixture
def unfinished(killed: Path, tmp_path: Path) -> Path:
    shutil.copytree(killed, tmp_path / "unfinished")
    return tmp_path / "unfinished"


def test_resume_ends_the_work(run: Callable[..., Any], unfinished: Path) -> None:
    assert "unfinished; go on with --resume" in run("perturb", unfinished, unfinished, "--out", unfinished).complaint
    assert "--resume" in run("train", "--classifier=mnist-cnn", "--budget=linf:0.1", "--out", unfinished).complaint
    for name in (unfinished, f"mnist-cnn@{unfinished}"):
        assert "unfinished; go on with --resume" in run("inspect", name).complaint
    other = run("harden", "--resume", "--out", unfinished).complaint
    assert f"gap harden cannot go on with the work in {unfinished}" in other
    changed = run("train", "--resume", "--budget=linf:0.2", "--out", unfinished).complaint
    assert "budget" in changed and "would change" in changed
    ended = run("train", "--resume", "--out", unfinished)
    assert ended.code == 0, ended.err
    assert yaml.safe_load((unfinished / "card.yaml").read_text())["budget"] == "linf:0.1"
    assert not (unfinished / "checkpoint.pt").exists()


def test_nothing_to_resume(run: Callable[..., Any], tmp_path: Path) -> None:
    assert "nothing to resume" in run("pretrain", "--resume", "--out", tmp_path / "out").complaint
    assert not (tmp_path / "out").exists()


def test_options_that_are_no_text_any_more(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"data: caf\xe9\n")
    assert "config.yaml is not readable YAML" in run("pretrain", "--resume", "--out", tmp_path).complaint


@pytest.mark.parametrize("kept", [0, 100, 200_000])
def test_a_checkpoint_cut_short(run: Callable[..., Any], unfinished: Path, kept: int) -> None:
    checkpoint = unfinished / "checkpoint.pt"
    assert checkpoint.stat().st_size > 200_000
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    complaint = run("train", "--resume", "--out", unfinished).complaint
    assert str(checkpoint) in complaint and "cut short" in complaint and "--overwrite" in complaint
    assert checkpoint.stat().st_size == kept


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_checkpoint_that_carries_code(
    run: Callable[..., Any], unfinished: Path, tmp_path: Path, evil: object, save: Callable[[object, Path], None]
) -> None:
    save({"step": 1, "modules": {}, "training": evil}, unfinished / "checkpoint.pt")
    complaint = run("train", "--resume", "--out", unfinished).complaint
    assert "checkpoint.pt" in complaint and "not opened" in complaint
    assert not (tmp_path / "ran").exists()
