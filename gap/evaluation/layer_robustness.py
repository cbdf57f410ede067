"""How robust each layer of a network is: how far perturbations move what it gives, beside how far pictures differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gap.classifiers.classifier import Classifier
from gap.core.errors import GapError
from gap.core.frozen import frozen
from gap.core.gradients import input_gradient
from gap.evaluation.options import STEPS
from gap.models.feature_extractor import FeatureExtractor
from gap.threat import Budget

# Resamplings of the images for an interval.
BOOTSTRAP_SAMPLES = 1000


@dataclass(frozen=True)
class LayerRobustness:
    """R of a layer, and the 95% interval that resampling the images gives. 0 is a layer that nothing moves."""

    layer: str
    value: float
    low: float
    high: float


def layer_robustness(
    classifier: Classifier,
    layers: Sequence[str],
    images: Tensor,
    budget: Budget,
    *,
    steps: int = STEPS,
    batch_size: int = 50,
    seed: int = 0,
) -> list[LayerRobustness]:
    """R(f) = E_x max |f(x') - f(x)| / E |f(x1) - f(x2)| for each layer f, over x' within a budget of x.

    Images are N x C x H x W in [0, 1], two or more; norms are L2. The largest move is sought by gradient ascent from a
    random place in the budget; each image is compared with the next one. Raises GapError for fewer images, and for
    layers that are not there.
    """
    if len(images) < 2:
        raise GapError("layer robustness compares pictures with each other; give two or more")
    extractor = FeatureExtractor(classifier.network, layers, run=classifier)
    with frozen(classifier), torch.random.fork_rng():
        torch.manual_seed(seed)
        found = [_robustness(extractor, layer, images, budget, steps, batch_size, seed) for layer in layers]
    return found


def _robustness(
    extractor: FeatureExtractor, layer: str, images: Tensor, budget: Budget, steps: int, batch_size: int, seed: int
) -> LayerRobustness:
    moved = torch.cat([_max_displacement(extractor, layer, part, budget, steps) for part in images.split(batch_size)])
    with torch.no_grad():
        outputs = torch.cat([extractor(part)[layer].float().flatten(1) for part in images.split(batch_size)])
        apart = (outputs - outputs.roll(1, dims=0)).norm(dim=1)
    if not apart.mean() > 0:
        raise GapError(f"layer {layer} gives the same for every picture; there is nothing to compare")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(images), (BOOTSTRAP_SAMPLES, len(images)), generator=generator)
    moved, apart = moved.cpu(), apart.cpu()
    resampled = moved[drawn].mean(dim=1) / apart[drawn].mean(dim=1)
    if not resampled.isfinite().all():
        raise GapError(f"layer {layer} or its gradient is NaN or infinite for some pictures; it cannot be measured")
    low, high = resampled.quantile(torch.tensor([0.025, 0.975])).tolist()
    return LayerRobustness(layer, (moved.mean() / apart.mean()).item(), low, high)


def _max_displacement(extractor: FeatureExtractor, layer: str, images: Tensor, budget: Budget, steps: int) -> Tensor:
    """The largest L2 distance that steps of steepest ascent found, N values."""
    with torch.no_grad():
        output = extractor(images)[layer].float()
    moved = (images + budget.sample(images)).clamp(0, 1)
    largest = torch.zeros(len(images), device=images.device)
    for step in range(steps + 1):
        moved.requires_grad_(True)
        with torch.enable_grad():
            distance = (extractor(moved)[layer].float() - output).flatten(1).norm(dim=1)
        if not distance.requires_grad:
            raise GapError(f"layer {layer} passes no gradient to the images; name one outside of a checkpoint")
        largest = largest.maximum(distance.detach())
        if step == steps:
            break
        gradient = input_gradient(distance.sum(), moved)
        size = 2.5 * budget.epsilon / steps
        perturbation = budget.project(moved.detach() - images + size * budget.norm.steepest(gradient))
        moved = (images + perturbation).clamp(0, 1)
    return largest


def as_rows(found: Mapping[str, Sequence[LayerRobustness]]) -> list[dict[str, object]]:
    """A row for each classifier and layer, as JSON and tables take them."""
    return [
        {
            "classifier": name,
            "layer": each.layer,
            "robustness": each.value,
            "robustness_interval": [each.low, each.high],
        }
        for name, layers in found.items()
        for each in layers
    ]
