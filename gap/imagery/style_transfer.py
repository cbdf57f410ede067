"""Style transfer: the content of an image in the style of others (Gatys et al., 2016), with any backbone."""

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
from gap.imagery.losses import MASKED_STYLE_LOSSES, STYLE_LOSSES, ColorGramLoss, ContentLoss, feature_maps
from gap.imagery.memory import check_memory
from gap.imagery.objectives import Activations, Objective, TotalVariation
from gap.imagery.optimize import OptimizationProgress, no_callback, optimize
from gap.imagery.options import Init, StyleOptions, StyleTransferOptions
from gap.imagery.results import Drawing
from gap.models.feature_extractor import FeatureExtractor, resolve_layer
from gap.report.pictures import to_image
from gap.training.runtime import use_bf16

# The prefix of the names of layers of a separate content network.
CONTENT_PREFIX = "content "


@dataclass(frozen=True, eq=False)
class StyleTransferResult(Drawing):
    """The result of style transfer.

    Attributes:
        image: the drawing, C x H x W in [0, 1].
        loss_summary: the final values of the objective and of its parts.
        evaluations: the number of forward and backward passes of the backbone.
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
    """Draw the content of an image in the style of others.

    Args:
        content: C x H x W in [0, 1].
        styles: images C x H' x W' of any sizes.
        backbone: the network whose layers are compared.
        content_backbone: another network for the comparison of the content.
        weights: a weight for each style; equal by default.
        masks: the region of each style, 1 x H x W in [0, 1].
        init: the initial image: the content, noise, or an image C x H' x W'.
        options: the options of style transfer.
        tell: a function that is called with the progress at each evaluation.

    Raises:
        GapError: for unknown layers, for sizes that a backbone does not support, for masks with another size than the
            content, and, before the first evaluation, for a lack of memory.
    """
    options = options or StyleTransferOptions()
    style_weights = normalize_weights(weights, len(styles))
    if masks is not None and options.style_loss not in MASKED_STYLE_LOSSES:
        raise GapError(f"masks go with `style_loss` {' or '.join(MASKED_STYLE_LOSSES)}, not {options.style_loss}")
    if masks is not None and len(masks) != len(styles):
        raise GapError(f"{len(styles)} styles need as many masks, in their order; got {len(masks)}")
    if masks is not None and any(mask.shape[-2:] != content.shape[-2:] for mask in masks):
        raise GapError("each mask must have the size of the content")
    drawing: Tensor | None = None
    planned_evaluations, total_evaluations, loss_summary, sizes = (
        0,
        0,
        "",
        _sizes(content, options.min_size)[-options.evaluations :],
    )
    for size, evaluations in zip(sizes, _split_evaluations(options.evaluations, len(sizes)), strict=True):
        target = resize(content, size)
        initial = _initial_image(target, init, options.seed) if drawing is None else resize(drawing, size)
        resized_styles = [resize(style, fit_size(style, max(size))) for style in styles]
        regions = [resize(mask, size)[None] for mask in masks] if masks else [None] * len(styles)
        extractors, objective = _build_loss(
            target, resized_styles, style_weights, regions, backbone, content_backbone, options
        )
        if drawing is None:
            check_memory(extractors, initial[None], (content.shape[1], content.shape[2]))
        canvas = PixelCanvas(initial[None])
        with extractors.frozen():
            total_evaluations += optimize(
                canvas,
                objective,
                extractors,
                evaluations=evaluations,
                optimizer=options.optimizer,
                lr=options.lr,
                tolerance=options.tolerance,
                tell=_offset_progress(tell, planned_evaluations, options.evaluations),
            )
            loss_summary = _summarize(canvas, objective, extractors)
        drawing, planned_evaluations = canvas.image()[0], planned_evaluations + evaluations
    assert drawing is not None
    return StyleTransferResult(
        _transfer_colors(content, drawing) if options.keep_colors else drawing, loss_summary, total_evaluations
    )


def synthesize_texture(
    style: Tensor,
    size: tuple[int, int],
    backbone: Classifier,
    *,
    options: StyleOptions | None = None,
    tell: Callable[[OptimizationProgress], None] = no_callback,
) -> StyleTransferResult:
    """Draw a texture in the style of an image C x H x W, from noise, at any size (Gatys et al., 2015)."""
    style_options = (options or StyleOptions()).to_dict()
    blank = torch.full((style.shape[0], *size), 0.5, device=style.device)
    transfer_options = StyleTransferOptions.read(style_options, {"content_layers": []})
    return transfer_style(blank, [style], backbone, init="noise", options=transfer_options, tell=tell)


def _build_loss(
    content: Tensor,
    styles: Sequence[Tensor],
    style_weights: Sequence[float],
    masks: Sequence[Tensor | None],
    backbone: Classifier,
    content_backbone: Classifier | None,
    options: StyleTransferOptions,
) -> tuple[MultiFeatureExtractor, Objective]:
    """The extractors and the objective, for a content in the size of the drawing."""

    def prepare(network: Classifier, names: Sequence[str]) -> FeatureExtractor:
        extractor = prepare_backbone(
            network, styles[0][None], names, pooling=options.pooling, padding=options.padding, strides=options.strides
        )
        for image in (content, *styles):
            check_size(extractor, image[None], network.name)
        return extractor

    layers = list(default_layers(backbone) if options.layers is None else options.layers)
    content_layers = options.content_layers
    if content_layers is None:
        content_layers = default_content_layers(content_backbone or backbone)
    if content_backbone:
        by_prefix = {"": prepare(backbone, layers)} | (
            {CONTENT_PREFIX: prepare(content_backbone, content_layers)} if content_layers else {}
        )
        content_layers = [CONTENT_PREFIX + name for name in content_layers]
    else:
        # Style and content may use the same layer by two names.
        name_by_path = {resolve_layer(backbone.network, name): name for name in layers}
        content_layers = [name_by_path.get(resolve_layer(backbone.network, name), name) for name in content_layers]
        by_prefix = {"": prepare(backbone, [*layers, *(name for name in content_layers if name not in layers)])}
    extractors = MultiFeatureExtractor(by_prefix, half=use_bf16(options.precision, content.device))
    style_loss = STYLE_LOSSES[options.style_loss]
    parts: list[Objective] = []
    with torch.no_grad(), extractors.frozen():
        if options.smooth_activations:
            extractors.smooth_activations(styles[0][None])
        for style, relative_weight, mask in zip(styles, style_weights, masks, strict=True):
            activations = Activations(style[None], extractors(style[None]))
            weight = relative_weight * options.style_weight / len(layers)
            if options.color_weight and not options.keep_colors:
                parts.append(
                    relative_weight * options.style_weight * options.color_weight * ColorGramLoss(style[None], mask)
                )
            parts += [weight * style_loss(name, feature_maps(activations, name), mask, options.seed) for name in layers]
        if content_layers:
            activations = Activations(content[None], extractors(content[None]))
            parts += [
                ContentLoss(name, feature_maps(activations, name)) * (1 / len(content_layers))
                for name in content_layers
            ]
    if options.tv_weight:
        parts.append(options.tv_weight * TotalVariation())
    first, *others = parts
    return extractors, sum(others, start=first)


def normalize_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """The weights of `count` styles, by default equal, scaled to a sum of 1; raises GapError for invalid weights."""
    values = list(weights) if weights is not None else [1.0] * count
    if len(values) != count or min(values) < 0 or not sum(values) > 0:
        raise GapError(f"{count} styles need as many weights, none below 0 and not all 0; got {values}")
    return [weight / sum(values) for weight in values]


def _sizes(content: Tensor, min_size: int) -> list[tuple[int, int]]:
    """Sizes in increasing order: the content's size and its halves whose shorter side is at least `min_size`."""
    height, width = content.shape[-2:]
    count = 1 + max(0, math.floor(math.log2(max(1.0, min(height, width) / min_size))))
    return [(round(height / 2**step), round(width / 2**step)) for step in reversed(range(count))]


