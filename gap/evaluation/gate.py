"""The masking gate: signs that a classifier only hides its gradients (Athalye et al., 2018; Carlini et al., 2019)."""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gap.attacks.gradient import PGD, loss_gradient
from gap.attacks.losses import Goal, margin
from gap.budget import Budget, measure
from gap.classifier import Classifier
from gap.frozen import frozen

# By how much an accuracy may be on the wrong side before it is a sign: that of 2 in 100 images.
SLACK = 0.02
# What a budget that allows (nearly) any picture may leave.
NOTHING = 0.05


@dataclass(frozen=True)
class Check:
    """One sign looked for, whether it was absent, and what was seen."""

    check: str
    passed: bool
    evidence: str

    def dump(self) -> dict[str, Any]:
        return asdict(self)


def run_gate(
    classifier: Classifier, images: Tensor, labels: Tensor, budget: Budget, twin: Classifier | None = None
) -> list[Check]:
    """The checks that need attacks of their own, on images N x C x H x W in [0, 1] and their labels."""
    with frozen(classifier, *([twin] if twin else [])):
        checks = [repeats(classifier, images), flat(classifier, images, labels)]
        if not differentiable(classifier, images):
            return checks
        checks += [epsilon_curve(classifier, images, labels, budget), more_steps(classifier, images, labels, budget)]
        if twin:
            checks.append(transfer(classifier, twin, images, labels, budget))
    return checks


@torch.no_grad()
def repeats(classifier: Classifier, images: Tensor) -> Check:
    """The same images get the same logits each time."""
    first, second = classifier(images), classifier(images)
    difference = (first - second).abs().max().item()
    scale = first.std().item()
    return Check(
        "the same logits each time",
        difference <= 1e-3 * scale + 1e-6,
        f"they differ by up to {difference:.3g}, and spread over {scale:.3g}",
    )


def differentiable(classifier: Classifier, images: Tensor) -> bool:
    """Whether the logits carry a gradient to the images, be it 0."""
    with frozen(classifier), torch.enable_grad():
        return classifier(images[:1].detach().requires_grad_()).requires_grad


def flat(classifier: Classifier, images: Tensor, labels: Tensor) -> Check:
    """The margin changes with the image, for those that are classified rightly."""
    name = "losses are not flat"
    right = _right(classifier, images, labels)
    if not right.any():
        return Check(name, True, "no image is classified rightly")
    if not differentiable(classifier, images):
        return Check(name, False, "the logits carry no gradient to the images")
    _, gradient = loss_gradient(classifier, images[right], None, Goal(labels[right]), margin)
    share = (measure(gradient, "linf") == 0).float().mean().item()
    return Check(name, share <= SLACK, f"the gradient of the margin is exactly 0 for {share:.1%} of the images")


def epsilon_curve(classifier: Classifier, images: Tensor, labels: Tensor, budget: Budget) -> Check:
    """Accuracy falls as epsilon grows, and next to nothing is left where any picture is allowed."""
    everything = 1.0 if budget.norm == "linf" else 0.5 * math.sqrt(images[0].numel())
    epsilons = [share * budget.epsilon for share in (0.5, 1.0, 1.5) if share * budget.epsilon < everything]
    left = [
        _accuracy(classifier, PGD(Budget(budget.norm, epsilon), steps=20), images, labels)
        for epsilon in [*epsilons, everything]
    ]
    falls = all(after <= before + SLACK for before, after in pairwise(left))
    curve = ", ".join(f"{e:.3g}: {a:.1%}" for e, a in zip([*epsilons, everything], left, strict=True))
    return Check("accuracy falls to nothing as epsilon grows", falls and left[-1] <= NOTHING, f"PGD leaves {curve}")


def more_steps(classifier: Classifier, images: Tensor, labels: Tensor, budget: Budget) -> Check:
    """More steps and restarts do not help the classifier."""
    few = _accuracy(classifier, PGD(budget, steps=5, step_scales=(0.25,)), images, labels)
    many = _accuracy(classifier, PGD(budget, steps=50, restarts=2), images, labels)
    return Check(
        "more steps and restarts do not hurt the attack",
        many <= few + SLACK,
        f"5 steps leave {few:.1%}, twice 50 from two sizes {many:.1%}",
    )


def transfer(classifier: Classifier, twin: Classifier, images: Tensor, labels: Tensor, budget: Budget) -> Check:
    """What fools the twin does not fool the classifier where attacks that look at it fail."""
    made = PGD(budget, steps=40)(twin, images, labels)
    with torch.no_grad():
        fooled = classifier(made).argmax(dim=1) != labels
    white = PGD(budget, steps=40)(classifier, images, labels)
    with torch.no_grad():
        withstood = classifier(white).argmax(dim=1) == labels
    share = (fooled & withstood).float().mean().item()
    return Check(
        "transfer does not beat white-box attacks",
        share <= SLACK,
        f"{share:.1%} of the images fall only to attacks on {twin.name}",
    )


def _right(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier(images).argmax(dim=1) == labels


def _accuracy(classifier: Classifier, attack: PGD, images: Tensor, labels: Tensor) -> float:
    return _right(classifier, attack(classifier, images, labels), labels).float().mean().item()
