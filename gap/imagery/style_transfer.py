"""Stylizing: a picture with the content of one and the style of others (Gatys et al., 2016), on any backbone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from kornia.color import rgb_to_yuv, yuv_to_rgb
from PIL import Image
from torch import Tensor

from gap.classifiers.classifier import Classifier
from gap.core.errors import GapError, unknown_name_error
from gap.imagery.backbone import (
    MultiFeatureExtractor,
    check_size,
    default_content_layers,
    default_layers,
    prepare_backbone,
)
from gap.imagery.canvas import PixelCanvas, fit_size, resize
from gap.imagery.losses import ColorGramLoss, ContentLoss, GramLoss, MomentLoss, SlicedWassersteinLoss, feature_maps
from gap.imagery.memory import check_memory
from gap.imagery.objectives import Activations, Objective, TotalVariation
from gap.imagery.optimize import Method, OptimizationProgress, no_callback, optimize
from gap.imagery.options import COLOR_WEIGHT, STYLE_WEIGHT, TV_WEIGHT, Init, Padding, Pooling, Strides, StyleLossName
from gap.imagery.results import Drawing
from gap.models.feature_extractor import FeatureExtractor, resolve_layer
from gap.report.pictures import to_image
from gap.training.options import Precision
from gap.training.runtime import use_bf16

# Under which name the layers of a content network of its own are seen.
CONTENT_PREFIX = "content "
# The fields of a config that take one of a few words.
CHOICES = {
    "style_loss": StyleLossName,
    "init": Init,
    "method": Method,
    "pooling": Pooling,
    "padding": Padding,
    "strides": Strides,
    "precision": Precision,
}


@dataclass(frozen=True)
class StyleTransferConfig:
    """How to stylize.

    Layers are by name, None for those usual for the backbone. `tv_weight` weighs the total variation. `init` is
    `content` or `noise`. Sizes below that of the content are drawn first, each from the one before, halving down to
    `min_size` pixels of the shorter side. Evaluations are of the network, there and back, shared out evenly among the
    sizes; each size stops early where it gains less than `tolerance`, as `optimize` has it. `smooth_activations` takes
    the peaks out of what layers give, by a softmax.
    """

    layers: Sequence[str] | None = None
    content_layers: Sequence[str] | None = None
    style_weight: float = STYLE_WEIGHT
    color_weight: float = COLOR_WEIGHT
    tv_weight: float = TV_WEIGHT
    style_loss: StyleLossName = "gram"
    init: Init = "content"
    evaluations: int = 300
    method: Method = "lbfgs"
    lr: float | None = None
    tolerance: float = 0.0
    min_size: int = 256
    keep_colors: bool = False
    pooling: Pooling = "max"
    padding: Padding = "zeros"
    strides: Strides = "own"
    precision: Precision = "auto"
    smooth_activations: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises GapError for what is no way of drawing."""
        for name, kind in CHOICES.items():
            if (given := getattr(self, name)) not in get_args(kind):
                raise unknown_name_error(name, given, get_args(kind))
        if self.layers is not None and not self.layers:
            raise GapError("style needs a layer to be read from; name one, or none of them for the usual")
        if self.evaluations < 1 or not (self.lr is None or self.lr > 0):
            raise GapError("drawing needs 1 evaluation or more, and a positive lr")
        if not min(self.style_weight, self.color_weight, self.tv_weight, self.tolerance) >= 0:
            raise GapError("the weights of style, colors and total variation and the tolerance are 0 or more")


@dataclass(frozen=True, eq=False)
class StyleTransferResult(Drawing):
    """What style transfer draws.

    Attributes:
        image: the drawing, C x H x W in [0, 1].
        loss_summary: how the objective ended, part by part.
        evaluations: forward and backward passes of the backbone that it took.
    """

    image: Tensor
    loss_summary: str
    evaluations: int

    def to_pil(self) -> Image.Image:
        return to_image(self.image.cpu())


