"""Cards of the first format are read and returned with the keys and words of the current format."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from gap.models.generators import make_generator

from gap.attacks.generator.model import BoundedGeneratorAttack, DirectGeneratorAttack, load_attack
from gap.attacks.universal import Universal
from gap.classifiers.classifier import load_classifier
from gap.core.artifact import CARD, open_artifact, save_artifact, update_card
from gap.core.card_formats import FORMAT, upgraded
from gap.threat import Budget

JUDGED = "judged at linf:0.1, fast, 60 images of mnist-5k"
GENERATOR = {"architecture": "autoencoder", "encoder": "strided-64", "weights": None, "decoder": [4]}
# For each kind of artifact: a card of the first format, and the same card in the current format.
CARDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "per image": (
        {
            "kind": "thresholded generator",
            "budget": "linf:0.1",
            "magnitude": None,
            "goal": "target:3",
            "channels": 1,
            "generator": {**GENERATOR, "fold": 2},
            "figures": {"validation": {"fooling_rate": 0.5, "target_open": 0.9, "target_reached": 0.4}},
            "options": {"goal": "target:3"},
        },
        {
            "kind": "bounded_generator",
            "budget": "linf:0.1",
            "target_norm": None,
            "criterion": "target:3",
            "channels": 1,
            "generator": {**GENERATOR, "pixel_unshuffle": 2},
            "metrics": {"validation": {"fooling_rate": 0.5, "target_eligible": 0.9, "target_success": 0.4}},
            "options": {"goal": "target:3"},
        },
    ),
    "direct": (
        {"kind": "direct generator", "budget": None, "magnitude": "l2:2.7", "goal": "untargeted"},
        {"kind": "direct_generator", "budget": None, "target_norm": "l2:2.7", "criterion": "untargeted"},
    ),
    "universal": (
        {"kind": "universal perturbation", "budget": "l2:1", "goal": "least-likely"},
        {"kind": "universal_perturbation", "budget": "l2:1", "criterion": "least-likely"},
    ),
    "pretrained": (
        {"kind": "classifier", "classifier": {"name": "a"}, "figures": {"test": {"accuracy": 0.9}}},
        {"kind": "classifier", "classifier": {"name": "a"}, "metrics": {"test": {"accuracy": 0.9}}},
    ),
    "hardened": (
        {
            "kind": "classifier",
            "hardened": {
                "from": "ac80b688840ac2b4",
                "budget": "linf:0.1",
                "mix": {"pgd": 1.0},
                "steps": {"pgd": 2},
                "probe_accuracy": 0.5,
                "mended": ["step 3: the classifier fell"],
            },
            "figures": {"validation": {"accuracy": 0.9, "probe_accuracy": 0.5, "sparring_accuracy": 0.6}},
            JUDGED: {
                "budget": "linf:0.1",
                "normaliser": {"mean": None, "std": None},
                "gate": [{"check": "losses are not flat", "passed": True, "evidence": "0.0%"}],
                "unchecked": ["black-box search"],
                "right": 58,
            },
            "judged at linf:0.2, fast, 60 images of mnist-5k": {"budget": "linf:0.2", "verdict": "masked"},
        },
        {
            "kind": "classifier",
            "adversarial_training": {
                "base_fingerprint": "ac80b688840ac2b4",
                "budget": "linf:0.1",
                "attacks": {"pgd": 1.0},
                "steps": {"pgd": 2},
                "validation_pgd_accuracy": 0.5,
                "recoveries": ["step 3: the classifier fell"],
            },
            "metrics": {"validation": {"accuracy": 0.9, "pgd_accuracy": 0.5, "train_attack_accuracy": 0.6}},
            "robustness_evaluations": [
                {
                    "budget": "linf:0.1",
                    "normalizer": {"mean": None, "std": None},
                    "checks": [{"name": "losses are not flat", "passed": True, "details": "0.0%"}],
                    "not_evaluated": ["black-box search"],
                    "num_correct": 58,
                },
                {"budget": "linf:0.2", "verdict": "masked"},
            ],
        },
    ),
    "stylizer": (
        {"kind": "stylizer", "form": "adaptive", "figures": {"validation": {"objective": 0.5, "colours": 0.1}}},
        {"kind": "stylizer", "type": "adaptive", "metrics": {"validation": {"objective": 0.5, "colors": 0.1}}},
    ),
}


@pytest.mark.parametrize("name", CARDS)
def test_open_artifact_first_format_card_is_upgraded(name: str, tmp_path: Path) -> None:
    old, new = CARDS[name]
    (tmp_path / CARD).write_text(yaml.safe_dump(old))
    assert open_artifact(tmp_path, new["kind"]).card == {**new, "format": FORMAT}


@pytest.mark.parametrize("name", CARDS)
def test_upgraded_current_card_is_unchanged(name: str) -> None:
    card = CARDS[name][1] | {"format": FORMAT}
    assert upgraded(card) == card
    assert upgraded(upgraded(CARDS[name][0])) == card


def test_update_card_first_format_card_is_written_in_the_current_format(tmp_path: Path) -> None:
    old, new = CARDS["hardened"]
    (tmp_path / CARD).write_text(yaml.safe_dump(old))
    update_card(tmp_path, "note", 1)
    assert yaml.safe_load((tmp_path / CARD).read_text()) == {**new, "format": FORMAT, "note": 1}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("figures", 3), ("figures", {"test": 3}), ("figures", {3: {4: 5}}), ("hardened", None), ("hardened", [1]),
        ("generator", "unet"), (JUDGED, "well"), (JUDGED, {"gate": 3}), (JUDGED, {"gate": [3, {"check": "a"}]}), (3, 4),
    ],
)  # fmt: skip
def test_upgraded_unexpected_values_do_not_raise(key: Any, value: Any) -> None:
    card = upgraded({"kind": "of something else", key: value})
    assert card["kind"] == "of something else" and card["format"] == FORMAT


@pytest.mark.parametrize(
    ("kind", "old_kind", "expected"),
    [
        ("bounded_generator", "thresholded generator", BoundedGeneratorAttack),
        ("direct_generator", "direct generator", DirectGeneratorAttack),
        ("universal_perturbation", "universal perturbation", Universal),
    ],
)
def test_load_attack_first_format_card_gives_the_same_attack(
    kind: str, old_kind: str, expected: type, tmp_path: Path
) -> None:
    classifier = load_classifier("mnist-cnn")
    options = {**GENERATOR, "pixel_unshuffle": 2}
    torch.manual_seed(0)
    tensors = make_generator(1, **options).state_dict()
    if kind == "universal_perturbation":
        tensors = {"perturbation": torch.full((1, 1, 28, 28), 0.05)}
    direct = kind == "direct_generator"
    card = {
        "budget": None if direct else "linf:0.1",
        "target_norm": "l2:2" if direct else None,
        "criterion": "untargeted",
        "channels": 1,
        "size": [28, 28],
        "generator": options,
        "classifiers": [classifier.describe()],
        "metrics": {"validation": {}},
    }
    save_artifact(tmp_path, kind, tensors, card)
    images, labels = torch.rand(2, 1, 28, 28), torch.tensor([3, 4])
    current = load_attack(tmp_path)
    path = tmp_path / CARD
    card_of_first_format = yaml.safe_load(path.read_text())
    card_of_first_format["kind"] = old_kind
    card_of_first_format["goal"], card_of_first_format["magnitude"], card_of_first_format["figures"] = (
        card_of_first_format.pop("criterion"),
        card_of_first_format.pop("target_norm"),
        card_of_first_format.pop("metrics"),
    )
    card_of_first_format["generator"]["fold"] = card_of_first_format["generator"].pop("pixel_unshuffle")
    del card_of_first_format["format"]
    path.write_text(yaml.safe_dump(card_of_first_format))
    upgraded_attack = load_attack(tmp_path)
    assert isinstance(upgraded_attack, expected)
    assert upgraded_attack.budget == (None if direct else Budget("linf", 0.1))
    assert torch.equal(upgraded_attack(classifier, images, labels), current(classifier, images, labels))
