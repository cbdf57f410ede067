"""Whatever is wrong with what the user gave: one line that names it, exit status 2, nothing lost or left half done."""

import errno
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from gap import files

GAP = Path(sys.executable).with_name("gap")

NETWORKS = """
from torch import nn


class Net(nn.Module):
    # Takes grey or colour pictures of any size, and has learned nothing.

    def __init__(self, say=lambda logits: logits):
        super().__init__()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(49, 10))
        nn.init.zeros_(self.body[2].weight)
        self.say = say

    def forward(self, images):
        return self.say(self.body(images.mean(dim=1, keepdim=True)))


def nan():
    return Net(lambda logits: logits / 0 * 0)


def pair():
    return Net(lambda logits: (logits, logits))


def spatial():
    return Net(lambda logits: logits[:, :, None, None])


def softmax():
    return Net(lambda logits: (logits * 10).softmax(dim=1))


def needy(size):
    return Net()


def number():
    return 3


def colour():
    return nn.Sequential(nn.Conv2d(3, 10, 28), nn.Flatten())
"""


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    """A Python file with classifiers of a user's own, each with something wrong."""
    (tmp_path / "networks.py").write_text(NETWORKS)
    return tmp_path / "networks.py"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file can grow past `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Evil:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.fspath(self.witness),)


# Names and options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "named", "mend"),
    [
        ("--classifier=mnist-cn", "mnist-cn", "mnist-cnn"),
        ("--classifier=torchvision:resnet19", "resnet19", "resnet18"),
        ("--classifier=torchvision:resnet18@IMAGENET1K_V9", "IMAGENET1K_V9", "IMAGENET1K_V1"),
        ("--classifier=timm:resnet18.a9_in1k@strange", "strange", "part of the name"),
        ("--classifier=timm:resnet8888", "resnet8888", "did you mean"),
        ("--classifier=mnist-cnn@nowhere.pt", "nowhere.pt", "no weights file"),
        ("--classifier=runs/nowhere", "runs/nowhere", "a saved artefact"),
        ("--classifier=nowhere.py:make", "nowhere.py", "no file"),
        ("--classifier=nowhere.inside:make", "nowhere.inside", "cannot import"),
        ("--classifier=:make", "make", "cannot import"),
        ("--data=mnist-5", "mnist-5", "mnist-5k"),
        ("--data=folder:nowhere", "nowhere", "name a folder"),
        ("--loss=margn", "margn", "margin"),
        ("--goal=target:10", "target:10", "0 to 9"),
        ("--goal=everything", "everything", "least-likely"),
        ("--set=generator.encoder=resnet1", "resnet1", "resnet18"),
        ("--encoder=strided-63", "strided-63", "strided-64"),
        ("--set=generator.folds=2", "generator.folds", "generator.fold"),
        ("--set=epoch=2", "epoch", "epochs"),
        ("--set=epochs", "epochs", "key=value"),
        ("--set=epochs=[", "epochs=[", "cannot read"),
        ("--set=generator=7", "generator", "dictionary"),
        ("--config=mnist-perimage", "mnist-perimage", "mnist-per-image"),
        ("--epochs=0", "epochs", "greater than 0"),
        ("--epochs=many", "--epochs", "number"),
        ("--labels=guessed", "labels", "predicted"),
        ("--decoder=16,0", "decoder", "positive"),
        ("--input=28x28", "28x28", "CxHxW"),
        ("--data-roots=x", "--data-roots", "--data-root"),
        ("--device=cuda", "cuda", "--device cpu"),
        ("--magnitude=l2:2", "--magnitude", "--direct"),
        ("--discriminator", "--discriminator", "--direct"),
    ],
)
def test_names_and_options(
    run: Callable[..., Any], classifier: Path, small: tuple[str, ...], tmp_path: Path, given: str, named: str, mend: str
) -> None:
    if given == "--device=cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    out = tmp_path / "out"
    against = [] if given.startswith("--classifier") else ["--classifier", classifier]
    ended = run("train", *against, "--budget=linf:0.1", "--epochs=0.05", *small, given, "--out", out)
    assert named in ended.complaint and mend in ended.complaint
    assert not out.exists()


def test_a_config_that_is_none(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- classifier\n")
    (tmp_path / "torn.yaml").write_text("classifier: [a\n")
    (tmp_path / "wrong.yaml").write_text("classifer: [mnist-cnn]\nbudget: linf:0.1\n")
    for name, says in [("list", "mapping"), ("torn", "not readable YAML"), ("wrong", "did you mean classifier")]:
        ended = run("train", "--config", tmp_path / f"{name}.yaml", "--out", tmp_path / "out")
        assert says in ended.complaint
    assert not (tmp_path / "out").exists()


def test_what_is_missing(run: Callable[..., Any], tmp_path: Path) -> None:
    assert "--classifier" in run("train", "--budget=linf:0.1", "--out", tmp_path / "out").complaint
    assert "--budget" in run("train", "--classifier=mnist-cnn", "--out", tmp_path / "out").complaint
    assert "--out" in run("train", "--classifier=mnist-cnn", "--budget=linf:0.1").complaint
    assert not (tmp_path / "out").exists()


def test_a_verb_nobody_knows(run: Callable[..., Any]) -> None:
    complaint = run("trian").complaint
    assert "trian" in complaint and "train" in complaint


@pytest.mark.parametrize(
    ("attack", "says"),
    [("pdg", "pgd"), ("pgd:step=3", "steps"), ("pgd:steps=few", "whole number"), ("runs/nowhere", "unknown attack")],
)
def test_attacks(run: Callable[..., Any], classifier: Path, attack: str, says: str) -> None:
    ended = run("evaluate", attack, "--classifier", classifier, "--budget=linf:0.1", "--images=10")
    assert says in ended.complaint


def test_an_attack_without_a_budget(run: Callable[..., Any], classifier: Path) -> None:
    assert "--budget" in run("evaluate", "pgd", "--classifier", classifier).complaint


# Budgets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["train", "evaluate", "perturb"])
@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ("much", "linf:8/255"),
        ("linf", "linf:8/255"),
        ("l2:2,4", "linf:8/255"),
        ("l3:1", "linf or l2"),
        ("linf:0", "positive"),
        ("l2:-1", "positive"),
        ("l2:1/0", "divides by zero"),
        ("linf:8", "linf:8/255"),
        ("l2:600", "l2:600/255"),
    ],
)
def test_budgets(
    run: Callable[..., Any], classifier: Path, per_image: Path, tmp_path: Path, verb: str, budget: str, says: str
) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "picture.png")
    out = tmp_path / "out"
    given = {
        "train": ["--classifier", classifier, "--epochs=0.05"],
        "evaluate": [per_image, "--classifier", classifier, "--images=10"],
        "perturb": [per_image, tmp_path / "picture.png"],
    }[verb]
    ended = run(verb, *given, "--budget", budget, "--out", out)
    assert says in ended.complaint
    assert not out.exists() or not list(out.iterdir())


# Pictures -------------------------------------------------------------------------------------------------------------


def huge_png() -> bytes:
    """A PNG whose header promises 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a picture of every kind: `good-` ones that can be read, `bad-` ones that cannot."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = Image.effect_noise((40, 30), 80)
    colour = Image.merge("RGB", [noise, noise.rotate(180), noise])
    noise.save(folder / "good-grey.png")
    colour.save(folder / "good-colour.png")
    colour.convert("CMYK").save(folder / "good-cmyk.jpg")
    colour.convert("RGBA").save(folder / "good-alpha.png")
    colour.convert("P").save(folder / "good-palette.png")
    noise.convert("1").save(folder / "good-bits.png")
    noise.convert("I;16").save(folder / "good-16-bit.png")
    noise.crop((0, 0, 1, 1)).save(folder / "good-pixel.png")
    noise.save(folder / "good-frames.gif", save_all=True, append_images=[noise.rotate(90)])
    whole = (folder / "good-colour.png").read_bytes()
    (folder / "bad-truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "bad-huge.png").write_bytes(huge_png())
    (folder / "bad-text.png").write_text("this is no picture")
    (folder / "bad-empty.jpg").touch()
    return folder


@pytest.mark.parametrize("artefact", ["per_image", "universal", "direct"])
def test_bad_pictures_are_left_out_and_good_ones_done(
    run: Callable[..., Any], request: pytest.FixtureRequest, pictures: Path, tmp_path: Path, artefact: str
) -> None:
    ended = run("perturb", request.getfixturevalue(artefact), pictures, "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    good = sorted(path.stem for path in pictures.glob("good-*"))
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert sorted(Path(row["picture"]).stem for row in rows) == good
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.png") if "side" not in path.name) == good
    left_out = [line for line in ended.warnings if "left out" in line]
    for bad in pictures.glob("bad-*"):
        assert sum(bad.name in line for line in left_out) == 1
    assert len(left_out) == 4
    assert [line for line in ended.warnings if "left out" not in line] == [
        f"gap: {pictures / 'good-frames.gif'} has 2 frames; only the first is used"
    ]


def test_no_picture_that_can_be_read(run: Callable[..., Any], per_image: Path, pictures: Path, tmp_path: Path) -> None:
    ended = run("perturb", per_image, pictures / "bad-text.png", "--out", tmp_path / "out")
    assert ended.code == 2 and "Traceback" not in ended.err
    assert "could be read" in ended.err.splitlines()[-1]
    assert not (tmp_path / "out" / "table.json").exists()


@pytest.mark.parametrize("verb", ["perturb", "evaluate", "train"])
def test_an_empty_folder(run: Callable[..., Any], classifier: Path, per_image: Path, tmp_path: Path, verb: str) -> None:
    (tmp_path / "empty").mkdir()
    data = ["--classifier", classifier, "--data", f"folder:{tmp_path / 'empty'}"]
    given = {
        "perturb": [per_image, tmp_path / "empty"],
        "evaluate": [per_image, *data],
        "train": [*data, "--budget=linf:0.1"],
    }[verb]
    ended = run(verb, *given, "--out", tmp_path / "out")
    assert str(tmp_path / "empty") in ended.complaint and "holds no pictures" in ended.complaint
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_picture_that_is_not_there(run: Callable[..., Any], per_image: Path, tmp_path: Path) -> None:
    ended = run("perturb", per_image, tmp_path / "nowhere.png", "--out", tmp_path / "out")
    assert "nowhere.png" in ended.complaint


def test_a_damaged_picture_in_a_data_set(
    run: Callable[..., Any], classifier: Path, per_image: Path, pictures: Path
) -> None:
    (pictures / "bad-huge.png").unlink()
    ended = run("evaluate", per_image, "--classifier", classifier, "--data", f"folder:{pictures}")
    assert ended.code == 2 and "Traceback" not in ended.err
    assert "bad-" in ended.err.splitlines()[-1]


# Classifiers ----------------------------------------------------------------------------------------------------------


def test_class_counts_that_do_not_match(
    run: Callable[..., Any], classifier: Path, per_image: Path, tmp_path: Path
) -> None:
    for name in ("cat", "dog", "owl"):
        (tmp_path / "zoo" / name).mkdir(parents=True)
        Image.effect_noise((28, 28), 80).save(tmp_path / "zoo" / name / "one.png")
    data = ["--data", f"folder:{tmp_path / 'zoo'}"]
    complaint = run("evaluate", per_image, "--classifier", classifier, *data).complaint
    assert "10 classes" in complaint and "has 3" in complaint and "--labels predicted" in complaint
    ended = run("evaluate", per_image, "--classifier", classifier, *data, "--labels=predicted")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("nan", "NaN"),
        ("pair", "tuple"),
        ("spatial", "(2, 10, 1, 1)"),
        ("colour", "fails on images of 1x28x28"),
        ("needy", "without arguments"),
        ("number", "int, not a torch.nn.Module"),
        ("sofmax", "did you mean softmax"),
    ],
)
def test_classifiers_that_do_not_work(
    run: Callable[..., Any], networks: Path, tmp_path: Path, factory: str, says: str
) -> None:
    given = ["--classifier", f"{networks}:{factory}", "--budget=linf:0.1"]
    complaint = run("train", *given, "--out", tmp_path / "out").complaint
    assert factory in complaint and says in complaint
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_python(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "torn.py").write_text("def make(:\n")
    complaint = run("inspect", f"{tmp_path / 'torn.py'}:make", "--input=1x28x28").complaint
    assert "torn.py" in complaint and "cannot import" in complaint


def test_a_softmax_at_chance_is_warned_about(run: Callable[..., Any], networks: Path) -> None:
    ended = run("evaluate", "noise", "--classifier", f"{networks}:softmax", "--budget=linf:0.1", "--images=20")
    assert ended.code == 0, ended.err
    softmax, chance = ended.warnings
    assert "probabilities" in softmax and "logits" in softmax
    assert "no better than chance" in chance and "--mean/--std" in chance


def test_classifiers_of_an_ensemble_that_differ(run: Callable[..., Any], classifier: Path, tmp_path: Path) -> None:
    both = ["--classifier", classifier, "--classifier=cifar-resnet18-narrow", "--data=mnist-5k"]
    complaint = run("train", *both, "--input=3x32x32", "--budget=linf:0.1", "--out", tmp_path / "out").complaint
    assert "differ" in complaint


# Artefacts ------------------------------------------------------------------------------------------------------------


def test_an_attack_is_no_classifier(run: Callable[..., Any], per_image: Path, classifier: Path, tmp_path: Path) -> None:
    assert "holds a thresholded generator" in run("inspect", per_image).complaint
    assert "holds a classifier" in run("perturb", classifier, tmp_path, "--out", tmp_path / "out").complaint
    assert not (tmp_path / "out").exists()


def test_an_artefact_of_another_size_and_classifier_goes_on(
    run: Callable[..., Any], networks: Path, per_image: Path, universal: Path, tmp_path: Path
) -> None:
    given = ["--classifier", f"{networks}:Net", "--input=1x32x32", "--images=20", "--json", tmp_path / "table.json"]
    ended = run("evaluate", per_image, universal, *given)
    assert ended.code == 0, ended.err
    assert len(json.loads((tmp_path / "table.json").read_text())["rows"]) == 2
    for folder in (per_image, universal):
        assert sum(f"{folder} was trained at 28x28 pixels and meets 32x32" in line for line in ended.warnings) == 1
        assert sum(f"{folder} was trained against" in line for line in ended.warnings) == 1


@pytest.mark.parametrize("artefact", ["per_image", "universal", "direct"])
def test_an_artefact_of_other_channels(
    run: Callable[..., Any], request: pytest.FixtureRequest, networks: Path, artefact: str, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(artefact)
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


def test_an_artefact_cut_short(run: Callable[..., Any], per_image: Path, classifier: Path, tmp_path: Path) -> None:
    for whole, given in ((per_image, [classifier]), (classifier, [])):
        cut = tmp_path / whole.name
        shutil.copytree(whole, cut)
        (cut / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes()[:5000])
        verb = ["evaluate", cut, "--classifier", *given, "--images=10"] if given else ["inspect", cut]
        assert f"{cut / 'model.safetensors'} is missing or cut short" in run(*verb).complaint
    (tmp_path / "per-image" / "card.yaml").write_text("kind: [")
    assert "card.yaml" in run("perturb", tmp_path / "per-image", tmp_path, "--out", tmp_path / "out").complaint


# Output ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["pretrain", "train", "evaluate", "compare", "perturb", "demo"])
def test_a_folder_that_is_not_ours(
    run: Callable[..., Any], classifier: Path, per_image: Path, tmp_path: Path, verb: str
) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    Image.effect_noise((28, 28), 80).save(thesis / "figure.png")
    (thesis / "index.html").write_text("mine")
    before = {path.name: path.read_bytes() for path in thesis.iterdir()}
    if verb == "demo":
        (thesis / "index.html").rename(thesis / "thesis.html")
        before["thesis.html"] = before.pop("index.html")
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
    assert list((tmp_path / "out").iterdir()) == []


# Training that goes wrong ---------------------------------------------------------------------------------------------


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
    changed = run("train", "--resume", "--budget=linf:0.2", "--out", unfinished).complaint
    assert "budget" in changed and "would change" in changed
    ended = run("train", "--resume", "--out", unfinished)
    assert ended.code == 0, ended.err
    assert yaml.safe_load((unfinished / "card.yaml").read_text())["budget"] == "linf:0.1"
    assert not (unfinished / "checkpoint.pt").exists()


def test_nothing_to_resume(run: Callable[..., Any], tmp_path: Path) -> None:
    assert "nothing to resume" in run("pretrain", "--resume", "--out", tmp_path / "out").complaint
    assert not (tmp_path / "out").exists()


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
    run: Callable[..., Any], unfinished: Path, tmp_path: Path, save: Callable[[object, Path], None]
) -> None:
    save({"step": 1, "players": {}, "job": Evil(tmp_path / "ran")}, unfinished / "checkpoint.pt")
    complaint = run("train", "--resume", "--out", unfinished).complaint
    assert "checkpoint.pt" in complaint and "not opened" in complaint
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_weights_that_carry_code(run: Callable[..., Any], tmp_path: Path, save: Callable[[object, Path], None]) -> None:
    save({"0.weight": Evil(tmp_path / "ran")}, tmp_path / "evil.pt")
    complaint = run("inspect", f"mnist-cnn@{tmp_path / 'evil.pt'}").complaint
    assert "evil.pt" in complaint and "safetensors" in complaint
    assert not (tmp_path / "ran").exists()


def test_weights_for_another_network(run: Callable[..., Any], tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "other.pt")
    assert "another architecture" in run("inspect", f"mnist-cnn@{tmp_path / 'other.pt'}").complaint
    (tmp_path / "other.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:300])
    assert "not a whole weights file" in run("inspect", f"mnist-cnn@{tmp_path / 'other.pt'}").complaint


# Names that the user has too ------------------------------------------------------------------------------------------


def test_a_folder_with_its_own_models_and_cli(classifier: Path, tmp_path: Path) -> None:
    """The console script, from a folder that holds what gap's own clone holds."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    (tmp_path / "models" / "net.py").write_text(NETWORKS)
    (tmp_path / "cli.py").write_text("raise SystemExit('the wrong cli.py')\n")
    given = ["evaluate", "noise", "--classifier", "models.net:Net", "--budget=linf:0.1", "--images=20"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    ended = subprocess.run(
        [GAP, *given, "--json", "table.json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    (row,) = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert row["classifier"] == "models.net:Net"
    assert "no better than chance" in ended.stderr
