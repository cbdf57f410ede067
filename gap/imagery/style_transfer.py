"""Stylizing: a picture with the content of one and the style of others (Gatys et al., 2016), on any backbone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from kornia.color import rgb_to_yuv, yuv_to_rgb
from torch import Tensor

from gap.classifiers.classifier import Classifier
from gap.core.errors import GapError, unknown
from gap.imagery.backbone import (
    Padding,
    Pooling,
    Strides,
    View,
    check_size,
    default_content_layers,
    default_layers,
    prepared,
)
from gap.imagery.canvas import Pixels, resized, within
from gap.imagery.losses import Colours, Content, Moments, Sliced, Style, maps
from gap.imagery.memory import check_memory
from gap.imagery.objectives import Look, Objective, Variation
from gap.imagery.optimize import DrawingProgress, Method, ignore, optimise
from gap.models.feature_extractor import Taps, resolve
from gap.training.runtime import Precision, is_half

# Under which name the layers of a content network of its own are seen.
BESIDE = "content "
# The weight of style beside content, both as shares of what they were in the pictures they come from.
STYLE_WEIGHT = 30.0
# That of the mean squared difference of neighbouring pixels: enough to take the grain out that strides leave.
SMOOTHNESS = 10.0
# The weight of the style's colours beside that of its layers together.
COLOUR_WEIGHT = 1.0
Measure = Literal["gram", "moments", "sliced"]
Begin = Literal["content", "noise"]
# The fields of a manner of which each is one of a few words.
CHOICES = {
    "measure": Measure,
    "start": Begin,
    "method": Method,
    "pooling": Pooling,
    "padding": Padding,
    "strides": Strides,
    "precision": Precision,
}


@dataclass(frozen=True)
class Manner:
    """How to stylize.

    Layers are by name, None for those usual for the backbone. `smoothness` weighs the total variation. `start` is
    `content` or `noise`. Sizes below that of the content are drawn first, each from the one before, halving down to
    `least` pixels of the shorter side. Evaluations are of the network, there and back, shared out evenly among the
    sizes; each size stops early where it gains less than `tolerance`, as `optimise` has it. `smoothed` takes the peaks
    out of what layers give, by a softmax.
    """

    layers: Sequence[str] | None = None
    content_layers: Sequence[str] | None = None
    style_weight: float = STYLE_WEIGHT
    colour_weight: float = COLOUR_WEIGHT
    smoothness: float = SMOOTHNESS
    measure: Measure = "gram"
    start: Begin = "content"
    evaluations: int = 300
    method: Method = "lbfgs"
    lr: float | None = None
    tolerance: float = 0.0
    least: int = 256
    keep_colours: bool = False
    pooling: Pooling = "max"
    padding: Padding = "zeros"
    strides: Strides = "own"
    precision: Precision = "auto"
    smoothed: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises GapError for what is no manner of drawing."""
        for name, kind in CHOICES.items():
            if (given := getattr(self, name)) not in get_args(kind):
                raise unknown(name, given, get_args(kind))
        if self.layers is not None and not self.layers:
            raise GapError("style needs a layer to be read from; name one, or none of them for the usual")
        if self.evaluations < 1 or not (self.lr is None or self.lr > 0):
            raise GapError("drawing needs 1 evaluation or more, and a positive lr")
        if not min(self.style_weight, self.colour_weight, self.smoothness, self.tolerance) >= 0:
            raise GapError("the weights of style and colours, the smoothness and the tolerance are 0 or more")


@dataclass(frozen=True)
class Stylized:
    """The picture, C x H x W in [0, 1]; how the objective ended, part by part; and the evaluations it took."""

    picture: Tensor
    told: str
    evaluations: int


def stylize(
    content: Tensor,
    styles: Sequence[Tensor],
    backbone: Classifier,
    *,
    content_backbone: Classifier | None = None,
    weights: Sequence[float] | None = None,
    masks: Sequence[Tensor] | None = None,
    start: Tensor | None = None,
    manner: Manner | None = None,
    tell: Callable[[DrawingProgress], None] = ignore,
) -> Stylized:
    """Draw the content of one picture in the style of others.

    `content` is C x H x W in [0, 1]; `styles` are C x H' x W' of any sizes, weighed by `weights` (by default evenly);
    with `masks`, 1 x H x W in [0, 1], each style is for its own region. Content is read from `content_backbone` where
    that is another network. The drawing begins as `manner` says, or at `start`, C x H' x W'. Raises GapError for layers
    that are not there, sizes that a backbone cannot take, masks of another size than the content, and before anything
    is drawn where memory will not suffice.
    """
    manner = manner or Manner()
    shares = shares_of(weights, len(styles))
    if masks is not None and manner.measure != "gram":
        raise GapError(f"masks go with the style measure gram, not {manner.measure}")
    if masks is not None and len(masks) != len(styles):
        raise GapError(f"{len(styles)} styles need as many masks, in their order; got {len(masks)}")
    if masks is not None and any(mask.shape[-2:] != content.shape[-2:] for mask in masks):
        raise GapError("each mask must have the size of the content")
    picture: Tensor | None = None
    done, spent, told, sizes = 0, 0, "", _sizes(content, manner.least)[-manner.evaluations :]
    for size, evaluations in zip(sizes, _dealt(manner.evaluations, len(sizes)), strict=True):
        target = resized(content, size)
        begin = _beginning(target, start, manner) if picture is None else resized(picture, size)
        small = [resized(style, within(style, max(size))) for style in styles]
        regions = [resized(mask, size)[None] for mask in masks] if masks else [None] * len(styles)
        view, objective = _asked(target, small, shares, regions, backbone, content_backbone, manner)
        if picture is None:
            check_memory(view, begin[None], (content.shape[1], content.shape[2]))
        canvas = Pixels(begin[None])
        with view.still():
            spent += optimise(
                canvas,
                objective,
                view,
                evaluations=evaluations,
                method=manner.method,
                lr=manner.lr,
                tolerance=manner.tolerance,
                tell=_counted(tell, done, manner.evaluations),
            )
            told = _told(canvas, objective, view)
        picture, done = canvas.drawn()[0], done + evaluations
    assert picture is not None
    return Stylized(_with_colours_of(content, picture) if manner.keep_colours else picture, told, spent)


