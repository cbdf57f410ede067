"""Folders: artifacts that are damaged or of another kind, and outputs that cannot or must not be written."""

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from gap.core import files
from gap.core.artifact import MARKER_FILE


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limits the size of files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_inspect_and_perturb_artifact_of_another_kind_exits_with_its_kind(
    run: Callable[..., Any], per_image: Path, classifier: Path, tmp_path: Path
) -> None:
    assert "holds a bounded_generator" in run("inspect", per_image).error_line
    assert "holds a bounded_generator" in run("inspect", f"mnist-cnn@{per_image}").error_line
    assert "leave out cifar-resnet18@" in run("inspect", f"cifar-resnet18@{classifier}").error_line
    assert "holds a classifier" in run("perturb", classifier, tmp_path, "--out", tmp_path / "out").error_line
    assert not (tmp_path / "out").exists()


def test_evaluate_artifact_of_another_size_and_classifier_warns_and_continues(
    run: Callable[..., Any], networks: Path, per_image: Path, universal: Path, tmp_path: Path
) -> None:
    arguments = [
        "--classifier",
        f"{networks}:Net",
        "--input=1x32x32",
        "--images=20",
        "--json",
        tmp_path / "results.json",
    ]
    result = run("evaluate", per_image, universal, *arguments)
    assert result.code == 0, result.err
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == 2
    for folder in (per_image, universal):
        assert sum(f"{folder} was trained at 28x28 pixels and meets 32x32" in line for line in result.warnings) == 1
        assert sum(f"{folder} was trained against" in line for line in result.warnings) == 1


@pytest.mark.parametrize("artifact", ["per_image", "universal", "direct"])
def test_evaluate_artifact_of_other_channels_exits_with_error(
    run: Callable[..., Any], request: pytest.FixtureRequest, networks: Path, artifact: str, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(artifact)
    arguments = [
        "--classifier",
        f"{networks}:Net",
        "--input=3x28x28",
        "--images=20",
        "--json",
        tmp_path / "results.json",
    ]
    result = run("evaluate", folder, *arguments)
    assert result.code == 2 and "Traceback" not in result.err
    assert f"{folder} takes 1-channel images" in result.err.splitlines()[-1]
    assert not (tmp_path / "results.json").exists()


def test_perturb_changed_or_missing_classifier_warns_and_continues(
    run: Callable[..., Any], classifier: Path, small_generator: tuple[str, ...], tmp_path: Path
) -> None:
    target, attack = tmp_path / "target", tmp_path / "attack"
    shutil.copytree(classifier, target)
    train = ["train", "--classifier", target, "--budget=linf:0.1", "--epochs=0.05", *small_generator, "--out", attack]
    assert run(*train).code == 0
    assert run("pretrain", "--epochs=0.1", "--out", target, "--overwrite").code == 0
    Image.effect_noise((28, 28), 80).save(tmp_path / "picture.png")
    changed = run("perturb", attack, tmp_path / "picture.png", "--out", tmp_path / "changed")
    assert changed.code == 0 and "has changed since" in changed.err
    shutil.rmtree(target)
    gone = run("perturb", attack, tmp_path / "picture.png", "--out", tmp_path / "gone")
    assert gone.code == 0 and "name one with --classifier" in gone.err
    (row,) = json.loads((tmp_path / "gone" / "results.json").read_text())["rows"]
    assert row["before"] is None and row["linf"] > 0


def test_artifact_with_a_truncated_file_exits_with_its_path(
    run: Callable[..., Any], per_image: Path, classifier: Path, tmp_path: Path
) -> None:
    for artifact, arguments in ((per_image, [classifier]), (classifier, [])):
        truncated = tmp_path / artifact.name
        shutil.copytree(artifact, truncated)
        (truncated / "model.safetensors").write_bytes((artifact / "model.safetensors").read_bytes()[:5000])
        command = (
            ["evaluate", truncated, "--classifier", *arguments, "--images=10"] if arguments else ["inspect", truncated]
        )
        assert f"{truncated / 'model.safetensors'} is missing or cut short" in run(*command).error_line
    (tmp_path / "per-image" / "card.yaml").write_text("kind: [")
    assert "card.yaml" in run("perturb", tmp_path / "per-image", tmp_path, "--out", tmp_path / "out").error_line


@pytest.mark.parametrize("verb", ["pretrain", "train", "evaluate", "compare", "perturb", "demo"])
def test_out_option_folder_of_the_user_is_refused_and_unchanged(
    run: Callable[..., Any], classifier: Path, per_image: Path, tmp_path: Path, verb: str
) -> None:
    user_folder = tmp_path / "thesis"
    user_folder.mkdir()
    Image.effect_noise((28, 28), 80).save(user_folder / "figure.png")
    for name in ("index.html", "results.json", "config.yaml", "card.yaml", "metrics.jsonl", "model.safetensors"):
        (user_folder / name).write_text("kind: mine\n")
    before = {path.name: path.read_bytes() for path in user_folder.iterdir()}
    arguments = {
        "pretrain": ["--overwrite"],
        "train": ["--classifier", classifier, "--budget=linf:0.1", "--overwrite"],
        "evaluate": [per_image, "--classifier", classifier, "--images=10"],
        "compare": [per_image, "--classifier", classifier, "--images=10"],
        "perturb": [per_image, user_folder / "figure.png"],
        "demo": [],
    }[verb]
    error_line = run(verb, *arguments, "--out", user_folder).error_line
    assert str(user_folder) in error_line and "name another" in error_line
    assert {path.name: path.read_bytes() for path in user_folder.iterdir()} == before


@pytest.mark.parametrize("verb", ["pretrain", "perturb"])
def test_out_option_existing_file_is_refused_and_unchanged(
    run: Callable[..., Any], per_image: Path, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "file").write_text("mine")
    Image.new("L", (28, 28)).save(tmp_path / "picture.png")
    arguments = [per_image, tmp_path / "picture.png"] if verb == "perturb" else []
    assert "is a file" in run(verb, *arguments, "--out", tmp_path / "file").error_line
    assert (tmp_path / "file").read_text() == "mine"


def test_perturb_second_run_replaces_its_output_and_keeps_other_files(
    run: Callable[..., Any], per_image: Path, tmp_path: Path
) -> None:
    Image.effect_noise((28, 28), 80).save(tmp_path / "picture.png")
    for _ in range(2):
        result = run("perturb", per_image, tmp_path / "picture.png", "--out", tmp_path / "out")
        assert result.code == 0, result.err
        (tmp_path / "out" / "notes.txt").write_text("mine")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("budget", 3),
        ("budget", "linf:much"),
        ("generator", "unet"),
        ("generator", {"decodr": [16]}),
        ("generator", {"pixel_unshuffle": "four"}),
        ("generator", {"encoder": "vgg99"}),
        ("channels", "many"),
        ("size", 28),
        ("classifiers", []),
        ("criterion", None),
    ],
)
def test_perturb_and_evaluate_damaged_card_exits_with_the_key(
    run: Callable[..., Any], classifier: Path, per_image: Path, tmp_path: Path, key: str, value: object
) -> None:
    folder = tmp_path / "garbled"
    shutil.copytree(per_image, folder)
    card = yaml.safe_load((folder / "card.yaml").read_text())
    (folder / "card.yaml").write_text(yaml.safe_dump(card | {key: value}))
    Image.effect_noise((28, 28), 80).save(tmp_path / "picture.png")
    for arguments in (
        ["perturb", folder, tmp_path / "picture.png", "--out", tmp_path / "out"],
        ["evaluate", folder, "--classifier", classifier, "--images=10"],
    ):
        assert f"{folder / 'card.yaml'} is damaged at {key}" in run(*arguments).error_line


