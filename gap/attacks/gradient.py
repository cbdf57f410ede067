"""Gradient attacks: projected gradient descent and the one-step sign method.

The budget has the operations that depend on the norm: the random start, the steepest direction and the projection.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from gap.attacks.base import Attack
from gap.attacks.losses import Criterion, Loss, find_loss, margin, needs_clean_logits
from gap.attacks.options import CONFIDENCE
from gap.attacks.steps import projected_step
from gap.core.errors import GapError, unknown_name_error
from gap.core.frozen import frozen
from gap.core.gradients import input_gradient, warn_if_undefined, zero_where_undefined
from gap.core.network import call, check_images
from gap.threat import Budget, as_budget

StepSchedule = Literal["cosine", "constant"]


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent (Madry et al., 2018), tuned as a strong reference attack.

    Every run starts at a random point of the budget's ball and takes `steps` steepest steps. There is one run for each
    of `relative_step_sizes`, repeated `restarts` times. An image that no run fools costs
    `steps * len(relative_step_sizes) * restarts` gradients. The result is, per image, the iterate with the lowest logit
    margin of all runs.

    The textbook form, as in other libraries, is
    `PGD("linf:8/255", steps=10, loss="cross-entropy", step_size=2/255, step_schedule="constant", early_stop=False)`.

    Args:
        budget: the largest perturbation, a Budget or its text such as "linf:8/255".
        steps: gradient steps of each run.
        loss: a name of `gap.attacks.losses`, or a function of logits, clean logits and a Criterion, to N values.
        restarts: the number of times the runs are repeated, from other random points.
        relative_step_sizes: the first step size of each run, in epsilons.
        step_size: the first step size of one run, in pixels of [0, 1]; replaces `relative_step_sizes`.
        step_schedule: "cosine" lowers the step size to 0 along half a cosine; "constant" does not change it.
        confidence: the logit margin of misclassification at which an image is finished. It is above 0 so that rounding
            to 8 bits does not undo the misclassification. A clean image with this margin is returned unchanged.
        early_stop: False takes every step with every image and returns the last iterate of the last run.
        targeted: the labels are the classes to reach, not the true classes.
        init: an attack whose images, projected onto the budget, are the initial points of the runs.
        name: the name of the attack in tables.

    Raises:
        GapError: for options out of range, and for a classifier that passes no gradient.
    """

    budget: Budget
    steps: int = 40
    loss: str | Loss = "margin"
    restarts: int = 1
    relative_step_sizes: tuple[float, ...] = (0.25, 1.0)
    step_size: float | None = None
    step_schedule: StepSchedule = "cosine"
    confidence: float = 1.0
    early_stop: bool = True
    targeted: bool = False
    init: Attack | None = None
    name: str = "pgd"

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", as_budget(self.budget))
        find_loss(self.loss)
        if self.steps < 1 or self.restarts < 1:
            raise GapError(f"pgd needs at least 1 step and 1 restart, not steps={self.steps}, restarts={self.restarts}")
        if not self.relative_step_sizes or not all(0 < size < math.inf for size in self.relative_step_sizes):
            raise GapError(f"pgd needs positive relative_step_sizes, such as 0.25/1, not {self.relative_step_sizes}")
        if self.step_size is not None and not 0 < self.step_size < math.inf:
            raise GapError(f"pgd needs a positive step_size in pixels of [0, 1], such as 2/255, not {self.step_size:g}")
        if self.step_schedule not in get_args(StepSchedule):
            raise unknown_name_error("step_schedule", self.step_schedule, get_args(StepSchedule))
        if not self.confidence >= 0:
            raise GapError(f"pgd needs a confidence of at least 0, not {self.confidence:g}")

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        check_images(images)
        with frozen(classifier), torch.no_grad():
            if not self.early_stop:
                return self._last_iterate(classifier, images, Criterion(labels, self.targeted))
            clean_logits = call(classifier, images)
            best = _BestIterates(images, clean_logits, Criterion(labels, self.targeted), self._margin_floor)
            for sizes in self._runs():
                self._descend(classifier, images, best, sizes)
            warn_if_undefined(self.name, best.undefined)
            return best.images

    @property
    def _margin_floor(self) -> float:
        """How far past the boundary the margin loss has a gradient, in logits: at least to `confidence`."""
        return max(CONFIDENCE, self.confidence)

    def _runs(self) -> Iterator[list[float]]:
        """The step sizes of each run."""
        first_sizes = [scale * self.budget.epsilon for scale in self.relative_step_sizes]
        for first in (first_sizes if self.step_size is None else [self.step_size]) * self.restarts:
            yield [first] * self.steps if self.step_schedule == "constant" else _cosine(first, self.steps)

    def _descend(self, classifier: nn.Module, images: Tensor, best: "_BestIterates", sizes: list[float]) -> None:
        """One run on the images that are not yet misclassified; updates `best` with its iterates."""
        index = best.active_indices(self.confidence)
        clean = images if len(index) == len(images) else images[index]
        adversarial = self._initial_point(classifier, clean, best.criterion.classes[index])
        loss = find_loss(self.loss, self._margin_floor)
        for size in sizes:
            if not len(index):
                return
            criterion, clean_logits = best.criterion_of(index), best.clean_logits[index]
            logits, gradient = loss_gradient(classifier, adversarial, clean_logits, criterion, loss)
            best.update(index, adversarial, logits)
            gradient, undefined = zero_where_undefined(gradient)
            best.undefined[index] |= undefined
            adversarial = projected_step(clean, adversarial, gradient, size, self.budget)

            active = best.margins[index] > -self.confidence
            if not active.all():
                index, clean, adversarial = index[active], clean[active], adversarial[active]
        if len(index):
            best.update(index, adversarial, call(classifier, adversarial))

    def _last_iterate(self, classifier: nn.Module, images: Tensor, criterion: Criterion) -> Tensor:
        """The textbook form: every image takes every step, and the last iterate of the last run is the result."""
        loss, adversarial = find_loss(self.loss, self._margin_floor), images
        clean_logits = call(classifier, images) if needs_clean_logits(loss) else None
        undefined = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        for sizes in self._runs():
            adversarial = self._initial_point(classifier, images, criterion.classes)
            for size in sizes:
                _, gradient = loss_gradient(classifier, adversarial, clean_logits, criterion, loss)
                gradient, step_undefined = zero_where_undefined(gradient)
                undefined |= step_undefined
                adversarial = projected_step(images, adversarial, gradient, size, self.budget)
        warn_if_undefined(self.name, undefined)
        return adversarial

    def _initial_point(self, classifier: nn.Module, clean: Tensor, labels: Tensor) -> Tensor:
        if self.init is None:
            return (clean + self.budget.sample(clean)).clamp(0, 1)
        return (clean + self.budget.project(self.init(classifier, clean, labels) - clean)).clamp(0, 1)


