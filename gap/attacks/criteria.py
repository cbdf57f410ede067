"""Criteria of attacks: misclassification, a target class, or the least likely class."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gap.attacks.losses import Criterion
from gap.core.errors import GapError


@dataclass(frozen=True)
class CriterionFactory:
    """Makes the criterion of a batch from its labels and clean logits (N x K, None unless `needs_clean`)."""

    make: Callable[[Tensor | None, Tensor], Criterion]
    needs_clean: bool = False

    def __call__(self, clean_logits: Tensor | None, labels: Tensor) -> Criterion:
        return self.make(clean_logits, labels)


def find_criterion(text: str, classes: int) -> CriterionFactory:
    """`untargeted`, `least-likely` or `target:CLASS`; raises GapError for anything else."""
    if text == "untargeted":
        return CriterionFactory(lambda logits, labels: Criterion(labels))
    if text == "least-likely":
        return CriterionFactory(_least_likely, needs_clean=True)
    match = re.fullmatch(r"target:(\d{1,9})", text, re.ASCII)
    if not match:
        raise GapError(f"cannot read the criterion {text!r}; write untargeted, least-likely or target:3")
    target = int(match[1])
    if target >= classes:
        raise GapError(f"the criterion {text} names a class that is not there; the classes are 0 to {classes - 1}")
    return CriterionFactory(lambda logits, labels: Criterion(torch.full_like(labels, target), targeted=True))


def _least_likely(clean_logits: Tensor | None, labels: Tensor) -> Criterion:
    if clean_logits is None:
        raise ValueError("the least likely class is read off the clean logits")
    return Criterion(clean_logits.argmin(dim=1), targeted=True)
