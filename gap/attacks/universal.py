"""Universal perturbations: one perturbation for all images, and the published methods without a generator."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gap.attacks.base import SavedAttack
from gap.attacks.deepfool import DeepFool
from gap.attacks.gradient import loss_gradient
from gap.attacks.losses import Criterion, find_loss, needs_clean_logits
from gap.core.errors import GapError
from gap.core.frozen import frozen
from gap.core.gradients import warn_if_undefined, zero_where_undefined
from gap.core.network import call
from gap.threat import L2, Budget

# One pass over the training images: (images N x C x H x W in [0, 1], N labels), on the classifier's device.
Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True, eq=False)
class Universal(SavedAttack):
    """Adds one perturbation (1 x C x H x W, pixels of [0, 1]) to every image, inside the budget, and clamps to [0, 1].

    For images of another size it is resized bilinearly and projected again. Raises GapError for a perturbation of
    another shape and for images with another number of channels.
    """

    perturbation: Tensor
    budget: Budget
    name: str = "universal"

    def __post_init__(self) -> None:
        shape = tuple(self.perturbation.shape)
        if len(shape) != 4 or shape[0] != 1:
            raise GapError(f"a universal perturbation has the shape 1 x C x H x W, not {' x '.join(map(str, shape))}")

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return (images + self._resized_for(images)).clamp(0, 1)

    def rescaled_to(self, budget: Budget) -> "Universal":
        """The same pattern scaled to the whole of another budget."""
        length = budget.norm_of(self.perturbation).clamp_min(1e-12).view(-1, 1, 1, 1)
        return replace(self, perturbation=budget.project(self.perturbation * (budget.epsilon / length)), budget=budget)

    def _resized_for(self, images: Tensor) -> Tensor:
        perturbation = self.perturbation.detach().to(images)
        if perturbation.shape[1] != images.shape[1]:
            raise GapError(
                f"{self.name} was made for images of {perturbation.shape[1]} channels, these have {images.shape[1]}"
            )
        if perturbation.shape[2:] != images.shape[2:]:
            perturbation = F.interpolate(perturbation, size=images.shape[2:], mode="bilinear", align_corners=False)
        return self.budget.project(perturbation)


def sign_sgd(
    classifier: nn.Module,
    batches: Batches,
    budget: Budget,
    images_seen: int = 20_000,
    loss: str = "capped-cross-entropy",
    step: float = 0.2,
) -> Universal:
    """Descend the mean loss by the sign of each batch's gradient (Shafahi et al., 2020, "stochastic PGD").

    `images_seen` is the number of images over all epochs. `step` is the first step size as a share of the largest L2
    norm that the budget allows; step sizes fall linearly to 0. Raises GapError for an unknown loss, options out of
    range or no images.
    """
    return _descend(classifier, batches, budget, images_seen, loss, step, 0.0, _unit_sign, "uap-sign-sgd")


def projected_sgd(
    classifier: nn.Module,
    batches: Batches,
    budget: Budget,
    images_seen: int = 20_000,
    loss: str = "capped-cross-entropy",
    step: float = 0.2,
    momentum: float = 0.9,
) -> Universal:
    """Descend the mean loss by the gradient with momentum, every step scaled to a fixed L2 norm.

    The options are those of `sign_sgd`; `momentum` (0 to 1) is the weight of the past gradients.
    """
    return _descend(classifier, batches, budget, images_seen, loss, step, momentum, _unit_gradient, "uap-sgd")


def deepfool_uap(
    classifier: nn.Module,
    batches: Batches,
    budget: Budget,
    images_seen: int = 5_000,
    fooling: float = 0.8,
    together: int = 32,
    steps: int = 10,
    candidates: int = 10,
) -> Universal:
    """Add up DeepFool steps of the images not yet fooled, projected (Moosavi-Dezfooli et al., 2017).

    Stops after the epoch in which a share `fooling` of the images was fooled, or after `images_seen` images. `steps`
    and `candidates` are those of DeepFool. Labels are not used. The original makes a step per image. Here `together`
    images make one step, of the mean of their directions and the mean of their lengths; 1 is the original. Raises
    GapError for options out of range or no images.
    """
    if together < 1:
        raise GapError(f"uap needs together to be at least 1, not {together}")
    if not 0 < fooling <= 1:
        raise GapError(f"uap needs a fooling rate above 0 and at most 1, not {fooling:g}")
    deepfool = DeepFool(steps=steps, candidates=candidates)
    total = _zero_like_first(batches, images_seen)
    with frozen(classifier), torch.no_grad():
        for epoch in _epochs(batches, images_seen):
            visited = fooled = 0
            for images in (images_of_step for batch, _ in epoch for images_of_step in torch.split(batch, together)):
                perturbed = (images + total).clamp(0, 1)
                classes = call(classifier, images).argmax(dim=1)
                unfooled = call(classifier, perturbed).argmax(dim=1) == classes
                visited += len(images)
                fooled += len(images) - int(unfooled.sum())
                if unfooled.any():
                    perturbed, classes = perturbed[unfooled], classes[unfooled]
                    path = deepfool.path_to_boundary(classifier, perturbed, classes)
                    steps_taken = (perturbed + (1 + deepfool.overshoot) * path).clamp(0, 1) - perturbed
                    length = steps_taken.flatten(1).norm(dim=1).mean()
                    total = budget.project(total + length * L2.steepest(steps_taken.mean(dim=0, keepdim=True)))
            if fooled >= fooling * visited:
                break
    return Universal(total, budget, "uap")


def _descend(
    classifier: nn.Module,
    batches: Batches,
    budget: Budget,
    images_seen: int,
    loss: str,
    step: float,
    momentum: float,
    direction: Callable[[Tensor], Tensor],
    name: str,
) -> Universal:
    if not 0 < step < math.inf:
        raise GapError(f"{name} needs a positive step, not {step:g}")
    if not 0 <= momentum < 1:
        raise GapError(f"{name} needs a momentum of at least 0 and below 1, not {momentum:g}")
    loss_function = find_loss(loss)
    total = _zero_like_first(batches, images_seen)
    velocity = torch.zeros_like(total)
    num_seen = 0
    undefined: list[Tensor] = []
    with frozen(classifier), torch.no_grad():
        for images, labels in (batch for epoch in _epochs(batches, images_seen) for batch in epoch):
            perturbed = images + total
            clean_logits = call(classifier, images) if needs_clean_logits(loss_function) else None
            _, gradient = loss_gradient(
                classifier, perturbed.clamp(0, 1), clean_logits, Criterion(labels), loss_function
            )
            gradient, batch_undefined = zero_where_undefined(gradient)
            undefined.append(batch_undefined)
            velocity = momentum * velocity + _mask_clamped(gradient, perturbed).mean(dim=0, keepdim=True)
            size = step * (1 - num_seen / images_seen) * _max_l2(budget, total)
            total = budget.project(total - size * direction(velocity))
            num_seen += len(images)
    warn_if_undefined(name, torch.cat(undefined))
    return Universal(total, budget, name)


def _zero_like_first(batches: Batches, images_seen: int) -> Tensor:
    """A perturbation of zeros in the shape of one training image: 1 x C x H x W."""
    if images_seen < 1:
        raise GapError(f"a universal perturbation needs images_seen to be at least 1, not {images_seen}")
    first = next(batches(), None)
    if first is None:
        raise GapError("there are no training images to fit a universal perturbation on")
    return torch.zeros_like(first[0][:1])


def _epochs(batches: Batches, images_seen: int) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Epochs over the training images. The last one ends after `images_seen` images in total."""
    remaining = images_seen

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal remaining
        for images, labels in batches():
            yield images[:remaining], labels[:remaining]
            remaining -= min(remaining, len(images))
            if remaining == 0:
                return

    while remaining > 0:
        yield epoch()


def _mask_clamped(gradient: Tensor, images: Tensor) -> Tensor:
    """The gradient, with 0 where it would move a clamped pixel further out of [0, 1]."""
    outward = ((images <= 0) & (gradient > 0)) | ((images >= 1) & (gradient < 0))
    return gradient.masked_fill(outward, 0)


def _max_l2(budget: Budget, perturbation: Tensor) -> float:
    """The largest L2 norm of a perturbation of this shape inside the budget."""
    return budget.norm.longest_l2(budget.epsilon, perturbation.numel())


def _unit_sign(gradient: Tensor) -> Tensor:
    return L2.steepest(gradient.sign())


def _unit_gradient(gradient: Tensor) -> Tensor:
    return L2.steepest(gradient)