def transfer_style(
    content: Tensor,
    styles: Sequence[Tensor],
    backbone: Classifier,
    *,
    content_backbone: Classifier | None = None,
    weights: Sequence[float] | None = None,
    masks: Sequence[Tensor] | None = None,
    init: Tensor | None = None,
    config: StyleTransferConfig | None = None,
    tell: Callable[[OptimizationProgress], None] = no_callback,
) -> StyleTransferResult:
    """Draw the content of one picture in the style of others.

    `content` is C x H x W in [0, 1]; `styles` are C x H' x W' of any sizes, weighed by `weights` (by default evenly);
    with `masks`, 1 x H x W in [0, 1], each style is for its own region. Content is read from `content_backbone` where
    that is another network. The drawing begins as `config` says, or at `init`, C x H' x W'. Raises GapError for layers
    that are not there, sizes that a backbone cannot take, masks of another size than the content, and before anything
    is drawn where memory will not suffice.
    """
    config = config or StyleTransferConfig()
    shares = normalize_weights(weights, len(styles))
    if masks is not None and config.style_loss != "gram":
        raise GapError(f"masks go with the style loss gram, not {config.style_loss}")
    if masks is not None and len(masks) != len(styles):
        raise GapError(f"{len(styles)} styles need as many masks, in their order; got {len(masks)}")
    if masks is not None and any(mask.shape[-2:] != content.shape[-2:] for mask in masks):
        raise GapError("each mask must have the size of the content")
    picture: Tensor | None = None
    done, spent, loss_summary, sizes = 0, 0, "", _sizes(content, config.min_size)[-config.evaluations :]
    for size, evaluations in zip(sizes, _split_evaluations(config.evaluations, len(sizes)), strict=True):
        target = resize(content, size)
        begin = _initial_image(target, init, config) if picture is None else resize(picture, size)
        small = [resize(style, fit_size(style, max(size))) for style in styles]
        regions = [resize(mask, size)[None] for mask in masks] if masks else [None] * len(styles)
        extractors, objective = _build_loss(target, small, shares, regions, backbone, content_backbone, config)
        if picture is None:
            check_memory(extractors, begin[None], (content.shape[1], content.shape[2]))
        canvas = PixelCanvas(begin[None])
        with extractors.frozen():
            spent += optimize(
                canvas,
                objective,
                extractors,
                evaluations=evaluations,
                method=config.method,
                lr=config.lr,
                tolerance=config.tolerance,
                tell=_offset_progress(tell, done, config.evaluations),
            )
            loss_summary = _summarize(canvas, objective, extractors)
        picture, done = canvas.image()[0], done + evaluations
    assert picture is not None
    return StyleTransferResult(
        _with_colors_of(content, picture) if config.keep_colors else picture, loss_summary, spent
    )


def synthesize_texture(
    style: Tensor,
    size: tuple[int, int],
    backbone: Classifier,
    *,
    config: StyleTransferConfig | None = None,
    tell: Callable[[OptimizationProgress], None] = no_callback,
) -> StyleTransferResult:
    """The style of a picture alone, C x H x W, drawn from noise at any size (Gatys et al., 2015)."""
    config = config or StyleTransferConfig()
    blank = torch.full((style.shape[0], *size), 0.5, device=style.device)
    return transfer_style(blank, [style], backbone, config=replace(config, init="noise", content_layers=()), tell=tell)