def texture(
    style: Tensor,
    size: tuple[int, int],
    backbone: Classifier,
    *,
    manner: Manner | None = None,
    tell: Callable[[DrawingProgress], None] = ignore,
) -> Stylized:
    """The style of a picture alone, C x H x W, drawn from noise at any size (Gatys et al., 2015)."""
    manner = manner or Manner()
    blank = torch.full((style.shape[0], *size), 0.5, device=style.device)
    return stylize(blank, [style], backbone, manner=replace(manner, start="noise", content_layers=()), tell=tell)


def _asked(
    content: Tensor,
    styles: Sequence[Tensor],
    shares: Sequence[float],
    masks: Sequence[Tensor | None],
    backbone: Classifier,
    content_backbone: Classifier | None,
    manner: Manner,
) -> tuple[View, Objective]:
    """What is looked at and what is asked of it, for a content at the size of the picture."""

    def ready(network: Classifier, names: Sequence[str]) -> Taps:
        taps = prepared(
            network, styles[0][None], names, pooling=manner.pooling, padding=manner.padding, strides=manner.strides
        )
        for picture in (content, *styles):
            check_size(taps, picture[None], network.name)
        return taps

    layers = list(default_layers(backbone) if manner.layers is None else manner.layers)
    kept = manner.content_layers
    if kept is None:
        kept = default_content_layers(content_backbone or backbone)
    if content_backbone:
        taps = {"": ready(backbone, layers)} | ({BESIDE: ready(content_backbone, kept)} if kept else {})
        kept = [BESIDE + name for name in kept]
    else:
        # A layer for both may go by two names.
        named = {resolve(backbone.network, name): name for name in layers}
        kept = [named.get(resolve(backbone.network, name), name) for name in kept]
        taps = {"": ready(backbone, [*layers, *(name for name in kept if name not in layers)])}
    view = View(taps, half=is_half(manner.precision, content.device))
    parts: list[Objective] = []
    with torch.no_grad(), view.still():
        if manner.smoothed:
            view.smooth(styles[0][None])
        for style, share, mask in zip(styles, shares, masks, strict=True):
            seen = Look(style[None], view(style[None]))
            weight = share * manner.style_weight / len(layers)
            if manner.colour_weight and not manner.keep_colours:
                parts.append(share * manner.style_weight * manner.colour_weight * Colours(style[None], mask))
            parts += [weight * _distance(manner, name, maps(seen, name), mask) for name in layers]
        if kept:
            seen = Look(content[None], view(content[None]))
            parts += [Content(name, maps(seen, name)) * (1 / len(kept)) for name in kept]
    if manner.smoothness:
        parts.append(manner.smoothness * Variation())
    first, *rest = parts
    return view, sum(rest, start=first)


def _distance(manner: Manner, layer: str, target: Tensor, mask: Tensor | None) -> Objective:
    match manner.measure:
        case "gram":
            return Style(layer, target, mask)
        case "moments":
            return Moments(layer, target)
        case _:
            return Sliced(layer, target, manner.seed)


def shares_of(weights: Sequence[float] | None, count: int) -> list[float]:
    """The weights of so many styles, by default even, as shares of 1; raises GapError where they do not fit."""
    given = list(weights) if weights is not None else [1.0] * count
    if len(given) != count or min(given) < 0 or not sum(given) > 0:
        raise GapError(f"{count} styles need as many weights, none below 0 and not all 0; got {given}")
    return [weight / sum(given) for weight in given]


def _sizes(content: Tensor, least: int) -> list[tuple[int, int]]:
    """From small to large: halves of the content's size whose shorter side has `least` pixels or more."""
    height, width = content.shape[-2:]
    count = 1 + max(0, math.floor(math.log2(max(1.0, min(height, width) / least))))
    return [(round(height / 2**step), round(width / 2**step)) for step in reversed(range(count))]


def _dealt(evaluations: int, sizes: int) -> list[int]:
    """Evaluations for each size; the last takes what does not divide."""
    each = evaluations // sizes
    return [*([each] * (sizes - 1)), evaluations - each * (sizes - 1)]


def _beginning(content: Tensor, start: Tensor | None, manner: Manner) -> Tensor:
    if start is not None:
        return resized(start, (content.shape[1], content.shape[2]))
    if manner.start == "content":
        return content
    generator = torch.Generator().manual_seed(manner.seed)
    return torch.rand(content.shape, generator=generator).to(content.device) * 0.5 + 0.25


def _counted(tell: Callable[[DrawingProgress], None], done: int, evaluations: int) -> Callable[[DrawingProgress], None]:
    return lambda progress: tell(replace(progress, step=done + progress.step, steps=evaluations))


@torch.no_grad()
def _told(canvas: Pixels, objective: Objective, view: View) -> str:
    images = canvas()
    return objective.told(Look(images, view(images)))


def _with_colours_of(content: Tensor, picture: Tensor) -> Tensor:
    """The picture's light in the content's colours; grey pictures have none."""
    if len(picture) != 3:
        return picture
    light, colour = rgb_to_yuv(picture[None])[:, :1], rgb_to_yuv(content[None])[:, 1:]
    return yuv_to_rgb(torch.cat([light, colour], dim=1))[0].clamp(0, 1)
