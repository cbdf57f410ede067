"""The masking checks: signs that a classifier only hides its gradients (Athalye et al., 2018; Carlini et al., 2019)."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gap.attacks.base import Attack
from gap.attacks.gradient import PGD, loss_gradient
from gap.attacks.losses import Criterion, margin
from gap.classifiers.classifier import Classifier
from gap.core.frozen import frozen
from gap.core.gradients import zero_where_undefined
from gap.threat import LINF, Budget

# By how much an accuracy may be on the wrong side before it is a sign: that of 2 in 100 images.
SLACK = 0.02
# What a budget that allows (nearly) any picture may leave.
NOTHING = 0.05
# How far a gradient is followed, in shares of epsilon, to see whether what it foretells comes, and how much of it must.
# The longest goes beyond one level of 8-bit pictures, to which some classifiers round with gradients of their own.
FOLLOWED, KEPT = (0.01, 0.1, 0.3), 0.5


@dataclass(frozen=True)
class CheckResult:
    """One sign looked for, whether it was absent, and what was seen."""

    name: str
    passed: bool
    details: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class EvaluationBatch:
    """The images N x C x H x W in [0, 1] that a classifier is tried on, with their labels, so many at a time."""

    classifier: Classifier
    images: Tensor
    labels: Tensor
    budget: Budget
    batch_size: int = 250

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True)

    @torch.no_grad()
    def logits(self) -> Tensor:
        return torch.cat([self.classifier(images) for images, _ in self.batches()])

    def correct(self, attack: Attack | None = None) -> Tensor:
        """Which images are read as labeled, after an attack if one is given: N booleans."""
        kept = []
        for images, labels in self.batches():
            attacked = attack(self.classifier, images, labels) if attack else images
            with torch.no_grad():
                kept.append(self.classifier(attacked).argmax(dim=1) == labels)
        return torch.cat(kept)

    def num_correct(self, attack: Attack) -> int:
        """How many of the images are read as labeled after an attack."""
        return int(self.correct(attack).sum())


@dataclass(frozen=True)
class SurrogatePGD:
    """What PGD makes of another classifier than the one it meets: a transfer. It does not stop where the other one is
    fooled: how far past the boundary an image lies there is what carries over."""

    surrogate: Classifier
    budget: Budget

    @property
    def name(self) -> str:
        return f"pgd on {self.surrogate.name}"

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return PGD(self.budget, confidence=math.inf)(self.surrogate, images, labels)


def run_masking_checks(batch: EvaluationBatch, surrogate: Classifier | None = None) -> list[CheckResult]:
    """The checks that need attacks of their own."""
    with frozen(batch.classifier, *([surrogate] if surrogate else [])):
        checks = [check_deterministic(batch), check_nonzero_gradient(batch)]
        if not differentiable(batch.classifier, batch.images):
            return checks
        checks += [check_gradient_fidelity(batch), check_epsilon_curve(batch), check_more_steps(batch)]
        if surrogate:
            checks.append(check_transfer(batch, surrogate))
    return checks


def exceeds_tolerance(count: int, images: int) -> bool:
    """Whether so many of the images, on the wrong side, are a sign; one alone never is."""
    return count > max(1, SLACK * images)


def check_deterministic(batch: EvaluationBatch) -> CheckResult:
    """The same images get the same logits each time."""
    first, second = batch.logits(), batch.logits()
    difference = (first - second).abs().max().item()
    scale = first.std().item()
    return CheckResult(
        "the same logits each time",
        difference <= 1e-3 * scale + 1e-6,
        f"they differ by up to {difference:.3g}, and spread over {scale:.3g}",
    )


def differentiable(classifier: Classifier, images: Tensor) -> bool:
    """Whether the logits carry a gradient to the images, be it 0."""
    with frozen(classifier), torch.enable_grad():
        return classifier(images[:1].detach().requires_grad_()).requires_grad


def check_nonzero_gradient(batch: EvaluationBatch) -> CheckResult:
    """The margin changes with the image, for those that are classified rightly."""
    name = "losses are not flat"
    right = batch.correct()
    if not right.any():
        return CheckResult(name, True, "no image is classified rightly")
    if not differentiable(batch.classifier, batch.images):
        return CheckResult(name, False, "the logits carry no gradient to the images")
    slopes = [
        LINF.length(loss_gradient(batch.classifier, images, None, Criterion(labels), margin)[1])
        for images, labels in batch.batches()
    ]
    slope = torch.cat(slopes)[right]
    still, undefined = slope == 0, ~slope.isfinite()
    details = f"the gradient of the margin is exactly 0 for {still.double().mean():.1%} of the images"
    if undefined.any():
        details += f", and NaN or infinite for {undefined.double().mean():.1%}"
    return CheckResult(name, not exceeds_tolerance(int((still | undefined).sum()), len(slope)), details)


def check_gradient_fidelity(batch: EvaluationBatch) -> CheckResult:
    """The margin decreases along its gradient: at some step size by half of the first-order prediction, for half of the
    images."""
    name = "gradients tell how the margin changes"
    kept = torch.cat([_linearization_ratio(batch, images, labels) for images, labels in batch.batches()])
    kept = kept[~kept.isnan().any(dim=1)]
    if not len(kept):
        return CheckResult(name, True, "no image has a gradient to follow")
    undefined = int((~kept.isfinite().all(dim=1)).sum())
    if exceeds_tolerance(undefined, len(kept)):
        return CheckResult(name, False, f"the gradient is NaN or infinite for {undefined} of {len(kept)} images")
    shares = kept.median(dim=0).values.tolist()
    drops = ", ".join(f"{share:.0%} within {length:.0%}" for length, share in zip(FOLLOWED, shares, strict=True))
    return CheckResult(
        name, max(shares) >= KEPT, f"of the predicted decrease occurs, by step size in epsilons: {drops}"
    )


def _linearization_ratio(batch: EvaluationBatch, images: Tensor, labels: Tensor) -> Tensor:
    """How far the margin falls along its gradient, as a share of what that foretells, for each of FOLLOWED: N x
    lengths, NaN where the prediction is 0, and infinite where the gradient itself is NaN or infinite."""
    criterion, budget = Criterion(labels), batch.budget
    logits, gradient = loss_gradient(batch.classifier, images, None, criterion, margin)
    gradient, undefined = zero_where_undefined(gradient)
    shares = []
    for length in FOLLOWED:
        there = (images - length * budget.epsilon * budget.norm.steepest(gradient)).clamp(0, 1)
        predicted = ((there - images) * gradient).sum(dim=(1, 2, 3))
        with torch.no_grad():
            fall = margin(batch.classifier(there), None, criterion) - margin(logits, None, criterion)
        share = torch.where(predicted == 0, torch.nan, fall / predicted)
        shares.append(share.masked_fill(undefined, torch.inf))
    return torch.stack(shares, dim=1)


def check_epsilon_curve(batch: EvaluationBatch) -> CheckResult:
    """Accuracy falls as epsilon grows, and next to nothing is left where any picture is allowed."""
    budget = batch.budget
    everything = budget.norm.covering_radius(batch.images[0].numel())
    epsilons = [share * budget.epsilon for share in (0.5, 1.0, 1.5) if share * budget.epsilon < everything]
    epsilons.append(everything)
    images = len(batch.labels)
    left = [batch.num_correct(PGD(Budget(budget.norm, epsilon), steps=20)) for epsilon in epsilons]
    falls = not any(exceeds_tolerance(after - before, images) for before, after in pairwise(left))
    curve = ", ".join(f"{e:.3g}: {count / images:.1%}" for e, count in zip(epsilons, left, strict=True))
    passed = falls and left[-1] <= max(1, NOTHING * images)  # one image alone is no sign
    return CheckResult("accuracy falls to nothing as epsilon grows", passed, f"PGD leaves {curve}")


def check_more_steps(batch: EvaluationBatch) -> CheckResult:
    """More steps and restarts do not help the classifier."""
    images = len(batch.labels)
    few = batch.num_correct(PGD(batch.budget, steps=5, relative_step_sizes=(0.25,)))
    many = batch.num_correct(PGD(batch.budget, steps=50, restarts=2))
    return CheckResult(
        "more steps and restarts do not hurt the attack",
        not exceeds_tolerance(many - few, images),
        f"PGD with 5 steps leaves {few / images:.1%}, with 50 steps and restarts {many / images:.1%}",
    )


def check_transfer(batch: EvaluationBatch, surrogate: Classifier) -> CheckResult:
    """What fools the surrogate does not fool the classifier where attacks that look at it fail."""
    fooled = ~batch.correct(SurrogatePGD(surrogate, batch.budget))
    robust = batch.correct(PGD(batch.budget))
    count, clean = int((fooled & robust).sum()), replace(batch, classifier=surrogate).correct().double().mean()
    return CheckResult(
        "transfer does not beat white-box attacks",
        not exceeds_tolerance(count, len(fooled)),
        f"{count / len(fooled):.1%} of the images fall only to attacks on {surrogate.name}, which reads {clean:.1%}"
        " rightly",
    )
