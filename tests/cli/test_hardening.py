"""gap harden and gap judge through the command line, on the digits that are part of the package."""

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
def hardened(make_artifact: Callable[..., Path], classifier: Path) -> Path:
    return make_artifact(
        "hardened", "harden", classifier, *QUICK, "--epochs=2", "--attack=generator-start", "--attack=universal=0.3",
        "--attack=fgsm=0.3", "--lr=0.003",
    )  # fmt: skip


def test_harden_classifier_has_a_higher_accuracy_under_pgd(
    run: Callable[..., Any], classifier: Path, hardened: Path
) -> None:
    card = yaml.safe_load((hardened / "card.yaml").read_text())
    assert card["kind"] == "classifier"
    assert card["adversarial_training"]["attacks"] == pytest.approx(
        {"generator-start": 1 / 1.6, "universal": 0.1875, "fgsm": 0.1875}
    )
    assert card["metrics"]["validation"]["pgd_accuracy"] == card["adversarial_training"]["validation_pgd_accuracy"] > 0
    result = run(
        "evaluate", "pgd:steps=10", "--budget=linf:0.1", "--images=200", "--json", hardened / "results.json",
        "--classifier", classifier, "--classifier", hardened,
    )  # fmt: skip
    assert result.code == 0, result.err
    before, after = (
        row["accuracy_under_attack"] for row in json.loads((hardened / "results.json").read_text())["rows"]
    )
    assert after > before + 0.2


def test_harden_too_large_budget_warns_that_nothing_was_learned(run: Callable[..., Any], tmp_path: Path) -> None:
    result = run(
        "harden",
        "mnist-cnn",
        "--budget=linf:0.95",
        "--attack=pgd",
        "--epochs=0.5",
        "--epsilon-warmup=0",
        "--out",
        tmp_path / "hard",
    )
    assert result.code == 0
    assert any("learned nothing within linf:0.95" in line for line in result.warnings)


def test_train_against_a_hardened_classifier_succeeds(
    run: Callable[..., Any], hardened: Path, small_generator: tuple[str, ...], tmp_path: Path
) -> None:
    result = run(
        "train",
        "--classifier",
        hardened,
        "--budget=linf:0.2",
        "--epochs=0.2",
        *small_generator,
        "--out",
        tmp_path / "adaptive",
    )
    assert result.code == 0, result.err


def test_harden_attack_with_folder_uses_the_generator_in_it(
    run: Callable[..., Any], classifier: Path, per_image: Path, universal: Path, tmp_path: Path
) -> None:
    arguments = ("harden", classifier, *QUICK, "--epochs=0.3", "--out", tmp_path / "hard")
    result = run(*arguments, f"--attack=generator-start@{per_image}", "--attack=trades", "--reset-every=0.1")
    assert result.code == 0, result.err
    card = yaml.safe_load((tmp_path / "hard" / "card.yaml").read_text())
    assert card["adversarial_training"]["attacks"] == {f"generator-start@{per_image}": 0.5, "trades": 0.5}
    assert (
        "name a folder for each"
        in run(*arguments, "--overwrite", f"--attack=generator@{per_image}", "--num-generators=2").error_line
    )
    assert (
        "holds a universal_perturbation" in run(*arguments, "--overwrite", f"--attack=generator@{universal}").error_line
    )


