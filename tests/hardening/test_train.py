"""What the options of `gap harden` make, and what it leaves."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from gap.classifiers.classifier import load_classifier
from gap.core.artifact import open_artifact
from gap.core.errors import GapWarning
from gap.hardening.initializers import GeneratorInit, RandomInit, UniversalInit
from gap.hardening.options import HardenOptions
from gap.hardening.task import AdversarialTraining
from gap.hardening.train import harden_from_options, make_inner_attack, make_training


def read(**given: Any) -> HardenOptions:
    return HardenOptions.read({"classifier": "mnist-cnn", "budget": "linf:0.1", **given})


def test_options_reach_the_job() -> None:
    given = {
        "clean_fraction": 0.25,
        "label_smoothing": 0.1,
        "epsilon_warmup": 0.5,
        "reset_every": 1.0,
        "epochs": 4.0,
        "recover": False,
        "shift": 2,
    }
    training = make_training(read(ema_window=0.1, **given), load_classifier("mnist-cnn"), steps=100)
    assert (
        training.clean_fraction,
        training.label_smoothing,
        training.epsilon_warmup,
        training.reset_interval,
        training.recover,
    ) == (
        0.25,
        0.1,
        50,
        25,
        False,
    )
    assert training.last == 100
    images = torch.rand(8, 1, 28, 28)
    assert not torch.equal(training.augmentation(images), images)
    plain = make_training(read(), load_classifier("mnist-cnn"), steps=100)
    assert plain.recover and torch.equal(plain.augmentation(images), images)
    (weight, *_), (average, *_) = (
        training.modules["classifier"].unwrapped.parameters(),
        training.averaged.module.parameters(),
    )
    for value in (0.0, 1.0):
        weight.data.fill_(value)
        training.averaged.update_parameters(training.modules["classifier"].unwrapped)
    torch.testing.assert_close(average, torch.full_like(average, 0.1))


@pytest.mark.parametrize(
    ("attack", "start", "told", "steps", "projected", "beta"),
    [
        ("generator", GeneratorInit, {"noise": 0.0}, 0, True, None),
        ("generator-start", GeneratorInit, {"noise": 0.5}, 3, True, None),
        ("generator-start:steps=1", GeneratorInit, {"noise": 0.5}, 1, True, None),
        ("universal", UniversalInit, {"noise": 0.0}, 0, True, None),
        ("universal-start", UniversalInit, {"noise": 0.5}, 3, True, None),
        ("fgsm", RandomInit, {"radius_scale": 2.0}, 1, False, None),
        ("pgd", RandomInit, {"radius_scale": 1.0}, 3, True, None),
        ("trades", RandomInit, {"radius_scale": 1.0}, 3, True, 4.0),
        ("trades-start", GeneratorInit, {"noise": 0.5}, 3, True, 4.0),
    ],
)
def test_attacks_are_what_their_names_say(
    attack: str, start: type, told: dict[str, float], steps: int, projected: bool, beta: float | None
) -> None:
    options = read(attack=["pgd", "trades"], steps=3, beta=4.0)
    made = make_inner_attack(attack, 1.0, options, load_classifier("mnist-cnn"))
    assert type(made.start) is start and {name: getattr(made.start, name) for name in told} == told
    assert (made.steps, made.projected, made.beta) == (steps, projected, beta)


def test_the_weights_left_are_those_that_withstood_the_probe_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    probes, judged = iter((0.9, 0.1)), AdversarialTraining.on_validation_end

    def note(training: AdversarialTraining, metrics: dict[str, float]) -> None:
        seen.append({name: value.clone() for name, value in training.averaged.module.state_dict().items()})
        judged(training, {**metrics, "pgd_accuracy": next(probes)})

    monkeypatch.setattr(AdversarialTraining, "on_validation_end", note)
    options = read(
        attack=["pgd"], steps=1, epochs=2.0, batch_size=500, val_images=50, recover=False, epsilon_warmup=0.0
    )
    harden_from_options(options, folder := tmp_path / "hard")
    first, last = seen
    left = load_classifier(str(folder)).state_dict()
    assert all(torch.equal(left[name], value) for name, value in first.items() if name in left)
    assert any(not torch.equal(left[name], value) for name, value in last.items() if name in left)
    assert open_artifact(folder, "classifier").card["metrics"]["validation"]["pgd_accuracy"] == 0.9


def test_harden_of_a_fresh_network_leaves_a_classifier_that_knows_the_names_of_its_classes(tmp_path: Path) -> None:
    options = read(attack=["fgsm"], epochs=0.02, batch_size=50, val_images=10, recover=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GapWarning)  # it learned nothing yet
        card = harden_from_options(options, tmp_path / "hard").card
    assert card["classifier"]["class_names"] == list("0123456789")


def test_a_classifier_that_withstands_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = AdversarialTraining.on_validation_end
    monkeypatch.setattr(
        AdversarialTraining,
        "on_validation_end",
        lambda training, metrics: judged(training, {**metrics, "pgd_accuracy": 0.05}),
    )
    options = read(
        attack=["pgd"], steps=1, epochs=1.0, batch_size=250, val_images=50, recover=False, epsilon_warmup=0.0
    )
    with pytest.warns(GapWarning, match=r"not robust: 5\.0% accuracy under the validation PGD within linf:0\.1"):
        harden_from_options(options, tmp_path / "hard")