def _split_evaluations(evaluations: int, sizes: int) -> list[int]:
    """The number of evaluations of each size; the last also gets the remainder."""
    per_size = evaluations // sizes
    return [*([per_size] * (sizes - 1)), evaluations - per_size * (sizes - 1)]


def _initial_image(content: Tensor, init: Tensor | Init, seed: int) -> Tensor:
    if isinstance(init, Tensor):
        return resize(init, (content.shape[1], content.shape[2]))
    if init == "content":
        return content
    noise = torch.rand(content.shape, generator=torch.Generator().manual_seed(seed))
    return noise.to(content.device) * 0.5 + 0.25


def _offset_progress(
    callback: Callable[[OptimizationProgress], None], offset: int, evaluations: int
) -> Callable[[OptimizationProgress], None]:
    return lambda progress: callback(replace(progress, step=offset + progress.step, steps=evaluations))


@torch.no_grad()
def _summarize(canvas: PixelCanvas, objective: Objective, extractors: MultiFeatureExtractor) -> str:
    images = canvas()
    return objective.summary(Activations(images, extractors(images)))


def _transfer_colors(content: Tensor, drawing: Tensor) -> Tensor:
    """The luminance of the drawing with the colors of the content; gray drawings are unchanged."""
    if len(drawing) != 3:
        return drawing
    luminance, chrominance = rgb_to_yuv(drawing[None])[:, :1], rgb_to_yuv(content[None])[:, 1:]
    return yuv_to_rgb(torch.cat([luminance, chrominance], dim=1))[0].clamp(0, 1)
