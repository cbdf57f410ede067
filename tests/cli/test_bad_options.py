"""Options, names, configs and budgets that cannot be: one line that names them, exit status 2, nothing left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image


@pytest.mark.parametrize(
    ("given", "named", "mend"),
    [
        ("--classifier=mnist-cn", "mnist-cn", "mnist-cnn"),
        ("--classifier=torchvision:resnet19", "resnet19", "resnet18"),
        ("--classifier=torchvision:resnet18@IMAGENET1K_V9", "IMAGENET1K_V9", "IMAGENET1K_V1"),
        ("--classifier=timm:resnet18.a9_in1k@strange", "strange", "part of the name"),
        ("--classifier=timm:resnet8888", "resnet8888", "did you mean"),
        ("--classifier=mnist-cnn@nowhere.pt", "nowhere.pt", "no weights file"),
        ("--classifier=runs/nowhere", "runs/nowhere", "a folder that gap left"),
        ("--classifier=nowhere.py:make", "nowhere.py", "no file"),
        ("--classifier=nowhere.inside:make", "nowhere.inside", "cannot import"),
        ("--classifier=:make", "make", "unknown classifier"),
        ("--data=mnist-5", "mnist-5", "mnist-5k"),
        ("--data=folder:nowhere", "nowhere", "name a folder"),
        ("--loss=margn", "margn", "margin"),
        ("--criterion=target:10", "target:10", "0 to 9"),
        ("--criterion=everything", "everything", "least-likely"),
        ("--set=generator.encoder=resnet1", "resnet1", "resnet18"),
        ("--encoder=strided-63", "strided-63", "strided-64"),
        ("--set=generator.pixel_unshufle=2", "generator.pixel_unshufle", "generator.pixel_unshuffle"),
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
        ("--device=cuda", "--device cuda", "use cpu"),
        ("--target-norm=l2:2", "--target-norm", "--unbounded"),
        ("--discriminator", "--discriminator", "--unbounded"),
    ],
)
def test_names_and_options(
    run: Callable[..., Any], classifier: Path, small: tuple[str, ...], tmp_path: Path, given: str, named: str, mend: str
) -> None:
    if given == "--device=cuda" and torch.cuda.is_available():
        pytest.skip("a CUDA device is here, so asking for one is no mistake")
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
    assert "no config file" in run("train", "--config=nowhere.yaml", "--out", tmp_path / "out").complaint
    (tmp_path / "text.yaml").write_text("attack: pgd=0.5\nbudget: linf:0.1\n")
    assert (
        "as [a, b]"
        in run("harden", "mnist-cnn", "--config", tmp_path / "text.yaml", "--out", tmp_path / "out").complaint
    )
    assert "give --budget: Largest perturb" in run("harden", "mnist-cnn", "--out", tmp_path / "out").complaint
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
    [("pdg", "pgd"), ("pgd:step=3", "steps"), ("pgd:steps=few", "whole number"), ("runs/nowhere", "no folder")],
)
def test_attacks(run: Callable[..., Any], classifier: Path, attack: str, says: str) -> None:
    ended = run("evaluate", attack, "--classifier", classifier, "--budget=linf:0.1", "--images=10")
    assert says in ended.complaint


def test_an_attack_without_a_budget(run: Callable[..., Any], classifier: Path) -> None:
    assert "--budget" in run("evaluate", "pgd", "--classifier", classifier).complaint


@pytest.mark.parametrize("verb", ["train", "evaluate", "perturb"])
@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ("much", "linf:8/255"),
        ("linf", "linf:8/255"),
        ("l2:2,4", "linf:8/255"),
        ("l3:1", "unknown norm"),
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
