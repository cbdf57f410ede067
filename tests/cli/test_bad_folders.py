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
    """No file can grow past `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_attack_is_no_classifier(run: Callable[..., Any], per_image: Path, classifier: Path, tmp_path: Path) -> None:
    assert "holds a bounded_generator" in run("inspect", per_image).complaint
    assert "holds a bounded_generator" in run("inspect", f"mnist-cnn@{per_image}").complaint
    assert "leave out cifar-resnet18@" in run("inspect", f"cifar-resnet18@{classifier}").complaint
    assert "holds a classifier" in run("perturb", classifier, tmp_path, "--out", tmp_path / "out").complaint
    assert not (tmp_path / "out").exists()


def test_an_artifact_of_another_size_and_classifier_goes_on(
    run: Callable[..., Any], networks: Path, per_image: Path, universal: Path, tmp_path: Path
) -> None:
    given = ["--classifier", f"{networks}:Net", "--input=1x32x32", "--images=20", "--json", tmp_path / "table.json"]
    ended = run("evaluate", per_image, universal, *given)
    assert ended.code == 0, ended.err
    assert len(json.loads((tmp_path / "table.json").read_text())["rows"]) == 2
    for folder in (per_image, universal):
        assert sum(f"{folder} was trained at 28x28 pixels and meets 32x32" in line for line in ended.warnings) == 1
        assert sum(f"{folder} was trained against" in line for line in ended.warnings) == 1


@pytest.mark.parametrize("artifact", ["per_image", "universal", "direct"])
def test_an_artifact_of_other_channels(
    run: Callable[..., Any], request: pytest.FixtureRequest, networks: Path, artifact: str, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(artifact)
    given = ["--classifier", f"{networks}:Net", "--input=3x28x28", "--images=20", "--json", tmp_path / "table.json"]
    ended = run("evaluate", folder, *given)
    assert ended.code == 2 and "Traceback" not in ended.err
    assert f"{folder} takes 1-channel images" in ended.err.splitlines()[-1]
    assert not (tmp_path / "table.json").exists()


def test_a_classifier_that_changed_or_went(
    run: Callable[..., Any], classifier: Path, small: tuple[str, ...], tmp_path: Path
) -> None:
    target, attack = tmp_path / "target", tmp_path / "attack"
    shutil.copytree(classifier, target)
    train = ["train", "--classifier", target, "--budget=linf:0.1", "--epochs=0.05", *small, "--out", attack]
    assert run(*train).code == 0
    assert run("pretrain", "--epochs=0.1", "--out", target, "--overwrite").code == 0
    Image.effect_noise((28, 28), 80).save(tmp_path / "picture.png")
    changed = run("perturb", attack, tmp_path / "picture.png", "--out", tmp_path / "changed")
    assert changed.code == 0 and "has changed since" in changed.err
    shutil.rmtree(target)
    gone = run("perturb", attack, tmp_path / "picture.png", "--out", tmp_path / "gone")
    assert gone.code == 0 and "name one with --classifier" in gone.err
    (row,) = json.loads((tmp_path / "gone" / "table.json").read_text())["rows"]
    assert row["before"] is None and row["linf"] > 0


def test_an_artifact_cut_short(run: Callable[..., Any], per_image: Path, classifier: Path, tmp_path: Path) -> None:
    for whole, given in ((per_image, [classifier]), (classifier, [])):
        cut = tmp_path / whole.name
        shutil.copytree(whole, cut)
        (cut / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes()[:5000])
        verb = ["evaluate", cut, "--classifier", *given, "--images=10"] if given else ["inspect", cut]
        assert f"{cut / 'model.safetensors'} is missing or cut short" in run(*verb).complaint
    (tmp_path / "per-image" / "card.yaml").write_text("kind: [")
    assert "card.yaml" in run("perturb", tmp_path / "per-image", tmp_path, "--out", tmp_path / "out").complaint


@pytest.mark.parametrize("verb", ["pretrain", "train", "evaluate", "compare", "perturb", "demo"])
def test_a_folder_that_is_not_ours(
    run: Callable[..., Any], classifier: Path, per_image: Path, tmp_path: Path, verb: str
) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    Image.effect_noise((28, 28), 80).save(thesis / "figure.png")
    for name in ("index.html", "table.json", "config.yaml", "card.yaml", "metrics.jsonl", "model.safetensors"):
        (thesis / name).write_text("kind: mine\n")
    before = {path.name: path.read_bytes() for path in thesis.iterdir()}
    given = {
        "pretrain": ["--overwrite"],
        "train": ["--classifier", classifier, "--budget=linf:0.1", "--overwrite"],
        "evaluate": [per_image, "--classifier", classifier, "--images=10"],
        "compare": [per_image, "--classifier", classifier, "--images=10"],
        "perturb": [per_image, thesis / "figure.png"],
        "demo": [],
    }[verb]
    complaint = run(verb, *given, "--out", thesis).complaint
    assert str(thesis) in complaint and "name another" in complaint
    assert {path.name: path.read_bytes() for path in thesis.iterdir()} == before


@pytest.mark.parametrize("verb", ["pretrain", "perturb"])
def test_a_file_where_a_folder_should_be(run: Callable[..., Any], per_image: Path, tmp_path: Path, verb: str) -> None:
    (tmp_path / "file").write_text("mine")
    Image.new("L", (28, 28)).save(tmp_path / "picture.png")
    given = [per_image, tmp_path / "picture.png"] if verb == "perturb" else []
    assert "is a file" in run(verb, *given, "--out", tmp_path / "file").complaint
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_can_be_written_again_and_strange_files_stay(
    run: Callable[..., Any], per_image: Path, tmp_path: Path
) -> None:
    Image.effect_noise((28, 28), 80).save(tmp_path / "picture.png")
    for _ in range(2):
        ended = run("perturb", per_image, tmp_path / "picture.png", "--out", tmp_path / "out")
        assert ended.code == 0, ended.err
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
def test_a_card_that_is_garbled(
    run: Callable[..., Any], classifier: Path, per_image: Path, tmp_path: Path, key: str, value: object
) -> None:
    folder = tmp_path / "garbled"
    shutil.copytree(per_image, folder)
    card = yaml.safe_load((folder / "card.yaml").read_text())
    (folder / "card.yaml").write_text(yaml.safe_dump(card | {key: value}))
    Image.effect_noise((28, 28), 80).save(tmp_path / "picture.png")
    for given in (
        ["perturb", folder, tmp_path / "picture.png", "--out", tmp_path / "out"],
        ["evaluate", folder, "--classifier", classifier, "--images=10"],
    ):
        assert f"{folder / 'card.yaml'} is damaged at {key}" in run(*given).complaint


def test_finished_work_is_not_replaced_unasked(run: Callable[..., Any], classifier: Path) -> None:
    before = (classifier / "model.safetensors").read_bytes()
    assert "--overwrite" in run("pretrain", "--out", classifier).complaint
    assert (classifier / "model.safetensors").read_bytes() == before


def test_overwriting_with_options_that_do_not_fit_loses_nothing(
    run: Callable[..., Any], classifier: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(classifier, kept)
    assert "mnist-5k" in run("pretrain", "--data=mnist-5", "--overwrite", "--out", kept).complaint
    for before in classifier.iterdir():
        assert before.is_dir() or (kept / before.name).read_bytes() == before.read_bytes()


def test_no_space_for_a_model(run: Callable[..., Any], tmp_path: Path) -> None:
    with largest_file(1_000_000):
        ended = run("pretrain", "--epochs=0.1", "--out", tmp_path / "out")
    assert "model.safetensors" in ended.err.splitlines()[-1] and "space" in ended.err.splitlines()[-1]
    assert ended.code == 2 and "Traceback" not in ended.err
    assert not (tmp_path / "out").exists()


def test_no_space_for_a_table(
    run: Callable[..., Any], classifier: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = b"the table of last week"
    (tmp_path / "table.json").write_bytes(before)

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "replace", full)
    given = ["noise", "--classifier", classifier, "--budget=linf:0.1", "--images=10"]
    ended = run("evaluate", *given, "--json", tmp_path / "table.json")
    assert "table.json cannot be written: No space left on device" in ended.complaint
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"table.json": before}


def test_no_space_for_pictures(run: Callable[..., Any], per_image: Path, tmp_path: Path) -> None:
    Image.effect_noise((28, 28), 80).save(tmp_path / "picture.png")
    with largest_file(100):
        ended = run("perturb", per_image, tmp_path / "picture.png", "--out", tmp_path / "out")
    assert "picture.png" in ended.complaint and "space" in ended.complaint
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MARKER_FILE]
