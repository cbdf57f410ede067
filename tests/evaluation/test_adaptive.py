"""What learns against a classifier finds more than what learns nothing, and none is made where there is no gradient."""

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

    def forward(self, given: Tensor) -> Tensor:
        return self.function(given)


def attacks(pictures: Any, *nets: nn.Module, train: int = 200) -> tuple[list[Attack], list[int]]:
    """The attacks on the last of these networks, and the steps that were heard of."""
    split = InMemorySplit((pictures.images * 255).round().to(torch.uint8), pictures.labels)
    few = InMemorySplit(split.images[:train], pictures.labels[:train])
    data = Dataset("pictures", few, split, split, 1, (12, 12), None, 4, "made here", labels_index_model=True)
    spec, steps = ClassifierSpec(1, (12, 12), 4), []
    classifiers = [Classifier(net, spec, name="net", architecture="net").eval() for net in nets]
    made = adaptive_attacks(
        classifiers[-1],
        AttackTask(classifiers, data),
        BUDGET,
        4000,
        RuntimeOptions(device="cpu"),
        lambda name: nullcontext(lambda progress: steps.append(progress.step)),
    )
    return list(made), steps


def test_they_learn_against_the_one_that_is_judged(pictures: Any) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(144, 4))
    made, steps = attacks(pictures, other, pictures.net)
    assert [attack.name for attack in made] == ["adaptive generator (4000 images)", "adaptive universal (4000 images)"]
    assert steps.count(20) >= 2

    def left(attack: Attack) -> float:
        return pictures.accuracy(attack(pictures.net, pictures.images, pictures.labels))

    assert max(left(attack) for attack in made) < left(Noise(BUDGET)) - 0.3


def test_there_are_none_without_a_gradient(pictures: Any) -> None:
    blind = nn.Sequential(Apply(lambda images: images.detach()), pictures.net)
    assert attacks(pictures, blind) == ([], [])


def test_few_images_are_not_gone_over_for_ever(pictures: Any) -> None:
    made, steps = attacks(pictures, pictures.net, train=5)
    assert [attack.name for attack in made] == ["adaptive generator (500 images)", "adaptive universal (500 images)"]
    assert max(steps) == 100
    assert attacks(pictures, pictures.net, train=0) == ([], [])


def test_one_that_cannot_learn_is_left_out(pictures: Any) -> None:
    endless = nn.Sequential(pictures.net, Apply(lambda logits: logits * float("inf")))
    with pytest.warns(GapWarning, match="no adaptive generator: the loss is no longer a number"):
        assert attacks(pictures, endless)[0] == []
