"""Backbones compared by what they draw, read by a network that none of them looked through."""

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
    """One drawing: of which content and style (by number), by which method, with which weight, and how far it is from
    both as the judge sees them (shares, as the objectives give them)."""

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
    weights: Sequence[float] = SEARCH_WEIGHTS,
) -> Iterator[StylizationResult]:
    """Every content in every style by every method, once for each weight, one after the other.

    Raises GapError where the judge is the backbone of a method.
    """
    for method in methods:
        check_metric_network(judge, method.backbone)
    for (content, of), (style, like) in product(enumerate(contents), enumerate(styles)):
        judged = PerceptualMetric(judge, of, [like])
        for method, weight in product(methods, weights):
            options = method.options.model_copy(update={"style_weight": weight})
            picture = transfer_style(of, [like], method.backbone, options=options).image
            yield StylizationResult(content, style, method.name, weight, picture, *judged(picture))


def check_metric_network(judge: Classifier, backbone: Classifier) -> None:
    """Raise GapError where a judge would measure what it drew itself."""
    if judge.fingerprint() == backbone.fingerprint():
        raise GapError(f"{judge.name} cannot judge what it draws itself; name another classifier with `metric_network`")


class PerceptualMetric:
    """How far a picture is from a content and its styles, C x H x W each, in the layers usual for a network.

    Styles are looked at as large as the content, which is how they are drawn: a network's Gram matrices are of strokes
    so many pixels wide. `shares` weigh the styles, by default evenly.
    """

    def __init__(
        self, network: Classifier, content: Tensor, styles: Sequence[Tensor], shares: Sequence[float] | None = None
    ) -> None:
        layers = default_layers(network)
        kept = default_content_layers(network)
        self.extractors = MultiFeatureExtractor(
            {"": prepare_backbone(network, content[None], list(dict.fromkeys([*layers, *kept])))}
        )
        seen = self._evaluate(content)
        self.content = _even([ContentLoss(layer, feature_maps(seen, layer)) for layer in kept])
        looks = [self._evaluate(resize(style, fit_size(style, max(content.shape[-2:])))) for style in styles]
        first, *rest = [
            share * _even([GramLoss(layer, feature_maps(activations, layer)) for layer in layers])
            for share, activations in zip(normalize_weights(shares, len(styles)), looks, strict=True)
        ]
        self.style: Objective = sum(rest, start=first)

    @torch.no_grad()
    def __call__(self, picture: Tensor) -> tuple[float, float]:
        """The distance to the content and to the styles, each the mean over its layers."""
        activations = self._evaluate(picture)
        return self.content(activations).item(), self.style(activations).item()

    @torch.no_grad()
    def _evaluate(self, picture: Tensor) -> Activations:
        with self.extractors.frozen():
            return Activations(picture[None], self.extractors(picture[None]))


def _even(parts: Sequence[Objective]) -> Objective:
    """The mean of objectives."""
    first, *rest = parts
    return sum(rest, start=first) * (1 / len(parts))


def style_advantage(ours: Sequence[StylizationResult], theirs: Sequence[StylizationResult]) -> float | None:
    """How many times smaller the style distance of our drawings is, at equal content distance: above 1 is ahead.

    Both are drawings of one content in one style, over some weights. Compared are the least style distances at each
    content distance that both reach (their Pareto fronts), in the geometric mean. None where they reach none together.
    """
    low = max(min(drawn.content_distance for drawn in each) for each in (ours, theirs))
    high = min(max(drawn.content_distance for drawn in each) for each in (ours, theirs))
    if low > high:
        return None
    places = np.linspace(low, high, 33)
    return float(np.exp(np.mean(_pareto_front(theirs, places) - _pareto_front(ours, places))))


def _pareto_front(drawn: Sequence[StylizationResult], places: np.ndarray) -> np.ndarray:
    """The logarithm of the style distance at these content distances, of the drawings that no other one beats in
    both."""
    best: list[StylizationResult] = []
    for each in sorted(drawn, key=lambda one: (one.content_distance, one.style_distance)):
        if not best or each.style_distance < best[-1].style_distance:
            best.append(each)
    heights = [math.log(max(each.style_distance, TINY)) for each in best]
    return np.interp(places, [each.content_distance for each in best], heights)


@torch.no_grad()
def activation_entropy(method: StylizationMethod, picture: Tensor) -> float:
    """How evenly a picture's activations, as a method sees them, are spread over a layer's channels and places: the
    entropy of their squares as shares, 1 where all are alike and 0 where one is all; the mean over its layers."""
    layers = list(method.options.layers or default_layers(method.backbone))
    extractors = MultiFeatureExtractor({"": prepare_backbone(method.backbone, picture[None], layers)})
    with extractors.frozen():
        if method.options.smooth_activations:
            extractors.smooth_activations(picture[None])
        seen = Activations(picture[None], extractors(picture[None]))
    found = []
    for layer in layers:
        shares = feature_maps(seen, layer).flatten().square()
        shares = shares / shares.sum().clamp_min(TINY)
        found.append((torch.special.entr(shares).sum() / math.log(shares.numel())).item())
    return sum(found) / len(found)
