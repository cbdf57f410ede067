"""The robustness of layers: displacements of their outputs by perturbations, relative to distances of images."""

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

# The number of bootstrap samples of the images for an interval.
BOOTSTRAP_SAMPLES = 1000


@dataclass(frozen=True)
class LayerRobustness:
    """R of a layer and its 95% bootstrap interval. A layer with R of 0 is not affected by perturbations."""

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

    Images are N x C x H x W in [0, 1], with N of at least 2; norms are L2. The largest displacement is searched by
    gradient ascent from a random point in the budget. Every image is compared with the next one. Raises GapError for
    fewer images, and for unknown layers.
    """
    if len(images) < 2:
        raise GapError("layer robustness compares pictures with each other; give two or more")
    extractor = FeatureExtractor(classifier.network, layers, run=classifier)
    with frozen(classifier), torch.random.fork_rng():
        torch.manual_seed(seed)
        results = [_robustness(extractor, layer, images, budget, steps, batch_size, seed) for layer in layers]
    return results


def _robustness(
    extractor: FeatureExtractor, layer: str, images: Tensor, budget: Budget, steps: int, batch_size: int, seed: int
) -> LayerRobustness:
    displacements = torch.cat(
        [_max_displacement(extractor, layer, part, budget, steps) for part in images.split(batch_size)]
    )
    with torch.no_grad():
        outputs = torch.cat([extractor(part)[layer].float().flatten(1) for part in images.split(batch_size)])
        distances = (outputs - outputs.roll(1, dims=0)).norm(dim=1)
    if not distances.mean() > 0:
        raise GapError(f"layer {layer} gives the same for every picture; there is nothing to compare")
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randint(len(images), (BOOTSTRAP_SAMPLES, len(images)), generator=generator)
    displacements, distances = displacements.cpu(), distances.cpu()
    resampled = displacements[samples].mean(dim=1) / distances[samples].mean(dim=1)
    if not resampled.isfinite().all():
        raise GapError(f"layer {layer} or its gradient is NaN or infinite for some pictures; it cannot be measured")
    low, high = resampled.quantile(torch.tensor([0.025, 0.975])).tolist()
    return LayerRobustness(layer, (displacements.mean() / distances.mean()).item(), low, high)


def _max_displacement(extractor: FeatureExtractor, layer: str, images: Tensor, budget: Budget, steps: int) -> Tensor:
    """The largest L2 displacement of the layer's output along projected steepest ascent, N values."""
    with torch.no_grad():
        output = extractor(images)[layer].float()
    perturbed = (images + budget.sample(images)).clamp(0, 1)
    largest = torch.zeros(len(images), device=images.device)
    for step in range(steps + 1):
        perturbed.requires_grad_(True)
        with torch.enable_grad():
            distance = (extractor(perturbed)[layer].float() - output).flatten(1).norm(dim=1)
        if not distance.requires_grad:
            raise GapError(f"layer {layer} passes no gradient to the images; name one outside of a checkpoint")
        largest = largest.maximum(distance.detach())
        if step == steps:
            break
        gradient = input_gradient(distance.sum(), perturbed)
        size = 2.5 * budget.epsilon / steps
        perturbation = budget.project(perturbed.detach() - images + size * budget.norm.steepest(gradient))
        perturbed = (images + perturbation).clamp(0, 1)
    return largest


def as_rows(found: Mapping[str, Sequence[LayerRobustness]]) -> list[dict[str, object]]:
    """A row for each classifier and layer, for JSON and tables."""
    return [
        {
            "classifier": name,
            "layer": layer_result.layer,
            "robustness": layer_result.value,
            "robustness_interval": [layer_result.low, layer_result.high],
        }
        for name, layers in found.items()
        for layer_result in layers
    ]
