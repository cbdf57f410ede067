"""DeepFool: steps to the nearest class boundary of linear approximations of the classifier."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gap.core.errors import GapError
from gap.core.frozen import frozen
from gap.core.gradients import input_gradient, warn_if_undefined, zero_where_undefined
from gap.core.network import call
from gap.threat import Budget, Norm, as_budget, find_norm, quantize_towards

# The shortest step, in pixels of [0, 1], as in the authors' code. Without it, an image on a boundary would not move.
SHORTEST_STEP = 1e-4
# To find a misclassified 8-bit image, a perturbation is scaled by this factor repeatedly, up to this multiple.
GROWTH, LONGEST = 1.05, 20.0


@dataclass(frozen=True)
class DeepFool:
    """A small perturbation that changes the class (Moosavi-Dezfooli et al., 2016), untargeted, in any norm.

    Every step, of at most `steps`, linearizes the classifier and goes to its nearest boundary with one of the
    `candidates` - 1 most likely other classes of the clean image. The sum of the steps is lengthened by the share
    `overshoot`. An image is finished as soon as its predicted class differs from its label.

    The paper ends there, but rounding to 8 bits moves most images back across the boundary. Here the perturbation of
    such an image is scaled up until its 8-bit image is misclassified too, if the budget allows that.

    The norm is that of the budget if there is one, else `norm`. Without a budget the length of the perturbation is not
    limited. With a budget the result is projected onto it, so an image with a more distant boundary is not fooled.
    Raises GapError for options out of range.
    """

    budget: Budget | None = None
    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 10
    norm: str = "l2"
    name: str = "deepfool"

    def __post_init__(self) -> None:
        if self.budget is not None:
            object.__setattr__(self, "budget", as_budget(self.budget))
        find_norm(self.norm)
        if self.steps < 1 or self.candidates < 2:
            raise GapError(
                f"deepfool needs at least 1 step and 2 candidates, not steps={self.steps}, candidates={self.candidates}"
            )
        if not self.overshoot >= 0:
            raise GapError(f"deepfool needs an overshoot of at least 0, not {self.overshoot:g}")

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with frozen(classifier), torch.no_grad():
            path, undefined = self._find_path(classifier, images, labels)
            warn_if_undefined(self.name, undefined)
            return self._extend_past_rounding(classifier, images, labels, path)

    def _extend_past_rounding(self, classifier: nn.Module, images: Tensor, labels: Tensor, path: Tensor) -> Tensor:
        """The adversarial images, moved along their paths until their 8-bit images are misclassified.

        Images for which that fails stay at the overshoot of the paper.
        """
        adversarial = self._move_along(images, path, 1 + self.overshoot)
        index = (call(classifier, adversarial).argmax(dim=1) != labels).nonzero().squeeze(1)
        if not len(index):
            return adversarial
        index = index[
            call(classifier, self._quantize(images[index], adversarial[index])).argmax(dim=1) == labels[index]
        ]
        length = 1 + self.overshoot
        while len(index) and (length := GROWTH * length) < LONGEST:
            longer = self._move_along(images[index], path[index], length)
            rounded = self._quantize(images[index], longer)
            fooled = call(classifier, rounded).argmax(dim=1) != labels[index]
            adversarial[index[fooled]] = longer[fooled]
            index = index[~fooled]
        return adversarial

    def _move_along(self, images: Tensor, path: Tensor, length: float) -> Tensor:
        """The images plus `length` times their paths, projected onto the budget and [0, 1]."""
        perturbation = length * path
        if self.budget is not None:
            perturbation = self.budget.project(perturbation)
        return (images + perturbation).clamp(0, 1)

    def _quantize(self, images: Tensor, adversarial: Tensor) -> Tensor:
        if self.budget is not None:
            return self.budget.quantize(images, adversarial)
        return quantize_towards(images, adversarial)

    def path_to_boundary(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The sum of the steps of every image, N x C x H x W, without the overshoot. The classifier must be frozen."""
        return self._find_path(classifier, images, labels)[0]

    def _find_path(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The path to the boundary, and N booleans: which images had a gradient that is NaN or infinite."""
        total = torch.zeros_like(images)
        undefined = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        logits = call(classifier, images)
        others = min(self.candidates, logits.shape[1]) - 1
        rivals = logits.scatter(1, labels.view(-1, 1), float("-inf")).topk(others).indices
        classes = torch.cat([labels.view(-1, 1), rivals], dim=1)
        index = (logits.argmax(dim=1) == labels).nonzero().squeeze(1)
        for _ in range(self.steps):
            if not len(index):
                break
            current = (images[index] + (1 + self.overshoot) * total[index]).clamp(0, 1)
            values, gradients, predicted = _candidate_gradients(classifier, current, classes[index])
            unfooled = predicted == labels[index]
            index = index[unfooled]
            finite, undefined[index] = zero_where_undefined(gradients[unfooled])
            total[index] += self._step(values[unfooled], finite)
        return total, undefined

    def _step(self, values: Tensor, gradients: Tensor) -> Tensor:
        """The shortest step to a boundary, from logits N x K and gradients N x K x C x H x W, with the label first."""
        gaps = values[:, :1] - values[:, 1:]
        slopes = gradients[:, 1:] - gradients[:, :1]
        flat = slopes.flatten(2)
        dual = self._norm.slope(flat)
        distances = (gaps / dual.clamp_min(torch.finfo(dual.dtype).tiny)).nan_to_num(nan=torch.inf)
        distance, nearest = distances.min(dim=1)
        # The largest distance between two images bounds the step, which is infinite where all gradients are 0.
        diameter = self._norm.diameter(flat.shape[2])
        length = distance.clamp(SHORTEST_STEP, diameter).view(-1, 1, 1, 1)
        return length * self._norm.steepest(slopes[torch.arange(len(nearest)), nearest])

    @property
    def _norm(self) -> Norm:
        return find_norm(self.norm) if self.budget is None else self.budget.norm


def _candidate_gradients(classifier: nn.Module, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logits of the classes N x K, their gradients N x K x C x H x W, and the N predicted classes."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = call(classifier, images)
        values = logits.gather(1, classes)
        sums = values.sum(dim=0).unbind()
    gradients = [input_gradient(class_sum, images, retain_graph=True) for class_sum in sums]
    return values.detach(), torch.stack(gradients, dim=1), logits.argmax(dim=1)
