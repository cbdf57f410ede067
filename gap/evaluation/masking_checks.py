"""Checks for signs of gradient masking (Athalye et al., 2018; Carlini et al., 2019)."""

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

# The share of images on the wrong side above which a check fails.
TOLERANCE = 0.02
# The largest accuracy under a budget that allows nearly every image.
MAX_REMAINING_ACCURACY = 0.05
# Step sizes along the gradient, in epsilons, and the share of the predicted decrease of the margin that must occur. The
# largest step exceeds one 8-bit level, because some classifiers round their input and replace the gradient of that.
STEP_SIZES, MIN_RATIO = (0.01, 0.1, 0.3), 0.5


@dataclass(frozen=True)
class CheckResult:
    """The result of a check: its name, whether it passed, and details."""

    name: str
    passed: bool
    details: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class EvaluationBatch:
    """Images N x C x H x W in [0, 1] and labels on which a classifier is evaluated, `batch_size` at a time."""

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
        """Which images are classified correctly, under an attack if one is given: N booleans."""
        correct = []
        for images, labels in self.batches():
            adversarial = attack(self.classifier, images, labels) if attack else images
            with torch.no_grad():
                correct.append(self.classifier(adversarial).argmax(dim=1) == labels)
        return torch.cat(correct)

    def num_correct(self, attack: Attack) -> int:
        """The number of images that are classified correctly under an attack."""
        return int(self.correct(attack).sum())


@dataclass(frozen=True)
class SurrogatePGD:
    """A transfer attack: PGD on a surrogate classifier.

    It does not stop at the surrogate's decision boundary: images further past the boundary transfer better.
    """

    surrogate: Classifier
    budget: Budget

    @property
    def name(self) -> str:
        return f"pgd on {self.surrogate.name}"

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return PGD(self.budget, confidence=math.inf)(self.surrogate, images, labels)


def run_masking_checks(batch: EvaluationBatch, surrogate: Classifier | None = None) -> list[CheckResult]:
    """Run the checks that do not use the results of AutoAttack."""
    with frozen(batch.classifier, *([surrogate] if surrogate else [])):
        checks = [check_deterministic(batch), check_nonzero_gradient(batch)]
        if not differentiable(batch.classifier, batch.images):
            return checks
        checks += [check_gradient_fidelity(batch), check_epsilon_curve(batch), check_more_steps(batch)]
        if surrogate:
            checks.append(check_transfer(batch, surrogate))
    return checks


def exceeds_tolerance(count: int, images: int) -> bool:
    """Whether a count of `images` exceeds the tolerance; a count of 1 never does."""
    return count > max(1, TOLERANCE * images)


def check_deterministic(batch: EvaluationBatch) -> CheckResult:
    """Check that the same images get the same logits at every call."""
    first, second = batch.logits(), batch.logits()
    difference = (first - second).abs().max().item()
    scale = first.std().item()
    return CheckResult(
        "the same logits each time",
        difference <= 1e-3 * scale + 1e-6,
        f"they differ by up to {difference:.3g}, and spread over {scale:.3g}",
    )


def differentiable(classifier: Classifier, images: Tensor) -> bool:
    """Whether the logits have a gradient with respect to the images, which may be 0."""
    with frozen(classifier), torch.enable_grad():
        return classifier(images[:1].detach().requires_grad_()).requires_grad


def check_nonzero_gradient(batch: EvaluationBatch) -> CheckResult:
    """Check that the margin has a nonzero gradient for correctly classified images."""
    name = "losses are not flat"
    correct = batch.correct()
    if not correct.any():
        return CheckResult(name, True, "no image is classified rightly")
    if not differentiable(batch.classifier, batch.images):
        return CheckResult(name, False, "the logits carry no gradient to the images")
    slopes = [
        LINF.length(loss_gradient(batch.classifier, images, None, Criterion(labels), margin)[1])
        for images, labels in batch.batches()
    ]
    slope = torch.cat(slopes)[correct]
    zero, undefined = slope == 0, ~slope.isfinite()
    details = f"the gradient of the margin is exactly 0 for {zero.double().mean():.1%} of the images"
    if undefined.any():
        details += f", and NaN or infinite for {undefined.double().mean():.1%}"
    return CheckResult(name, not exceeds_tolerance(int((zero | undefined).sum()), len(slope)), details)


