"""The masking gate: signs that a classifier only hides its gradients (Athalye et al., 2018; Carlini et al., 2019)."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gap.attacks.base import Attack
from gap.attacks.gradient import PGD, loss_gradient
from gap.attacks.losses import Goal, margin
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
class Check:
    """One sign looked for, whether it was absent, and what was seen."""

    check: str
    passed: bool
    evidence: str

    def dump(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Bench:
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

    def right(self, attack: Attack | None = None) -> Tensor:
        """Which images are read as labelled, after an attack if one is given: N booleans."""
        kept = []
        for images, labels in self.batches():
            attacked = attack(self.classifier, images, labels) if attack else images
            with torch.no_grad():
                kept.append(self.classifier(attacked).argmax(dim=1) == labels)
        return torch.cat(kept)

    def left(self, attack: Attack) -> int:
        """How many of the images are read as labelled after an attack."""
        return int(self.right(attack).sum())


@dataclass(frozen=True)
class FromTwin:
    """What PGD makes of another classifier than the one it meets: a transfer. It does not stop where the other one is
    fooled: how far past the boundary an image lies there is what carries over."""

    twin: Classifier
    budget: Budget

    @property
    def name(self) -> str:
        return f"pgd on {self.twin.name}"

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return PGD(self.budget, confidence=math.inf)(self.twin, images, labels)


def run_gate(bench: Bench, twin: Classifier | None = None) -> list[Check]:
    """The checks that need attacks of their own."""
    with frozen(bench.classifier, *([twin] if twin else [])):
        checks = [repeats(bench), flat(bench)]
        if not differentiable(bench.classifier, bench.images):
            return checks
        checks += [true_gradients(bench), epsilon_curve(bench), more_steps(bench)]
        if twin:
            checks.append(transfer(bench, twin))
    return checks


def is_sign(count: int, images: int) -> bool:
    """Whether so many of the images, on the wrong side, are a sign; one alone never is."""
    return count > max(1, SLACK * images)


def repeats(bench: Bench) -> Check:
    """The same images get the same logits each time."""
    first, second = bench.logits(), bench.logits()
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


def flat(bench: Bench) -> Check:
    """The margin changes with the image, for those that are classified rightly."""
    name = "losses are not flat"
    right = bench.right()
    if not right.any():
        return Check(name, True, "no image is classified rightly")
    if not differentiable(bench.classifier, bench.images):
        return Check(name, False, "the logits carry no gradient to the images")
    slopes = [
        LINF.length(loss_gradient(bench.classifier, images, None, Goal(labels), margin)[1])
        for images, labels in bench.batches()
    ]
    slope = torch.cat(slopes)[right]
    still, undefined = slope == 0, ~slope.isfinite()
    evidence = f"the gradient of the margin is exactly 0 for {still.double().mean():.1%} of the images"
    if undefined.any():
        evidence += f", and NaN or infinite for {undefined.double().mean():.1%}"
    return Check(name, not is_sign(int((still | undefined).sum()), len(slope)), evidence)


def true_gradients(bench: Bench) -> Check:
    """Against its gradient the margin falls: at some small length as far as foretold, or half as far, for half of the
    images."""
    name = "gradients tell how the margin changes"
    kept = torch.cat([_promises_kept(bench, images, labels) for images, labels in bench.batches()])
    kept = kept[~kept.isnan().any(dim=1)]
    if not len(kept):
        return Check(name, True, "no image has a gradient to follow")
    undefined = int((~kept.isfinite().all(dim=1)).sum())
    if is_sign(undefined, len(kept)):
        return Check(name, False, f"the gradient is NaN or infinite for {undefined} of {len(kept)} images")
    shares = kept.median(dim=0).values.tolist()
    told = ", ".join(f"{share:.0%} within {length:.0%}" for length, share in zip(FOLLOWED, shares, strict=True))
    return Check(name, max(shares) >= KEPT, f"of the fall that they foretell comes, by shares of epsilon, {told}")


def _promises_kept(bench: Bench, images: Tensor, labels: Tensor) -> Tensor:
    """How far the margin falls along its gradient, as a share of what that foretells, for each of FOLLOWED: N x
    lengths, NaN where nothing is foretold, and infinite where the gradient itself is NaN or infinite."""
    goal, budget = Goal(labels), bench.budget
    logits, gradient = loss_gradient(bench.classifier, images, None, goal, margin)
    gradient, undefined = zero_where_undefined(gradient)
    shares = []
    for length in FOLLOWED:
        there = (images - length * budget.epsilon * budget.norm.steepest(gradient)).clamp(0, 1)
        foretold = ((there - images) * gradient).sum(dim=(1, 2, 3))
        with torch.no_grad():
            fall = margin(bench.classifier(there), None, goal) - margin(logits, None, goal)
        share = torch.where(foretold == 0, torch.nan, fall / foretold)
        shares.append(share.masked_fill(undefined, torch.inf))
    return torch.stack(shares, dim=1)


def epsilon_curve(bench: Bench) -> Check:
    """Accuracy falls as epsilon grows, and next to nothing is left where any picture is allowed."""
    budget = bench.budget
    everything = budget.norm.covering_radius(bench.images[0].numel())
    epsilons = [share * budget.epsilon for share in (0.5, 1.0, 1.5) if share * budget.epsilon < everything]
    epsilons.append(everything)
    images = len(bench.labels)
    left = [bench.left(PGD(Budget(budget.norm, epsilon), steps=20)) for epsilon in epsilons]
    falls = not any(is_sign(after - before, images) for before, after in pairwise(left))
    curve = ", ".join(f"{e:.3g}: {count / images:.1%}" for e, count in zip(epsilons, left, strict=True))
    passed = falls and left[-1] <= max(1, NOTHING * images)  # one image alone is no sign
    return Check("accuracy falls to nothing as epsilon grows", passed, f"PGD leaves {curve}")


def more_steps(bench: Bench) -> Check:
    """More steps and restarts do not help the classifier."""
    images = len(bench.labels)
    few = bench.left(PGD(bench.budget, steps=5, step_scales=(0.25,)))
    many = bench.left(PGD(bench.budget, steps=50, restarts=2))
    return Check(
        "more steps and restarts do not hurt the attack",
        not is_sign(many - few, images),
        f"PGD with 5 steps leaves {few / images:.1%}, with 50 steps and restarts {many / images:.1%}",
    )


def transfer(bench: Bench, twin: Classifier) -> Check:
    """What fools the twin does not fool the classifier where attacks that look at it fail."""
    fooled = ~bench.right(FromTwin(twin, bench.budget))
    withstood = bench.right(PGD(bench.budget))
    count, clean = int((fooled & withstood).sum()), replace(bench, classifier=twin).right().double().mean()
    return Check(
        "transfer does not beat white-box attacks",
        not is_sign(count, len(fooled)),
        f"{count / len(fooled):.1%} of the images fall only to attacks on {twin.name}, which reads {clean:.1%} rightly",
    )
