"""Hardening and judging, through the command line, on the digits that come with the package."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from judging import shorten_judging

from gap.attacks.generator.options import DEFAULT_TRAINING_IMAGES
from gap.core.artifact import CHECKPOINT
from gap.hardening.options import HardenOptions
from gap.hardening.train import harden_from_options
from gap.training.trainer import TrainingInterrupted, TrainingProgress

QUICK = ("--budget=linf:0.2", "--batch-size=64")
SMALL = {"encoder": "strided-32", "decoder": [16], "pixel_unshuffle": 4}


@pytest.fixture(scope="module")
def hardened(made: Callable[..., Path], classifier: Path) -> Path:
    return made(
        "hardened", "harden", classifier, *QUICK, "--epochs=2", "--attack=generator-start", "--attack=universal=0.3",
        "--attack=fgsm=0.3", "--lr=0.003",
    )  # fmt: skip


def test_a_hardened_classifier_withstands_more(run: Callable[..., Any], classifier: Path, hardened: Path) -> None:
    card = yaml.safe_load((hardened / "card.yaml").read_text())
    assert card["kind"] == "classifier"
    assert card["adversarial_training"]["attacks"] == pytest.approx(
        {"generator-start": 1 / 1.6, "universal": 0.1875, "fgsm": 0.1875}
    )
    assert card["metrics"]["validation"]["pgd_accuracy"] == card["adversarial_training"]["validation_pgd_accuracy"] > 0
    ended = run(
        "evaluate", "pgd:steps=10", "--budget=linf:0.1", "--images=200", "--json", hardened / "table.json",
        "--classifier", classifier, "--classifier", hardened,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    before, after = (row["accuracy_under_attack"] for row in json.loads((hardened / "table.json").read_text())["rows"])
    assert after > before + 0.2


def test_a_budget_that_leaves_nothing_to_learn(run: Callable[..., Any], tmp_path: Path) -> None:
    ended = run(
        "harden",
        "mnist-cnn",
        "--budget=linf:0.95",
        "--attack=pgd",
        "--epochs=0.5",
        "--epsilon-warmup=0",
        "--out",
        tmp_path / "hard",
    )
    assert ended.code == 0
    assert any("learned nothing within linf:0.95" in line for line in ended.warnings)


def test_it_is_the_next_victim(run: Callable[..., Any], hardened: Path, small: tuple[str, ...], tmp_path: Path) -> None:
    ended = run(
        "train", "--classifier", hardened, "--budget=linf:0.2", "--epochs=0.2", *small, "--out", tmp_path / "adaptive"
    )
    assert ended.code == 0, ended.err


def test_generators_come_from_what_gap_train_left(
    run: Callable[..., Any], classifier: Path, per_image: Path, universal: Path, tmp_path: Path
) -> None:
    given = ("harden", classifier, *QUICK, "--epochs=0.3", "--out", tmp_path / "hard")
    ended = run(*given, f"--attack=generator-start@{per_image}", "--attack=trades", "--reset-every=0.1")
    assert ended.code == 0, ended.err
    card = yaml.safe_load((tmp_path / "hard" / "card.yaml").read_text())
    assert card["adversarial_training"]["attacks"] == {f"generator-start@{per_image}": 0.5, "trades": 0.5}
    assert (
        "name a folder for each"
        in run(*given, "--overwrite", f"--attack=generator@{per_image}", "--num-generators=2").complaint
    )
    assert "holds a universal_perturbation" in run(*given, "--overwrite", f"--attack=generator@{universal}").complaint


def test_it_leaves_for_other_tools_and_comes_back(
    run: Callable[..., Any], hardened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_judging(monkeypatch)
    assert run("export", hardened, tmp_path / "net.ts").code == 0
    weights = tmp_path / "net.safetensors"
    assert run("export", hardened, weights).code == 0
    assert "use --overwrite" in run("export", hardened, weights).complaint
    ended = run("judge", weights, "--architecture=mnist-cnn", "--budget=linf:0.1", "--images=20", "--fast")
    assert ended.code == 0 and f"mnist-cnn@{weights} at linf:0.1" in ended.out
    assert "images are classified correctly, and fewer than 50 tell nothing" in ended.out
    wrong = run("judge", weights, "--architecture=cifar-resnet18-narrow", "--budget=linf:0.1", "--input=1x28x28")
    assert "it lacks conv1.weight" in wrong.complaint and "has an unexpected 0.bias" in wrong.complaint


def test_judge(
    run: Callable[..., Any], classifier: Path, hardened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gap.evaluation.robustness.FEW_QUERIES", 100)
    ended = run(
        "judge", hardened, "--budget=linf:0.1", "--images=60", "--fast", "--surrogate", classifier,
        "--attack=uap-sgd:images_seen=500", "--attack=noise", "--adaptive-images=640",
        "--json", tmp_path / "judged.json", "--strict",
    )  # fmt: skip
    assert ended.code == 0, ended.err + ended.out
    found = json.loads((tmp_path / "judged.json").read_text())
    assert found.keys() >= {"clean_accuracy", "robust_accuracy", "interval", "attacks", "checks", "verdict"}
    assert 0 < found["robust_accuracy"] < found["clean_accuracy"] <= 1
    learned = ["uap-sgd:images_seen=500", *(f"adaptive {kind} (640 images)" for kind in ("generator", "universal"))]
    assert list(found["attacks"])[2:] == ["pgd", "noise", *learned, f"pgd on {classifier}"]
    assert found["not_evaluated"] == []
    assert found["verdict"] == "holds" and "verdict: holds" in ended.out
    assert all(check.keys() == {"name", "passed", "details"} for check in found["checks"])
    (transfer,) = [check["details"] for check in found["checks"] if check["name"].startswith("transfer")]
    assert float(transfer.partition("which reads ")[2].partition("%")[0]) > 80
    card = yaml.safe_load((hardened / "card.yaml").read_text())
    assert card["robustness_evaluations"] == [found]


@pytest.mark.parametrize(
    ("given", "images"), [([], DEFAULT_TRAINING_IMAGES), (["--adaptive-images=500"], 500), (["--fast"], None)]
)
def test_what_learns_against_it(
    run: Callable[..., Any], hardened: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], images: int | None
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("gap.evaluation.judge.adaptive_attacks", lambda *told: asked.append(told[3]) or iter(()))
    shorten_judging(monkeypatch)
    ended = run("judge", hardened, "--budget=linf:0.1", "--images=10", *given)
    assert ended.code == 0, ended.err
    assert asked == ([] if images is None else [images])
    assert "not evaluated: attacks trained against it" in ended.out


def test_no_attacker_learns_within_a_budget_of_every_picture(
    run: Callable[..., Any], hardened: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[Any] = []
    monkeypatch.setattr("gap.evaluation.benchmark.make_attack", lambda *told: learned.append(told))
    ended = run("judge", hardened, "--budget=l2:60", "--attack=uap-sgd")
    assert "allows every picture" in ended.complaint and not learned


def test_strict_is_for_scripts(run: Callable[..., Any], hardened: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_judging(monkeypatch)
    ended = run("judge", hardened, "--budget=linf:0.1", "--images=10", "--fast", "--strict")
    assert ended.code == 1
    assert "inconclusive" in ended.out


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("--attack=pgb", "did you mean pgd"),
        ("--attack=pgd=0", "sum to 0"),
        ("--budget=linf:8", "8/255"),
        ("--labels=predicted", "labels"),
        ("--steps=0", "steps"),
    ],
)
def test_what_cannot_be(run: Callable[..., Any], tmp_path: Path, given: str, named: str) -> None:
    ended = run("harden", "mnist-cnn", *QUICK, "--epochs=0.1", given, "--out", tmp_path / "out")
    assert named in ended.complaint
    assert not (tmp_path / "out").exists()


def test_without_a_classifier(run: Callable[..., Any], tmp_path: Path) -> None:
    missing = run("harden", *QUICK, "--out", tmp_path / "out").complaint
    assert missing == "classifier is missing: name it without a flag"


def test_stopped_and_resumed_it_ends_the_same(tmp_path: Path) -> None:
    options = HardenOptions.read(
        {
            "classifier": "mnist-cnn",
            "budget": "linf:0.1",
            "epochs": 1.2,
            "batch_size": 128,
            "attack": ["generator-start", "universal", "pgd"],
            "generator": SMALL,
            "epsilon_warmup": 0.1,
            "val_images": 7,
        }
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()

    def interrupt(progress: TrainingProgress) -> None:
        if progress.validation_metrics:
            os.kill(os.getpid(), signal.SIGINT)

    one = harden_from_options(options, whole)
    with pytest.raises(TrainingInterrupted):
        harden_from_options(options, broken, [interrupt])
    assert (broken / CHECKPOINT).is_file()
    two = harden_from_options(options, broken, resume=True)
    sevenths = 7 * one.card["metrics"]["validation"]["accuracy"]
    assert sevenths == pytest.approx(round(sevenths)), "the probe looks at seven images"
    assert (
        one.card["metrics"] == two.card["metrics"]
        and one.card["adversarial_training"] == two.card["adversarial_training"]
    )
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, two.tensors()[name])


def test_a_network_of_ones_own_goes_through_the_whole_chain(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a verb prints last is what the next one takes."""
    shorten_judging(monkeypatch)
    source = tmp_path / "mine.py"
    source.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))\n"
    )
    ended = run("pretrain", "--classifier", f"{source}:make", "--epochs=1", "--out", tmp_path / "standard")
    assert ended.code == 0, ended.err
    standard = ended.out.splitlines()[-1]
    assert standard == f"{source}:make@{tmp_path / 'standard'}"
    ended = run("harden", standard, *QUICK, "--attack=pgd", "--epochs=0.5", "--out", tmp_path / "hardened")
    assert ended.code == 0, ended.err
    ended = run(
        "judge", ended.out.splitlines()[-1], "--budget=linf:0.02", "--images=60", "--fast", "--surrogate", standard
    )
    assert ended.code == 0, ended.err
    (report,) = yaml.safe_load((tmp_path / "hardened" / "card.yaml").read_text())["robustness_evaluations"]
    assert (report["budget"], report["suite"], report["images"]) == ("linf:0.02", "fast", 60)
    assert run("inspect", standard).code == 0