def check_gradient_fidelity(batch: EvaluationBatch) -> CheckResult:
    """Check that the margin decreases along its gradient.

    At one of the step sizes, half of the images must have at least half of the first-order prediction.
    """
    name = "gradients tell how the margin changes"
    ratios = torch.cat([_linearization_ratio(batch, images, labels) for images, labels in batch.batches()])
    ratios = ratios[~ratios.isnan().any(dim=1)]
    if not len(ratios):
        return CheckResult(name, True, "no image has a gradient to follow")
    undefined = int((~ratios.isfinite().all(dim=1)).sum())
    if exceeds_tolerance(undefined, len(ratios)):
        return CheckResult(name, False, f"the gradient is NaN or infinite for {undefined} of {len(ratios)} images")
    medians = ratios.median(dim=0).values.tolist()
    drops = ", ".join(
        f"{median:.0%} within {step_size:.0%}" for step_size, median in zip(STEP_SIZES, medians, strict=True)
    )
    return CheckResult(
        name, max(medians) >= MIN_RATIO, f"of the predicted decrease occurs, by step size in epsilons: {drops}"
    )


def _linearization_ratio(batch: EvaluationBatch, images: Tensor, labels: Tensor) -> Tensor:
    """The decrease of the margin along its gradient, divided by the first-order prediction: N x STEP_SIZES.

    It is NaN where the prediction is 0, and infinite where the gradient is NaN or infinite.
    """
    criterion, budget = Criterion(labels), batch.budget
    logits, gradient = loss_gradient(batch.classifier, images, None, criterion, margin)
    gradient, undefined = zero_where_undefined(gradient)
    ratios = []
    for step_size in STEP_SIZES:
        stepped = (images - step_size * budget.epsilon * budget.norm.steepest(gradient)).clamp(0, 1)
        predicted = ((stepped - images) * gradient).sum(dim=(1, 2, 3))
        with torch.no_grad():
            decrease = margin(batch.classifier(stepped), None, criterion) - margin(logits, None, criterion)
        ratio = torch.where(predicted == 0, torch.nan, decrease / predicted)
        ratios.append(ratio.masked_fill(undefined, torch.inf))
    return torch.stack(ratios, dim=1)


def check_epsilon_curve(batch: EvaluationBatch) -> CheckResult:
    """Check that accuracy falls as epsilon grows, to nearly 0 where the budget allows every image."""
    budget = batch.budget
    covering_radius = budget.norm.covering_radius(batch.images[0].numel())
    epsilons = [share * budget.epsilon for share in (0.5, 1.0, 1.5) if share * budget.epsilon < covering_radius]
    epsilons.append(covering_radius)
    images = len(batch.labels)
    num_correct = [batch.num_correct(PGD(Budget(budget.norm, epsilon), steps=20)) for epsilon in epsilons]
    is_decreasing = not any(exceeds_tolerance(after - before, images) for before, after in pairwise(num_correct))
    curve = ", ".join(f"{e:.3g}: {count / images:.1%}" for e, count in zip(epsilons, num_correct, strict=True))
    passed = is_decreasing and num_correct[-1] <= max(
        1, MAX_REMAINING_ACCURACY * images
    )  # a single image never fails the check
    return CheckResult("accuracy falls to nothing as epsilon grows", passed, f"PGD leaves {curve}")


def check_more_steps(batch: EvaluationBatch) -> CheckResult:
    """Check that more steps and restarts do not make the attack weaker."""
    images = len(batch.labels)
    weak = batch.num_correct(PGD(batch.budget, steps=5, relative_step_sizes=(0.25,)))
    strong = batch.num_correct(PGD(batch.budget, steps=50, restarts=2))
    return CheckResult(
        "more steps and restarts do not hurt the attack",
        not exceeds_tolerance(strong - weak, images),
        f"accuracy under PGD with 5 steps {weak / images:.1%}, with 50 steps and restarts {strong / images:.1%}",
    )


def check_transfer(batch: EvaluationBatch, surrogate: Classifier) -> CheckResult:
    """Check that transfer from a surrogate does not fool images that white-box attacks do not fool."""
    fooled = ~batch.correct(SurrogatePGD(surrogate, batch.budget))
    robust = batch.correct(PGD(batch.budget))
    count, clean = int((fooled & robust).sum()), replace(batch, classifier=surrogate).correct().double().mean()
    return CheckResult(
        "transfer does not beat white-box attacks",
        not exceeds_tolerance(count, len(fooled)),
        f"{count / len(fooled):.1%} of the images are misclassified only under attacks on {surrogate.name}, whose"
        f" clean accuracy is {clean:.1%}",
    )
