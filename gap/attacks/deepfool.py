"""DeepFool: the nearest class boundary, found by walking over linear approximations."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gap.core.errors import GapError
from gap.core.frozen import frozen
from gap.core.gradients import input_gradient, warn_if_undefined, zero_where_undefined
from gap.core.network import call
from gap.threat import Budget, Norm, as_budget, find_norm, quantize_towards

# The shortest step, in pixels of [0, 1], as in the authors' code: an image exactly on a boundary would never leave it.
SHORTEST_STEP = 1e-4
# In search of 8-bit images that are misclassified, a perturbation grows by this factor at a time, to that multiple.
GROWTH, LONGEST = 1.05, 20.0


@dataclass(frozen=True)
class DeepFool:
    """A small perturbation that changes the class (Moosavi-Dezfooli et al., 2016), untargeted, in any norm.

    Each of at most `steps` steps goes to the nearest boundary with any of the `candidates` - 1 likeliest other classes
    of the clean image, were the classifier affine; the sum is lengthened by the share `overshoot`. An image leaves
    as soon as its class is not its label.

    The paper stops there, and rounding to 8 bits brings most images back across the boundary. Here the perturbation of
    such an image grows until its 8-bit image is misclassified too, where the budget allows that.

    The norm is that of the budget when there is one, else `norm`. Without a budget the perturbation is as long as
    it takes. With one, the result is projected onto it, so an image whose boundary lies farther away stays unfooled.
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
            path, undefined = self._walk(classifier, images, labels)
            warn_if_undefined(self.name, undefined)
            return self._past_rounding(classifier, images, labels, path)

    def _past_rounding(self, classifier: nn.Module, images: Tensor, labels: Tensor, path: Tensor) -> Tensor:
        """The adversarial images, moved along their path as far as it takes for their 8-bit images to be misclassified.

        Images that this brings nowhere stay at the first overshoot.
        """
        adversarial = self._at(images, path, 1 + self.overshoot)
        index = (call(classifier, adversarial).argmax(dim=1) != labels).nonzero().squeeze(1)
        if not len(index):
            return adversarial
        index = index[call(classifier, self._rounded(images[index], adversarial[index])).argmax(dim=1) == labels[index]]
        length = 1 + self.overshoot
        while len(index) and (length := GROWTH * length) < LONGEST:
            longer = self._at(images[index], path[index], length)
            rounded = self._rounded(images[index], longer)
            survives = call(classifier, rounded).argmax(dim=1) != labels[index]
            adversarial[index[survives]] = longer[survives]
            index = index[~survives]
        return adversarial

    def _at(self, images: Tensor, path: Tensor, length: float) -> Tensor:
        """The images moved so many times along their path, within the budget and [0, 1]."""
        perturbation = length * path
        if self.budget is not None:
            perturbation = self.budget.project(perturbation)
        return (images + perturbation).clamp(0, 1)

    def _rounded(self, images: Tensor, adversarial: Tensor) -> Tensor:
        if self.budget is not None:
            return self.budget.quantize(images, adversarial)
        return quantize_towards(images, adversarial)

    def path_to_boundary(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The sum of the steps for each image, N x C x H x W, without the overshoot; the classifier is held frozen."""
        return self._walk(classifier, images, labels)[0]

    def _walk(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """That path, and for which images a gradient on it was NaN or infinite."""
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
            standing = predicted == labels[index]
            index = index[standing]
            finite, undefined[index] = zero_where_undefined(gradients[standing])
            total[index] += self._step(values[standing], finite)
        return total, undefined

    def _step(self, values: Tensor, gradients: Tensor) -> Tensor:
        """The shortest step to a boundary, from logits N x K and their gradients N x K x C x H x W, own class first."""
        gaps = values[:, :1] - values[:, 1:]
        slopes = gradients[:, 1:] - gradients[:, :1]
        flat = slopes.flatten(2)
        dual = self._norm.slope(flat)
        distances = (gaps / dual.clamp_min(torch.finfo(dual.dtype).tiny)).nan_to_num(nan=torch.inf)
        distance, nearest = distances.min(dim=1)
        # No two pictures lie farther apart than this; where all is flat the distance would be infinite.
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
    gradients = [input_gradient(each, images, retain_graph=True) for each in sums]
    return values.detach(), torch.stack(gradients, dim=1), logits.argmax(dim=1)
