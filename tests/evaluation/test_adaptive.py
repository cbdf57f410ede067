"""What learns against a classifier finds more than what learns nothing, and none is made where there is no gradient."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gap.attacks.controls import Noise
from gap.attacks.protocol import Attack
from gap.budget import Budget
from gap.classifier import Classifier, Facts
from gap.data.splits import Dataset, MemorySplit
from gap.evaluation.adaptive import adaptive_attacks
from gap.setting import Setting
from gap.training.machine import MachineOptions

BUDGET = Budget("linf", 0.1)


def attacks(pictures: Any, *nets: nn.Module) -> tuple[list[Attack], list[int]]:
    """The attacks on the last of these networks, and the steps that were heard of."""
    split = MemorySplit((pictures.images * 255).round().to(torch.uint8), pictures.labels)
    data = Dataset("pictures", split, split, split, 1, (12, 12), None, 4, "made here", indexed=True)
    facts, steps = Facts(1, (12, 12), 4), []
    classifiers = [Classifier(net, facts, name="net", architecture="net").eval() for net in nets]
    made = adaptive_attacks(
        classifiers[-1],
        Setting(classifiers, data),
        BUDGET,
        4000,
        MachineOptions(device="cpu"),
        lambda name: nullcontext(lambda progress: steps.append(progress.step)),
    )
    return list(made), steps


def test_they_learn_against_the_one_that_is_judged(pictures: Any) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(144, 4))
    made, steps = attacks(pictures, other, pictures.net)
    assert [attack.name for attack in made] == ["adaptive generator", "adaptive universal"]
    assert steps.count(20) >= 2

    def left(attack: Attack) -> float:
        return pictures.accuracy(attack(pictures.net, pictures.images, pictures.labels))

    assert max(left(attack) for attack in made) < left(Noise(BUDGET)) - 0.3


def test_there_are_none_without_a_gradient(pictures: Any) -> None:
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = pictures.net

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.net(images.detach())
            return logits

    assert attacks(pictures, Blind()) == ([], [])