class _BestIterates:
    """The iterate with the lowest logit margin so far, for each image.

    `undefined` holds N booleans: for which images a gradient was NaN or infinite.
    """

    def __init__(self, images: Tensor, logits: Tensor, criterion: Criterion, floor: float) -> None:
        self.images = images.detach().clone()
        self.undefined = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.floor = floor
        self.margins = margin(logits, logits, criterion, floor)
        self.clean_logits = logits
        self.criterion = criterion

    def criterion_of(self, index: Tensor) -> Criterion:
        return Criterion(self.criterion.classes[index], self.criterion.targeted)

    def active_indices(self, confidence: float) -> Tensor:
        """The indices of the images not yet misclassified by that margin."""
        return (self.margins > -confidence).nonzero().squeeze(1)

    def update(self, index: Tensor, candidates: Tensor, logits: Tensor) -> None:
        """Replace the iterates of the images `index` by those candidates that have a lower margin."""
        margins = margin(logits, logits, self.criterion_of(index), self.floor)
        better = margins < self.margins[index]
        self.images[index[better]] = candidates[better]
        self.margins[index[better]] = margins[better]


@dataclass(frozen=True)
class FGSM:
    """One steepest step of the whole budget from the clean image (Goodfellow et al., 2015).

    Linf: the sign of the gradient times epsilon. L2: the gradient scaled to the norm epsilon. L1: steps of equal size
    in the values with the largest gradients. `loss` is a name of `gap.attacks.losses`. Raises GapError for an unknown
    loss and for a classifier that passes no gradient.
    """

    budget: Budget
    loss: str | Loss = "capped-cross-entropy"
    name: str = "fgsm"

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", as_budget(self.budget))
        find_loss(self.loss)

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        check_images(images)
        with frozen(classifier), torch.no_grad():
            _, gradient = loss_gradient(classifier, images, None, Criterion(labels), find_loss(self.loss))
            gradient, undefined = zero_where_undefined(gradient)
            warn_if_undefined(self.name, undefined)
            return projected_step(images, images, gradient, self.budget.epsilon, self.budget)


def loss_gradient(
    classifier: nn.Module, images: Tensor, clean_logits: Tensor | None, criterion: Criterion, loss: Loss
) -> tuple[Tensor, Tensor]:
    """The logits (N x K) and the gradient of the summed loss with respect to the images (N x C x H x W), both detached.

    Without `clean_logits`, the logits of the images themselves are used. Raises GapError when there is no gradient.
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = call(classifier, images)
        value = loss(logits, logits.detach() if clean_logits is None else clean_logits, criterion).sum()
    return logits.detach(), input_gradient(value, images)


def _cosine(first: float, steps: int) -> list[float]:
    """Step sizes that fall from `first` towards 0 along half a cosine."""
    return [first * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]
