"""Feature visualization: pictures that excite a class or a channel of a backbone, or that a layer takes for another."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gap.classifiers.classifier import Classifier
from gap.core.errors import GapError, GapWarning
from gap.imagery.backbone import View, check_size, prepared
from gap.imagery.canvas import Canvas, Fourier, Pixels
from gap.imagery.losses import Channel, Content, Diversity, Logit, Neuron, maps
from gap.imagery.memory import check_memory
from gap.imagery.objectives import Look, Objective
from gap.imagery.optimize import DrawingProgress, descend, ignore, optimise, reach, stride
from gap.imagery.transforms import Shaken
from gap.models.feature_extractor import LOGITS
from gap.threat import Budget

# `none`: steps of one length in a ball, no help from anywhere (Santurkar et al., 2019); `natural`: a Fourier canvas in
# decorrelated colours, shaken between looks (Olah et al., 2017).
Prior = Literal["none", "natural"]
# What is written behind a channel of which the neuron in the middle is meant.
CENTRE = "@centre"
# How far from grey noise may begin, in pixels of [0, 1].
FAINT = 0.1


@dataclass(frozen=True)
class Feature:
    """A channel of a layer, or of the logits a class; of a channel all places, or the neuron in its middle alone."""

    layer: str
    channel: int
    centre: bool = False

    def __str__(self) -> str:
        return f"{self.layer}:{self.channel}{CENTRE if self.centre else ''}"


def visualize(
    backbone: Classifier,
    features: Sequence[Feature],
    *,
    size: tuple[int, int] | None = None,
    start: Tensor | None = None,
    prior: Prior = "none",
    transforms: nn.Module | None = None,
    budget: Budget | None = None,
    diversity: float = 0.0,
    beside: Objective | None = None,
    steps: int = 128,
    seed: int = 0,
    tell: Callable[[DrawingProgress], None] = ignore,
) -> Tensor:
    """A picture for each feature, all of one layer: N x C x H x W in [0, 1].

    `diversity` weighs that they are to be unlike one another at that layer (Olah et al., 2017), where one feature is
    named several times; `beside` is any other objective that is added.

    Each begins at `start` (C x H x W), to which the feature is added, or at faint noise of (H, W), by default the
    backbone's own size. Without a prior it stays within a budget of its beginning, by default a quarter of the largest
    L2 distance between two pictures. What the backbone looks at goes through `transforms` first, images to images of
    any size: with the natural prior `Shaken()` unless others are given, without it none. Raises GapError for a layer or
    a channel that is not there, for a size that the backbone cannot take, and for more than memory holds.
    """
    if prior == "natural" and (start is not None or budget is not None):
        raise GapError("the natural prior begins at noise and goes anywhere; leave out the start and the budget")
    channels = torch.tensor([feature.channel for feature in features], device=_device(backbone))
    images = _beginning(backbone, len(features), size, start, seed)
    view = _view_of(features, backbone, images)
    check_memory(view, images, (images.shape[2], images.shape[3]))
    transforms = transforms or (Shaken() if prior == "natural" else nn.Identity())
    with torch.random.fork_rng():
        check_size(view.taps[""], transforms(images[:1]), backbone.name)

    def outputs(images: Tensor) -> Mapping[str, Tensor]:
        return view(transforms(images))

    layer, kind = features[0].layer, Neuron if features[0].centre else Channel
    excited: Objective = Logit(channels) if layer == LOGITS else kind(layer, channels)
    objective = excited
    if diversity:
        objective = objective + diversity * Diversity(layer)
    if beside:
        objective = objective + beside
    with view.still(), torch.random.fork_rng():
        torch.manual_seed(seed)
        if prior == "natural":
            count, colours, height, width = images.shape
            canvas: Canvas = Fourier(count, colours, (height, width), seed).to(images.device)
            optimise(canvas, objective, outputs, evaluations=steps, method="adam", lr=0.05, tell=tell)
        else:
            within = budget or reach(images)
            canvas = Pixels(images, within)
            descend(canvas, objective, outputs, steps=steps, size=stride(within, images, steps), tell=tell)
    drawn = canvas.drawn()
    with torch.no_grad(), view.still():
        _warn_of_silence(excited(Look(drawn, view(drawn))), features)
    return drawn


def check_features(backbone: Classifier, features: Sequence[Feature], size: tuple[int, int] | None = None) -> None:
    """Raise GapError for a layer or a channel that is not there, and for features that cannot be drawn together."""
    _view_of(features, backbone, _beginning(backbone, 1, size, None, 0))


def invert(
    backbone: Classifier,
    picture: Tensor,
    layer: str,
    *,
    steps: int = 128,
    seed: int = 0,
    tell: Callable[[DrawingProgress], None] = ignore,
) -> Tensor:
    """What a layer keeps of a picture (C x H x W in [0, 1]): another one, from noise, with the same output there
    (Mahendran and Vedaldi, 2015). The more robust the backbone, the more alike the two (Engstrom et al., 2019)."""
    images = _beginning(backbone, 1, (picture.shape[1], picture.shape[2]), None, seed)
    view = View({"": prepared(backbone, images, [layer])})
    check_memory(view, images, (images.shape[2], images.shape[3]))
    with view.still():
        with torch.no_grad():
            target = maps(Look(picture[None], view(picture[None])), layer)
        canvas = Pixels(images)
        optimise(canvas, Content(layer, target), view, evaluations=steps, tell=tell)
    return canvas.drawn()[0]


def _beginning(
    backbone: Classifier, count: int, size: tuple[int, int] | None, start: Tensor | None, seed: int
) -> Tensor:
    if start is not None:
        return start[None].repeat(count, 1, 1, 1)
    shape = (count, backbone.facts.channels, *(size or backbone.facts.size))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (0.5 + FAINT * noise).clamp(0, 1).to(_device(backbone))


def _device(backbone: Classifier) -> torch.device:
    return backbone.device


def _view_of(features: Sequence[Feature], backbone: Classifier, images: Tensor) -> View:
    layer = features[0].layer
    if len({(feature.layer, feature.centre) for feature in features}) > 1:
        raise GapError("features that are drawn together are of one layer and kind; draw others apart")
    view = View({"": prepared(backbone, images, [layer])})
    with torch.no_grad(), view.still():
        _check_channels(view(images[:1])[layer], features, backbone)
    return view


def _warn_of_silence(values: Tensor, features: Sequence[Feature]) -> None:
    """A unit that gives exactly 0 has no gradient that would wake it; what was drawn says nothing of it."""
    silent = [str(feature) for feature, value in zip(features, values.tolist(), strict=True) if value == 0]
    if silent:
        names = ", ".join(dict.fromkeys(silent))
        told = f"nothing excited {names}: silent where the drawing began; try another --seed, or the whole channel"
        warnings.warn(told, GapWarning, stacklevel=3)


def _check_channels(output: Tensor, features: Sequence[Feature], backbone: Classifier) -> None:
    worst = max(features, key=lambda feature: feature.channel)
    if worst.channel >= output.shape[1]:
        kind = "classes" if worst.layer == LOGITS else "channels"
        last = output.shape[1] - 1
        raise GapError(f"{worst.layer} of {backbone.name} has the {kind} 0 to {last}, not {worst.channel}")
