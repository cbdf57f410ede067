"""What an attack wants of a classifier: to leave the label, to reach one class, to reach the least likely one."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gap.attacks.losses import Goal
from gap.core.errors import GapError


@dataclass(frozen=True)
class GoalMaker:
    """Makes the goal of a batch from its clean logits (N x K, or None where `needs_clean` is False) and its labels."""

    make: Callable[[Tensor | None, Tensor], Goal]
    needs_clean: bool = False

    def __call__(self, clean_logits: Tensor | None, labels: Tensor) -> Goal:
        return self.make(clean_logits, labels)


def find_goal(text: str, classes: int) -> GoalMaker:
    """`untargeted`, `least-likely` or `target:CLASS`; raises GapError for anything else."""
    if text == "untargeted":
        return GoalMaker(lambda logits, labels: Goal(labels))
    if text == "least-likely":
        return GoalMaker(_least_likely, needs_clean=True)
    match = re.fullmatch(r"target:(\d{1,9})", text, re.ASCII)
    if not match:
        raise GapError(f"cannot read the goal {text!r}; write untargeted, least-likely or target:3")
    target = int(match[1])
    if target >= classes:
        raise GapError(f"the goal {text} names a class that is not there; the classes are 0 to {classes - 1}")
    return GoalMaker(lambda logits, labels: Goal(torch.full_like(labels, target), targeted=True))


def _least_likely(clean_logits: Tensor | None, labels: Tensor) -> Goal:
    if clean_logits is None:
        raise ValueError("the least likely class is read off the clean logits")
    return Goal(clean_logits.argmin(dim=1), targeted=True)
