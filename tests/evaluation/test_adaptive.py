"""Adaptive attacks find more than attacks that are not trained, and none is made where there is no gradient."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gap.attacks.base import Attack
from gap.attacks.noise import Noise
from gap.classifiers.classifier import Classifier, ClassifierSpec
from gap.classifiers.task import AttackTask
from gap.core.errors import GapWarning
from gap.data.dataset import Dataset, InMemorySplit
from gap.evaluation.adaptive import adaptive_attacks
from gap.threat import Budget
from gap.training.options import RuntimeOptions

BUDGET = Budget("linf", 0.1)


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


def make_attacks(pictures: Any, *nets: nn.Module, train: int = 200) -> tuple[list[Attack], list[int]]:
    """The attacks on the last of these networks, and the training steps that the callback received."""
    split = InMemorySplit((pictures.images * 255).round().to(torch.uint8), pictures.labels)
    train_split = InMemorySplit(split.images[:train], pictures.labels[:train])
    data = Dataset("pictures", train_split, split, split, 1, (12, 12), None, 4, "made here", labels_index_model=True)
    spec, steps = ClassifierSpec(1, (12, 12), 4), []
    classifiers = [Classifier(net, spec, name="net", architecture="net").eval() for net in nets]
    result = adaptive_attacks(
        classifiers[-1],
        AttackTask(classifiers, data),
        BUDGET,
        4000,
        RuntimeOptions(device="cpu"),
        lambda name: nullcontext(lambda progress: steps.append(progress.step)),
    )
    return list(result), steps


def test_adaptive_attacks_are_trained_against_the_evaluated_classifier(pictures: Any) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(144, 4))
    attacks, steps = make_attacks(pictures, other, pictures.net)
    assert [attack.name for attack in attacks] == [
        "adaptive generator (4000 images)",
        "adaptive universal (4000 images)",
    ]
    assert steps.count(20) >= 2

    def accuracy_under(attack: Attack) -> float:
        return pictures.accuracy(attack(pictures.net, pictures.images, pictures.labels))

    assert max(accuracy_under(attack) for attack in attacks) < accuracy_under(Noise(BUDGET)) - 0.3


def test_adaptive_attacks_classifier_without_gradient_gives_none(pictures: Any) -> None:
    no_gradient = nn.Sequential(Apply(lambda images: images.detach()), pictures.net)
    assert make_attacks(pictures, no_gradient) == ([], [])


def test_adaptive_attacks_few_images_limit_the_number_of_steps(pictures: Any) -> None:
    attacks, steps = make_attacks(pictures, pictures.net, train=5)
    assert [attack.name for attack in attacks] == ["adaptive generator (500 images)", "adaptive universal (500 images)"]
    assert max(steps) == 100
    assert make_attacks(pictures, pictures.net, train=0) == ([], [])


def test_adaptive_attacks_infinite_loss_is_dropped_with_a_warning(pictures: Any) -> None:
    infinite = nn.Sequential(pictures.net, Apply(lambda logits: logits * float("inf")))
    with pytest.warns(GapWarning, match="no adaptive generator: the loss is no longer a number"):
        assert make_attacks(pictures, infinite)[0] == []