def _build_loss(
    content: Tensor,
    styles: Sequence[Tensor],
    shares: Sequence[float],
    masks: Sequence[Tensor | None],
    backbone: Classifier,
    content_backbone: Classifier | None,
    config: StyleTransferConfig,
) -> tuple[MultiFeatureExtractor, Objective]:
    """What is looked at and what is asked of it, for a content at the size of the picture."""

    def ready(network: Classifier, names: Sequence[str]) -> FeatureExtractor:
        extractor = prepare_backbone(
            network, styles[0][None], names, pooling=config.pooling, padding=config.padding, strides=config.strides
        )
        for picture in (content, *styles):
            check_size(extractor, picture[None], network.name)
        return extractor

    layers = list(default_layers(backbone) if config.layers is None else config.layers)
    kept = config.content_layers
    if kept is None:
        kept = default_content_layers(content_backbone or backbone)
    if content_backbone:
        by_prefix = {"": ready(backbone, layers)} | ({CONTENT_PREFIX: ready(content_backbone, kept)} if kept else {})
        kept = [CONTENT_PREFIX + name for name in kept]
    else:
        # A layer for both may go by two names.
        named = {resolve_layer(backbone.network, name): name for name in layers}
        kept = [named.get(resolve_layer(backbone.network, name), name) for name in kept]
        by_prefix = {"": ready(backbone, [*layers, *(name for name in kept if name not in layers)])}
    extractors = MultiFeatureExtractor(by_prefix, half=use_bf16(config.precision, content.device))
    parts: list[Objective] = []
    with torch.no_grad(), extractors.frozen():
        if config.smooth_activations:
            extractors.smooth_activations(styles[0][None])
        for style, share, mask in zip(styles, shares, masks, strict=True):
            seen = Activations(style[None], extractors(style[None]))
            weight = share * config.style_weight / len(layers)
            if config.color_weight and not config.keep_colors:
                parts.append(share * config.style_weight * config.color_weight * ColorGramLoss(style[None], mask))
            parts += [weight * _distance(config, name, feature_maps(seen, name), mask) for name in layers]
        if kept:
            seen = Activations(content[None], extractors(content[None]))
            parts += [ContentLoss(name, feature_maps(seen, name)) * (1 / len(kept)) for name in kept]
    if config.tv_weight:
        parts.append(config.tv_weight * TotalVariation())
    first, *rest = parts
    return extractors, sum(rest, start=first)


def _distance(config: StyleTransferConfig, layer: str, target: Tensor, mask: Tensor | None) -> Objective:
    match config.style_loss:
        case "gram":
            return GramLoss(layer, target, mask)
        case "moments":
            return MomentLoss(layer, target)
        case _:
            return SlicedWassersteinLoss(layer, target, config.seed)


def normalize_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """The weights of so many styles, by default even, as shares of 1; raises GapError where they do not fit."""
    given = list(weights) if weights is not None else [1.0] * count
    if len(given) != count or min(given) < 0 or not sum(given) > 0:
        raise GapError(f"{count} styles need as many weights, none below 0 and not all 0; got {given}")
    return [weight / sum(given) for weight in given]


def _sizes(content: Tensor, min_size: int) -> list[tuple[int, int]]:
    """From small to large: halves of the content's size whose shorter side has `min_size` pixels or more."""
    height, width = content.shape[-2:]
    count = 1 + max(0, math.floor(math.log2(max(1.0, min(height, width) / min_size))))
    return [(round(height / 2**step), round(width / 2**step)) for step in reversed(range(count))]


def _split_evaluations(evaluations: int, sizes: int) -> list[int]:
    """Evaluations for each size; the last takes what does not divide."""
    each = evaluations // sizes
    return [*([each] * (sizes - 1)), evaluations - each * (sizes - 1)]


def _initial_image(content: Tensor, init: Tensor | None, config: StyleTransferConfig) -> Tensor:
    if init is not None:
        return resize(init, (content.shape[1], content.shape[2]))
    if config.init == "content":
        return content
    generator = torch.Generator().manual_seed(config.seed)
    return torch.rand(content.shape, generator=generator).to(content.device) * 0.5 + 0.25


def _offset_progress(
    tell: Callable[[OptimizationProgress], None], done: int, evaluations: int
) -> Callable[[OptimizationProgress], None]:
    return lambda progress: tell(replace(progress, step=done + progress.step, steps=evaluations))


@torch.no_grad()
def _summarize(canvas: PixelCanvas, objective: Objective, extractors: MultiFeatureExtractor) -> str:
    images = canvas()
    return objective.summary(Activations(images, extractors(images)))


def _with_colors_of(content: Tensor, picture: Tensor) -> Tensor:
    """The picture's light in the content's colors; gray pictures have none."""
    if len(picture) != 3:
        return picture
    light, color = rgb_to_yuv(picture[None])[:, :1], rgb_to_yuv(content[None])[:, 1:]
    return yuv_to_rgb(torch.cat([light, color], dim=1))[0].clamp(0, 1)
