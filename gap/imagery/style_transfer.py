"""Stylizing: a picture with the content of one and the style of others (Gatys et al., 2016), on any backbone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from kornia.color import rgb_to_yuv, yuv_to_rgb
from PIL import Image
from torch import Tensor

from gap.classifiers.classifier import Classifier
from gap.core.errors import GapError
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
from gap.imagery.optimize import OptimizationProgress, no_callback, optimize
from gap.imagery.options import Init, StyleOptions, StyleTransferOptions
from gap.imagery.results import Drawing
from gap.models.feature_extractor import FeatureExtractor, resolve_layer
from gap.report.pictures import to_image
from gap.training.runtime import use_bf16

# Under which name the layers of a content network of its own are seen.
CONTENT_PREFIX = "content "


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
    init: Tensor | Init = "content",
    options: StyleTransferOptions | None = None,
    tell: Callable[[OptimizationProgress], None] = no_callback,
) -> StyleTransferResult:
    """Draw the content of one picture in the style of others.

    `content` is C x H x W in [0, 1]; `styles` are C x H' x W' of any sizes, weighed by `weights` (by default evenly);
    with `masks`, 1 x H x W in [0, 1], each style is for its own region. Content is read from `content_backbone` where
    that is another network. The drawing begins at `init`: the content, noise, or an image C x H' x W'. Raises GapError
    for layers that are not there, sizes that a backbone cannot take, masks of another size than the content, and before
    anything is drawn where memory will not suffice.
    """
    options = options or StyleTransferOptions()
    shares = normalize_weights(weights, len(styles))
    if masks is not None and options.style_loss != "gram":
        raise GapError(f"masks go with the style loss gram, not {options.style_loss}")
    if masks is not None and len(masks) != len(styles):
        raise GapError(f"{len(styles)} styles need as many masks, in their order; got {len(masks)}")
    if masks is not None and any(mask.shape[-2:] != content.shape[-2:] for mask in masks):
        raise GapError("each mask must have the size of the content")
    picture: Tensor | None = None
    done, spent, loss_summary, sizes = 0, 0, "", _sizes(content, options.min_size)[-options.evaluations :]
    for size, evaluations in zip(sizes, _split_evaluations(options.evaluations, len(sizes)), strict=True):
        target = resize(content, size)
        begin = _initial_image(target, init, options.seed) if picture is None else resize(picture, size)
        small = [resize(style, fit_size(style, max(size))) for style in styles]
        regions = [resize(mask, size)[None] for mask in masks] if masks else [None] * len(styles)
        extractors, objective = _build_loss(target, small, shares, regions, backbone, content_backbone, options)
        if picture is None:
            check_memory(extractors, begin[None], (content.shape[1], content.shape[2]))
        canvas = PixelCanvas(begin[None])
        with extractors.frozen():
            spent += optimize(
                canvas,
                objective,
                extractors,
                evaluations=evaluations,
                optimizer=options.optimizer,
                lr=options.lr,
                tolerance=options.tolerance,
                tell=_offset_progress(tell, done, options.evaluations),
            )
            loss_summary = _summarize(canvas, objective, extractors)
        picture, done = canvas.image()[0], done + evaluations
    assert picture is not None
    return StyleTransferResult(
        _with_colors_of(content, picture) if options.keep_colors else picture, loss_summary, spent
    )


def synthesize_texture(
    style: Tensor,
    size: tuple[int, int],
    backbone: Classifier,
    *,
    options: StyleOptions | None = None,
    tell: Callable[[OptimizationProgress], None] = no_callback,
) -> StyleTransferResult:
    """The style of a picture alone, C x H x W, drawn from noise at any size (Gatys et al., 2015)."""
    given = (options or StyleOptions()).to_dict()
    blank = torch.full((style.shape[0], *size), 0.5, device=style.device)
    chosen = StyleTransferOptions.read(given, {"content_layers": []})
    return transfer_style(blank, [style], backbone, init="noise", options=chosen, tell=tell)


def _build_loss(
    content: Tensor,
    styles: Sequence[Tensor],
    shares: Sequence[float],
    masks: Sequence[Tensor | None],
    backbone: Classifier,
    content_backbone: Classifier | None,
    options: StyleTransferOptions,
) -> tuple[MultiFeatureExtractor, Objective]:
    """What is looked at and what is asked of it, for a content at the size of the picture."""

    def ready(network: Classifier, names: Sequence[str]) -> FeatureExtractor:
        extractor = prepare_backbone(
            network, styles[0][None], names, pooling=options.pooling, padding=options.padding, strides=options.strides
        )
        for picture in (content, *styles):
            check_size(extractor, picture[None], network.name)
        return extractor

    layers = list(default_layers(backbone) if options.layers is None else options.layers)
    kept = options.content_layers
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
    extractors = MultiFeatureExtractor(by_prefix, half=use_bf16(options.precision, content.device))
    parts: list[Objective] = []
    with torch.no_grad(), extractors.frozen():
        if options.smooth_activations:
            extractors.smooth_activations(styles[0][None])
        for style, share, mask in zip(styles, shares, masks, strict=True):
            seen = Activations(style[None], extractors(style[None]))
            weight = share * options.style_weight / len(layers)
            if options.color_weight and not options.keep_colors:
                parts.append(share * options.style_weight * options.color_weight * ColorGramLoss(style[None], mask))
            parts += [weight * _distance(options, name, feature_maps(seen, name), mask) for name in layers]
        if kept:
            seen = Activations(content[None], extractors(content[None]))
            parts += [ContentLoss(name, feature_maps(seen, name)) * (1 / len(kept)) for name in kept]
    if options.tv_weight:
        parts.append(options.tv_weight * TotalVariation())
    first, *rest = parts
    return extractors, sum(rest, start=first)


def _distance(options: StyleTransferOptions, layer: str, target: Tensor, mask: Tensor | None) -> Objective:
    match options.style_loss:
        case "gram":
            return GramLoss(layer, target, mask)
        case "moments":
            return MomentLoss(layer, target)
        case _:
            return SlicedWassersteinLoss(layer, target, options.seed)


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


def _initial_image(content: Tensor, init: Tensor | Init, seed: int) -> Tensor:
    if isinstance(init, Tensor):
        return resize(init, (content.shape[1], content.shape[2]))
    if init == "content":
        return content
    noise = torch.rand(content.shape, generator=torch.Generator().manual_seed(seed))
    return noise.to(content.device) * 0.5 + 0.25


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
