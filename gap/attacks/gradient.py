"""Gradient attacks: projected gradient descent and the one-step sign method.

What differs between norms belongs to the budget: where a search starts, which way is steepest, and the projection.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gap.attacks.base import Attack
from gap.attacks.losses import CONFIDENCE, Criterion, Loss, find_loss, margin
from gap.core.errors import GapError
from gap.core.frozen import frozen
from gap.core.gradients import input_gradient, warn_if_undefined, zero_where_undefined
from gap.core.network import call
from gap.threat import Budget


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent (Madry et al., 2018), tuned to be a reference that does not flatter.

    Each run starts at a random point of the budget's ball and takes `steps` steepest steps whose size falls along a
    cosine from `scale * epsilon` towards 0. There is one run for each scale of `relative_step_sizes`, `restarts` times
    over, so an image that withstands them all costs `steps * len(relative_step_sizes) * restarts` gradients. Per image
    the most adversarial iterate of all runs is kept: the one of lowest logit margin, so a success if any run had one.

    With a `init`, runs begin at what that attack makes instead, projected onto the budget: a trained generator is a
    guess that few steps make good.

    An image leaves the search once it is fooled by a logit margin of `confidence` (in logits, at least 0), a little
    past the boundary so that rounding to 8 bits does not undo it; one that begins there is returned as it was.

    `loss` is a name of `gap.attacks.losses`. The labels are the classes to leave or, when `targeted`, to reach.
    Raises GapError for options out of range and for a classifier that passes no gradient.
    """

    budget: Budget
    steps: int = 40
    loss: str = "margin"
    restarts: int = 1
    relative_step_sizes: tuple[float, ...] = (0.25, 1.0)
    confidence: float = 1.0
    targeted: bool = False
    init: Attack | None = None
    name: str = "pgd"

    def __post_init__(self) -> None:
        find_loss(self.loss)
        if self.steps < 1 or self.restarts < 1:
            raise GapError(f"pgd needs at least 1 step and 1 restart, not steps={self.steps}, restarts={self.restarts}")
        if not self.relative_step_sizes or not all(0 < scale < math.inf for scale in self.relative_step_sizes):
            raise GapError(f"pgd needs positive relative_step_sizes, such as 0.25/1, not {self.relative_step_sizes}")
        if not self.confidence >= 0:
            raise GapError(f"pgd needs a confidence of at least 0, not {self.confidence:g}")

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with frozen(classifier), torch.no_grad():
            best = _BestIterates(images, call(classifier, images), Criterion(labels, self.targeted), self._margin_floor)
            for scale in self.relative_step_sizes * self.restarts:
                self._descend(classifier, images, best, scale * self.budget.epsilon)
            warn_if_undefined(self.name, best.undefined)
            return best.images

    @property
    def _margin_floor(self) -> float:
        """How far, in logits, the margin is followed past the boundary: at least as far as it is asked to get."""
        return max(CONFIDENCE, self.confidence)

    def _descend(self, classifier: nn.Module, images: Tensor, best: "_BestIterates", first_size: float) -> None:
        """One descent of the images still standing; what it finds is offered to `best`."""
        index = best.active_indices(self.confidence)
        clean = images[index]
        adversarial = self._initial_point(classifier, clean, best.criterion.classes[index])
        for size in _cosine(first_size, self.steps):
            if not len(index):
                return
            logits, gradient = loss_gradient(
                classifier,
                adversarial,
                best.clean_logits[index],
                best.criterion_of(index),
                find_loss(self.loss, self._margin_floor),
            )
            best.update(index, adversarial, logits)
            gradient, undefined = zero_where_undefined(gradient)
            best.undefined[index] |= undefined
            stepped = adversarial - clean - size * self.budget.norm.steepest(gradient)
            adversarial = (clean + self.budget.project(stepped)).clamp(0, 1)

            active_indices = best.margins[index] > -self.confidence
            index, clean, adversarial = index[active_indices], clean[active_indices], adversarial[active_indices]
        if len(index):
            best.update(index, adversarial, call(classifier, adversarial))

    def _initial_point(self, classifier: nn.Module, clean: Tensor, labels: Tensor) -> Tensor:
        if self.init is None:
            return (clean + self.budget.sample(clean)).clamp(0, 1)
        return (clean + self.budget.project(self.init(classifier, clean, labels) - clean)).clamp(0, 1)


class _BestIterates:
    """The most adversarial pictures met so far, one per image: those of lowest logit margin.

    `undefined` says for which images the search met a gradient that is NaN or infinite.
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
        """The indices of the images not yet fooled by that margin."""
        return (self.margins > -confidence).nonzero().squeeze(1)

    def update(self, index: Tensor, candidates: Tensor, logits: Tensor) -> None:
        """Keep those candidates for the images `index` that are better than what is kept."""
        margins = margin(logits, logits, self.criterion_of(index), self.floor)
        better = margins < self.margins[index]
        self.images[index[better]] = candidates[better]
        self.margins[index[better]] = margins[better]


@dataclass(frozen=True)
class FGSM:
    """One steepest step of the whole budget from the clean image (Goodfellow et al., 2015).

    Linf: the sign of the gradient times epsilon. L2: the gradient scaled to the length epsilon. L1: even steps of the
    values whose gradient is largest. `loss` is a name of
    `gap.attacks.losses`. Raises GapError for an unknown loss and for a classifier that passes no gradient.
    """

    budget: Budget
    loss: str = "capped-cross-entropy"
    name: str = "fgsm"

    def __post_init__(self) -> None:
        find_loss(self.loss)

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with frozen(classifier), torch.no_grad():
            _, gradient = loss_gradient(classifier, images, None, Criterion(labels), find_loss(self.loss))
            gradient, undefined = zero_where_undefined(gradient)
            warn_if_undefined(self.name, undefined)
            step = self.budget.epsilon * self.budget.norm.steepest(gradient)
            return (images - self.budget.project(step)).clamp(0, 1)


def loss_gradient(
    classifier: nn.Module, images: Tensor, clean_logits: Tensor | None, criterion: Criterion, loss: Loss
) -> tuple[Tensor, Tensor]:
    """The logits (N x K) and the gradient of the summed loss by the images (N x C x H x W), both detached.

    `clean_logits` None stands for those of the images themselves. Raises GapError when there is no gradient.
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = call(classifier, images)
        value = loss(logits, logits.detach() if clean_logits is None else clean_logits, criterion).sum()
    return logits.detach(), input_gradient(value, images)


def _cosine(first: float, steps: int) -> Iterator[float]:
    """Sizes that fall from `first` towards 0 along half a cosine."""
    return (first * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps))