def test_export_hardened_classifier_is_read_back_by_judge(
    run: Callable[..., Any], hardened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_judging(monkeypatch)
    assert run("export", hardened, tmp_path / "net.ts").code == 0
    weights = tmp_path / "net.safetensors"
    assert run("export", hardened, weights).code == 0
    assert "use --overwrite" in run("export", hardened, weights).error_line
    result = run("judge", weights, "--architecture=mnist-cnn", "--budget=linf:0.1", "--images=20", "--fast")
    assert result.code == 0 and f"mnist-cnn@{weights} at linf:0.1" in result.out
    assert "images are classified correctly, and fewer than 50 tell nothing" in result.out
    wrong_architecture = run(
        "judge", weights, "--architecture=cifar-resnet18-narrow", "--budget=linf:0.1", "--input=1x28x28"
    )
    assert (
        "it lacks conv1.weight" in wrong_architecture.error_line
        and "has an unexpected 0.bias" in wrong_architecture.error_line
    )


def test_judge_all_attacks_writes_the_report_to_json_and_card(
    run: Callable[..., Any], classifier: Path, hardened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_judging(monkeypatch)
    result = run(
        "judge", hardened, "--budget=linf:0.1", "--images=60", "--fast", "--surrogate", classifier,
        "--attack=uap-sgd:images_seen=500", "--attack=noise", "--adaptive-images=256",
        "--json", tmp_path / "judged.json", "--strict",
    )  # fmt: skip
    assert result.code == 0, result.err + result.out
    report = json.loads((tmp_path / "judged.json").read_text())
    assert report.keys() >= {"clean_accuracy", "robust_accuracy", "interval", "attacks", "checks", "verdict"}
    assert 0 < report["robust_accuracy"] < report["clean_accuracy"] <= 1
    trained_attacks = [
        "uap-sgd:images_seen=500",
        *(f"adaptive {kind} (256 images)" for kind in ("generator", "universal")),
    ]
    assert list(report["attacks"])[1:] == ["pgd", "noise", *trained_attacks, f"pgd on {classifier}"]
    assert report["not_evaluated"] == []
    assert report["verdict"] == "holds" and "verdict: holds" in result.out
    assert all(check.keys() == {"name", "passed", "details"} for check in report["checks"])
    (transfer,) = [check["details"] for check in report["checks"] if check["name"].startswith("transfer")]
    assert float(transfer.partition("whose clean accuracy is ")[2].partition("%")[0]) > 80
    card = yaml.safe_load((hardened / "card.yaml").read_text())
    assert card["robustness_evaluations"] == [report]


@pytest.mark.parametrize(
    ("options", "images"), [([], DEFAULT_TRAINING_IMAGES), (["--adaptive-images=500"], 500), (["--fast"], None)]
)
def test_judge_adaptive_images_option_reaches_the_adaptive_attacks(
    run: Callable[..., Any], hardened: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], images: int | None
) -> None:
    requested_images: list[int] = []
    monkeypatch.setattr(
        "gap.evaluation.judge.adaptive_attacks", lambda *arguments: requested_images.append(arguments[3]) or iter(())
    )
    shorten_judging(monkeypatch)
    result = run("judge", hardened, "--budget=linf:0.1", "--images=10", *options)
    assert result.code == 0, result.err
    assert requested_images == ([] if images is None else [images])
    assert "not evaluated: attacks trained against it" in result.out


def test_judge_budget_of_every_image_exits_before_an_attack_is_made(
    run: Callable[..., Any], hardened: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("gap.evaluation.benchmark.make_attack", lambda *arguments: calls.append(arguments))
    result = run("judge", hardened, "--budget=l2:60", "--attack=uap-sgd")
    assert "allows every picture" in result.error_line and not calls


def test_judge_strict_inconclusive_verdict_exits_with_status_1(
    run: Callable[..., Any], hardened: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_judging(monkeypatch)
    result = run("judge", hardened, "--budget=linf:0.1", "--images=10", "--fast", "--strict")
    assert result.code == 1
    assert "inconclusive" in result.out


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--attack=pgb", "did you mean pgd"),
        ("--attack=pgd=0", "sum to 0"),
        ("--budget=linf:8", "8/255"),
        ("--labels=predicted", "labels"),
        ("--steps=0", "steps"),
    ],
)
def test_harden_invalid_option_exits_and_leaves_no_folder(
    run: Callable[..., Any], tmp_path: Path, option: str, reason: str
) -> None:
    result = run("harden", "mnist-cnn", *QUICK, "--epochs=0.1", option, "--out", tmp_path / "out")
    assert reason in result.error_line
    assert not (tmp_path / "out").exists()


def test_harden_without_classifier_exits_with_error(run: Callable[..., Any], tmp_path: Path) -> None:
    error_line = run("harden", *QUICK, "--out", tmp_path / "out").error_line
    assert error_line == "classifier is missing: name it without a flag"


def test_harden_interrupted_and_resumed_equals_an_uninterrupted_run(tmp_path: Path) -> None:
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
    uninterrupted_dir, interrupted_dir = tmp_path / "whole", tmp_path / "broken"
    uninterrupted_dir.mkdir()
    interrupted_dir.mkdir()

    def interrupt(progress: TrainingProgress) -> None:
        if progress.validation_metrics:
            os.kill(os.getpid(), signal.SIGINT)

    uninterrupted = harden_from_options(options, uninterrupted_dir)
    with pytest.raises(TrainingInterrupted):
        harden_from_options(options, interrupted_dir, [interrupt])
    assert (interrupted_dir / CHECKPOINT).is_file()
    resumed = harden_from_options(options, interrupted_dir, resume=True)
    correct_of_seven = 7 * uninterrupted.card["metrics"]["validation"]["accuracy"]
    assert correct_of_seven == pytest.approx(round(correct_of_seven)), "validation attacks seven images"
    assert (
        uninterrupted.card["metrics"] == resumed.card["metrics"]
        and uninterrupted.card["adversarial_training"] == resumed.card["adversarial_training"]
    )
    for name, tensor in uninterrupted.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name])


def test_pretrain_harden_and_judge_user_network_pass_on_their_last_line(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a last line of output that the next command does not accept."""
    shorten_judging(monkeypatch)
    source = tmp_path / "mine.py"
    source.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))\n"
    )
    result = run("pretrain", "--classifier", f"{source}:make", "--epochs=1", "--out", tmp_path / "standard")
    assert result.code == 0, result.err
    standard = result.out.splitlines()[-1]
    assert standard == f"{source}:make@{tmp_path / 'standard'}"
    result = run("harden", standard, *QUICK, "--attack=pgd", "--epochs=0.5", "--out", tmp_path / "hardened")
    assert result.code == 0, result.err
    result = run(
        "judge", result.out.splitlines()[-1], "--budget=linf:0.02", "--images=60", "--fast", "--surrogate", standard
    )
    assert result.code == 0, result.err
    (report,) = yaml.safe_load((tmp_path / "hardened" / "card.yaml").read_text())["robustness_evaluations"]
    assert (report["budget"], report["suite"], report["images"]) == ("linf:0.02", "fast", 60)
    assert run("inspect", standard).code == 0
