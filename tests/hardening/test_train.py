"""Training tasks that the options of `gap harden` give, and the artifact that it saves."""

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


def read_options(**options: Any) -> HardenOptions:
    return HardenOptions.read({"classifier": "mnist-cnn", "budget": "linf:0.1", **options})


def test_make_training_options_reach_the_training_task() -> None:
    options = {
        "clean_fraction": 0.25,
        "label_smoothing": 0.1,
        "epsilon_warmup": 0.5,
        "reset_every": 1.0,
        "epochs": 4.0,
        "recover": False,
        "shift": 2,
    }
    training = make_training(read_options(ema_window=0.1, **options), load_classifier("mnist-cnn"), steps=100)
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
    plain = make_training(read_options(), load_classifier("mnist-cnn"), steps=100)
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
    ("attack", "initializer", "attributes", "steps", "projected", "beta"),
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
def test_make_inner_attack_name_gives_its_initializer_steps_and_loss(
    attack: str, initializer: type, attributes: dict[str, float], steps: int, projected: bool, beta: float | None
) -> None:
    options = read_options(attack=["pgd", "trades"], steps=3, beta=4.0)
    inner_attack = make_inner_attack(attack, 1.0, options, load_classifier("mnist-cnn"))
    assert type(inner_attack.start) is initializer
    assert {name: getattr(inner_attack.start, name) for name in attributes} == attributes
    assert (inner_attack.steps, inner_attack.projected, inner_attack.beta) == (steps, projected, beta)


def test_harden_saved_weights_are_those_of_the_best_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights_at_validation: list[dict[str, torch.Tensor]] = []
    accuracies, on_validation_end = iter((0.9, 0.1)), AdversarialTraining.on_validation_end

    def record(training: AdversarialTraining, metrics: dict[str, float]) -> None:
        weights_at_validation.append(
            {name: value.clone() for name, value in training.averaged.module.state_dict().items()}
        )
        on_validation_end(training, {**metrics, "pgd_accuracy": next(accuracies)})

    monkeypatch.setattr(AdversarialTraining, "on_validation_end", record)
    options = read_options(
        attack=["pgd"], steps=1, epochs=2.0, batch_size=500, val_images=50, recover=False, epsilon_warmup=0.0
    )
    harden_from_options(options, folder := tmp_path / "hard")
    first, last = weights_at_validation
    saved = load_classifier(str(folder)).state_dict()
    assert all(torch.equal(saved[name], value) for name, value in first.items() if name in saved)
    assert any(not torch.equal(saved[name], value) for name, value in last.items() if name in saved)
    assert open_artifact(folder, "classifier").card["metrics"]["validation"]["pgd_accuracy"] == 0.9


def test_harden_untrained_network_card_has_the_class_names(tmp_path: Path) -> None:
    options = read_options(attack=["fgsm"], epochs=0.02, batch_size=50, val_images=10, recover=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GapWarning)  # the network has randomly initialized weights
        card = harden_from_options(options, tmp_path / "hard").card
    assert card["classifier"]["class_names"] == list("0123456789")


def test_harden_classifier_that_is_not_robust_warns_with_its_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_validation_end = AdversarialTraining.on_validation_end
    monkeypatch.setattr(
        AdversarialTraining,
        "on_validation_end",
        lambda training, metrics: on_validation_end(training, {**metrics, "pgd_accuracy": 0.05}),
    )
    options = read_options(
        attack=["pgd"], steps=1, epochs=1.0, batch_size=250, val_images=50, recover=False, epsilon_warmup=0.0
    )
    with pytest.warns(GapWarning, match=r"not robust: 5\.0% accuracy under the validation PGD within linf:0\.1"):
        harden_from_options(options, tmp_path / "hard")
