"""Invalid options, names, configs and budgets: one line that names them, exit status 2, no files left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image


@pytest.mark.parametrize(
    ("option", "name", "suggestion"),
    [
        ("--classifier=mnist-cn", "mnist-cn", "mnist-cnn"),
        ("--classifier=torchvision:resnet19", "resnet19", "resnet18"),
        ("--classifier=torchvision:resnet18@IMAGENET1K_V9", "IMAGENET1K_V9", "IMAGENET1K_V1"),
        ("--classifier=timm:resnet18.a9_in1k@strange", "strange", "part of the name"),
        ("--classifier=timm:resnet8888", "resnet8888", "did you mean"),
        ("--classifier=mnist-cnn@nowhere.pt", "nowhere.pt", "no weights file"),
        ("--classifier=runs/nowhere", "runs/nowhere", "a folder that gap wrote"),
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
def test_train_invalid_option_exits_with_its_name_and_a_suggestion(
    run: Callable[..., Any],
    classifier: Path,
    small_generator: tuple[str, ...],
    tmp_path: Path,
    option: str,
    name: str,
    suggestion: str,
) -> None:
    if option == "--device=cuda" and torch.cuda.is_available():
        pytest.skip("a CUDA device is available, so requesting one is valid")
    out = tmp_path / "out"
    classifier_option = [] if option.startswith("--classifier") else ["--classifier", classifier]
    result = run(
        "train", *classifier_option, "--budget=linf:0.1", "--epochs=0.05", *small_generator, option, "--out", out
    )
    assert name in result.error_line and suggestion in result.error_line
    assert not out.exists()


def test_train_and_harden_invalid_config_exits_with_the_reason(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- classifier\n")
    (tmp_path / "torn.yaml").write_text("classifier: [a\n")
    (tmp_path / "wrong.yaml").write_text("classifer: [mnist-cnn]\nbudget: linf:0.1\n")
    for name, reason in [("list", "mapping"), ("torn", "not readable YAML"), ("wrong", "did you mean classifier")]:
        result = run("train", "--config", tmp_path / f"{name}.yaml", "--out", tmp_path / "out")
        assert reason in result.error_line
    assert "no config file" in run("train", "--config=nowhere.yaml", "--out", tmp_path / "out").error_line
    (tmp_path / "text.yaml").write_text("attack: pgd=0.5\nbudget: linf:0.1\n")
    assert (
        "as [a, b]"
        in run("harden", "mnist-cnn", "--config", tmp_path / "text.yaml", "--out", tmp_path / "out").error_line
    )
    assert "give --budget: Largest perturb" in run("harden", "mnist-cnn", "--out", tmp_path / "out").error_line
    assert not (tmp_path / "out").exists()


def test_train_missing_required_option_exits_with_its_name(run: Callable[..., Any], tmp_path: Path) -> None:
    assert "--classifier" in run("train", "--budget=linf:0.1", "--out", tmp_path / "out").error_line
    assert "--budget" in run("train", "--classifier=mnist-cnn", "--out", tmp_path / "out").error_line
    assert "--out" in run("train", "--classifier=mnist-cnn", "--budget=linf:0.1").error_line
    assert not (tmp_path / "out").exists()


def test_main_unknown_command_exits_with_a_suggestion(run: Callable[..., Any]) -> None:
    error_line = run("trian").error_line
    assert "trian" in error_line and "train" in error_line


@pytest.mark.parametrize(
    ("attack", "reason"),
    [("pdg", "pgd"), ("pgd:step=3", "steps"), ("pgd:steps=few", "whole number"), ("runs/nowhere", "no folder")],
)
def test_evaluate_invalid_attack_exits_with_the_reason(
    run: Callable[..., Any], classifier: Path, attack: str, reason: str
) -> None:
    result = run("evaluate", attack, "--classifier", classifier, "--budget=linf:0.1", "--images=10")
    assert reason in result.error_line


def test_evaluate_attack_without_budget_exits_with_the_missing_option(
    run: Callable[..., Any], classifier: Path
) -> None:
    assert "--budget" in run("evaluate", "pgd", "--classifier", classifier).error_line


@pytest.mark.parametrize("verb", ["train", "evaluate", "perturb"])
@pytest.mark.parametrize(
    ("budget", "reason"),
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
def test_commands_invalid_budget_exits_with_the_reason(
    run: Callable[..., Any], classifier: Path, per_image: Path, tmp_path: Path, verb: str, budget: str, reason: str
) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "picture.png")
    out = tmp_path / "out"
    arguments = {
        "train": ["--classifier", classifier, "--epochs=0.05"],
        "evaluate": [per_image, "--classifier", classifier, "--images=10"],
        "perturb": [per_image, tmp_path / "picture.png"],
    }[verb]
    result = run(verb, *arguments, "--budget", budget, "--out", out)
    assert reason in result.error_line
    assert not out.exists() or not list(out.iterdir())
