"""Comparison of backbones by their drawings, with the distances of a separate metric network."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from gap.classifiers.classifier import Classifier
from gap.core.errors import GapError
from gap.imagery.backbone import MultiFeatureExtractor, default_content_layers, default_layers, prepare_backbone
from gap.imagery.canvas import fit_size, resize
from gap.imagery.comparison.ablations import StylizationMethod
from gap.imagery.losses import TINY, ContentLoss, GramLoss, feature_maps
from gap.imagery.objectives import Activations, Objective
from gap.imagery.options import SEARCH_WEIGHTS
from gap.imagery.style_transfer import normalize_weights, transfer_style


@dataclass(frozen=True, eq=False)
class StylizationResult:
    """A drawing of a comparison: the indices of its content and style, its method and style weight, and the distances.

    The distances to content and style are relative values of the metric network, as in the losses.
    """

    content: int
    style: int
    method: str
    weight: float
    picture: Tensor
    content_distance: float
    style_distance: float


def run_comparison(
    contents: Sequence[Tensor],
    styles: Sequence[Tensor],
    methods: Sequence[StylizationMethod],
    judge: Classifier,
    *,
    style_weights: Sequence[float] = SEARCH_WEIGHTS,
) -> Iterator[StylizationResult]:
    """Yield the drawings of every content in every style by every method, for each style weight.

    `judge` is the metric network. Raises GapError where it is the backbone of a method.
    """
    for method in methods:
        check_metric_network(judge, method.backbone)
    for (content_index, content_image), (style_index, style_image) in product(enumerate(contents), enumerate(styles)):
        metric = PerceptualMetric(judge, content_image, [style_image])
        for method, weight in product(methods, style_weights):
            options = method.options.model_copy(update={"style_weight": weight})
            picture = transfer_style(content_image, [style_image], method.backbone, options=options).image
            yield StylizationResult(content_index, style_index, method.name, weight, picture, *metric(picture))


def check_metric_network(judge: Classifier, backbone: Classifier) -> None:
    """Raise GapError where the metric network `judge` is the backbone itself."""
    if judge.fingerprint() == backbone.fingerprint():
        raise GapError(f"{judge.name} cannot judge what it draws itself; name another classifier with `metric_network`")


class PerceptualMetric:
    """The distances of an image to a content and to styles, C x H x W each, in the default layers of a network.

    Styles are resized to the size of the content, as in style transfer, because Gram matrices depend on the width of
    strokes in pixels. `shares` are the weights of the styles, by default equal.
    """

    def __init__(
        self, network: Classifier, content: Tensor, styles: Sequence[Tensor], shares: Sequence[float] | None = None
    ) -> None:
        layers = default_layers(network)
        content_layers = default_content_layers(network)
        self.extractors = MultiFeatureExtractor(
            {"": prepare_backbone(network, content[None], list(dict.fromkeys([*layers, *content_layers])))}
        )
        content_activations = self._evaluate(content)
        self.content = _mean_of(
            [ContentLoss(layer, feature_maps(content_activations, layer)) for layer in content_layers]
        )
        style_activations = [
            self._evaluate(resize(style, fit_size(style, max(content.shape[-2:])))) for style in styles
        ]
        first, *others = [
            weight * _mean_of([GramLoss(layer, feature_maps(activations, layer)) for layer in layers])
            for weight, activations in zip(normalize_weights(shares, len(styles)), style_activations, strict=True)
        ]
        self.style: Objective = sum(others, start=first)

    @torch.no_grad()
    def __call__(self, picture: Tensor) -> tuple[float, float]:
        """The distances to the content and to the styles, as means over layers."""
        activations = self._evaluate(picture)
        return self.content(activations).item(), self.style(activations).item()

    @torch.no_grad()
    def _evaluate(self, picture: Tensor) -> Activations:
        with self.extractors.frozen():
            return Activations(picture[None], self.extractors(picture[None]))


def _mean_of(parts: Sequence[Objective]) -> Objective:
    """The mean of objectives."""
    first, *others = parts
    return sum(others, start=first) * (1 / len(parts))


def style_advantage(ours: Sequence[StylizationResult], theirs: Sequence[StylizationResult]) -> float | None:
    """The factor by which the style distance of `ours` is smaller than that of `theirs`, at equal content distance.

    Both are drawings of one content in one style, with several weights. The lowest style distances (Pareto fronts) are
    compared at the content distances that both reach, and the factor is the geometric mean. None where there are no
    such content distances.
    """
    low = max(min(result.content_distance for result in results) for results in (ours, theirs))
    high = min(max(result.content_distance for result in results) for results in (ours, theirs))
    if low > high:
        return None
    content_distances = np.linspace(low, high, 33)
    return float(np.exp(np.mean(_pareto_front(theirs, content_distances) - _pareto_front(ours, content_distances))))


def _pareto_front(results: Sequence[StylizationResult], content_distances: np.ndarray) -> np.ndarray:
    """The logarithms of the lowest style distances at these content distances, interpolated on the Pareto front."""
    best: list[StylizationResult] = []
    for result in sorted(results, key=lambda result: (result.content_distance, result.style_distance)):
        if not best or result.style_distance < best[-1].style_distance:
            best.append(result)
    log_distances = [math.log(max(result.style_distance, TINY)) for result in best]
    return np.interp(content_distances, [result.content_distance for result in best], log_distances)


@torch.no_grad()
def activation_entropy(method: StylizationMethod, picture: Tensor) -> float:
    """The normalized entropy of an image's squared activations, as the mean over the layers of a method.

    It is 1 where all activations of a layer are equal, and 0 where only one is not 0.
    """
    layers = list(method.options.layers or default_layers(method.backbone))
    extractors = MultiFeatureExtractor({"": prepare_backbone(method.backbone, picture[None], layers)})
    with extractors.frozen():
        if method.options.smooth_activations:
            extractors.smooth_activations(picture[None])
        activations = Activations(picture[None], extractors(picture[None]))
    entropies = []
    for layer in layers:
        distribution = feature_maps(activations, layer).flatten().square()
        distribution = distribution / distribution.sum().clamp_min(TINY)
        entropies.append((torch.special.entr(distribution).sum() / math.log(distribution.numel())).item())
    return sum(entropies) / len(entropies)