def test_pretrain_finished_folder_without_overwrite_is_kept(run: Callable[..., Any], classifier: Path) -> None:
    before = (classifier / "model.safetensors").read_bytes()
    assert "--overwrite" in run("pretrain", "--out", classifier).error_line
    assert (classifier / "model.safetensors").read_bytes() == before


def test_pretrain_overwrite_with_invalid_options_keeps_the_old_artifact(
    run: Callable[..., Any], classifier: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "kept"
    shutil.copytree(classifier, copy)
    assert "mnist-5k" in run("pretrain", "--data=mnist-5", "--overwrite", "--out", copy).error_line
    for file in classifier.iterdir():
        assert file.is_dir() or (copy / file.name).read_bytes() == file.read_bytes()


def test_pretrain_full_disk_exits_and_leaves_no_folder(run: Callable[..., Any], tmp_path: Path) -> None:
    with largest_file(1_000_000):
        result = run("pretrain", "--epochs=0.1", "--out", tmp_path / "out")
    assert "model.safetensors" in result.err.splitlines()[-1] and "space" in result.err.splitlines()[-1]
    assert result.code == 2 and "Traceback" not in result.err
    assert not (tmp_path / "out").exists()


def test_evaluate_full_disk_exits_and_keeps_the_old_table(
    run: Callable[..., Any], classifier: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = b"the table of last week"
    (tmp_path / "results.json").write_bytes(before)

    def raise_no_space(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "replace", raise_no_space)
    arguments = ["noise", "--classifier", classifier, "--budget=linf:0.1", "--images=10"]
    result = run("evaluate", *arguments, "--json", tmp_path / "results.json")
    assert "results.json cannot be written: No space left on device" in result.error_line
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"results.json": before}


def test_perturb_full_disk_exits_with_the_name_of_the_image(
    run: Callable[..., Any], per_image: Path, tmp_path: Path
) -> None:
    Image.effect_noise((28, 28), 80).save(tmp_path / "picture.png")
    with largest_file(100):
        result = run("perturb", per_image, tmp_path / "picture.png", "--out", tmp_path / "out")
    assert "picture.png" in result.error_line and "space" in result.error_line
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MARKER_FILE]
