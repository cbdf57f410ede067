"""Feature visualization: images that activate a class or a channel of a backbone, and inversion of layers."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gap.classifiers.classifier import Classifier
from gap.core.errors import GapError, GapWarning
from gap.imagery.backbone import MultiFeatureExtractor, check_size, prepare_backbone
from gap.imagery.canvas import Canvas, FourierCanvas, PixelCanvas
from gap.imagery.losses import Channel, ContentLoss, Diversity, Logit, Neuron, feature_maps
from gap.imagery.memory import check_memory
from gap.imagery.objectives import Activations, Objective
from gap.imagery.optimize import (
    OptimizationProgress,
    default_budget,
    no_callback,
    normalized_gradient_descent,
    optimize,
    step_length,
)
from gap.imagery.options import Prior
from gap.imagery.transforms import RandomTransform
from gap.models.feature_extractor import LOGITS
from gap.threat import Budget

# The suffix of a channel that selects the neuron at its center.
NEURON_SUFFIX = "@center"
# The standard deviation of the initial noise around gray, in pixels of [0, 1].
INIT_STD = 0.1


@dataclass(frozen=True)
class Feature:
    """A channel of a layer, or a class of the logits. With `neuron`, only the neuron at the channel's center."""

    layer: str
    channel: int
    neuron: bool = False

    def __str__(self) -> str:
        return f"{self.layer}:{self.channel}{NEURON_SUFFIX if self.neuron else ''}"


def parse_features(text: str, backbone: Classifier) -> list[Feature]:
    """The features of a text such as `layer2:0-3,7`. For the layer `logit`, classes may also be given by name.

    Raises GapError for text that cannot be read.
    """
    layer, colon, channels_text = text.removesuffix(NEURON_SUFFIX).rpartition(":")
    neuron = text.endswith(NEURON_SUFFIX)
    if layer == "logit" and not any(letter.isdecimal() for letter in channels_text):
        return [Feature(LOGITS, backbone.find_class(name)) for name in channels_text.split(",")]
    try:
        if not colon or not layer:
            raise ValueError
        channels = [channel for part in channels_text.split(",") for channel in _channel_range(part)]
    except ValueError as error:
        raise GapError(f"cannot read {text!r}; write LAYER:CHANNEL, as layer2:0-15 or logit:3") from error
    if layer == "logit" and neuron:
        raise GapError(f"cannot read {text!r}; classes have no {NEURON_SUFFIX}")
    return [Feature(LOGITS if layer == "logit" else layer, channel, neuron) for channel in channels]


def _channel_range(text: str) -> range:
    first, dash, last = text.partition("-")
    channels = range(int(first), int(last if dash else first) + 1)
    if not channels or channels.start < 0 or len(channels) > 256:
        raise ValueError
    return channels


def feature_name(feature: Feature, backbone: Classifier) -> str:
    """The caption of the drawing of a feature."""
    return f"class {backbone.label(feature.channel)}" if feature.layer == LOGITS else str(feature)


def visualize_features(
    backbone: Classifier,
    features: Sequence[Feature],
    *,
    size: tuple[int, int] | None = None,
    init: Tensor | None = None,
    prior: Prior = "none",
    transforms: nn.Module | None = None,
    budget: Budget | None = None,
    diversity: float = 0.0,
    extra_objective: Objective | None = None,
    steps: int = 128,
    seed: int = 0,
    tell: Callable[[OptimizationProgress], None] = no_callback,
) -> Tensor:
    """An image for each feature, all of one layer: N x C x H x W in [0, 1].

    Args:
        backbone: the network.
        features: features of one layer; several samples of a feature are the same feature several times.
        size: (H, W) of the images; by default the backbone's input size.
        init: the initial image, C x H x W, to which the features are added; by default weak noise.
        prior: "none" or "natural", as in `gap.visualize`.
        transforms: a module that is applied to the images before the backbone; it may change their size. By default
            `RandomTransform()` with the natural prior and none without it.
        budget: without a prior, the largest distance to the initial image; by default a quarter of the largest L2
            distance between two images.
        diversity: the weight of the differences between the images at that layer (Olah et al., 2017).
        extra_objective: an objective that is added.
        steps: evaluations of the objective.
        seed: the seed of all random choices.
        tell: a function that is called with the progress at each step.

    Raises:
        GapError: for unknown layers and channels, for a size that the backbone does not support, and for a lack of
            memory.
    """
    if prior == "natural" and (init is not None or budget is not None):
        raise GapError("the natural prior begins at noise and has no budget; leave out `init` and `budget`")
    channels = torch.tensor([feature.channel for feature in features], device=_device(backbone))
    images = _initial_image(backbone, len(features), size, init, seed)
    extractors = _extractor_for(features, backbone, images)
    check_memory(extractors, images, (images.shape[2], images.shape[3]))
    transforms = transforms or (RandomTransform() if prior == "natural" else nn.Identity())
    with torch.random.fork_rng():
        check_size(extractors.extractors[""], transforms(images[:1]), backbone.name)

    def outputs(images: Tensor) -> Mapping[str, Tensor]:
        return extractors(transforms(images))

    layer, kind = features[0].layer, Neuron if features[0].neuron else Channel
    activation_objective: Objective = Logit(channels) if layer == LOGITS else kind(layer, channels)
    objective = activation_objective
    if diversity:
        objective = objective + diversity * Diversity(layer)
    if extra_objective:
        objective = objective + extra_objective
    with extractors.frozen(), torch.random.fork_rng():
        torch.manual_seed(seed)
        if prior == "natural":
            count, colors, height, width = images.shape
            canvas: Canvas = FourierCanvas(count, colors, (height, width), seed).to(images.device)
            optimize(canvas, objective, outputs, evaluations=steps, optimizer="adam", lr=0.05, tell=tell)
        else:
            budget = budget or default_budget(images)
            canvas = PixelCanvas(images, budget)
            normalized_gradient_descent(
                canvas, objective, outputs, steps=steps, size=step_length(budget, images, steps), tell=tell
            )
    drawings = canvas.image()
    with torch.no_grad(), extractors.frozen():
        _warn_if_dead(activation_objective(Activations(drawings, extractors(drawings))), features)
    return drawings


def draw_objective(
    backbone: Classifier,
    objective: Objective,
    *,
    canvas: Canvas | None = None,
    size: tuple[int, int] | None = None,
    transforms: nn.Module | None = None,
    steps: int = 128,
    seed: int = 0,
    tell: Callable[[OptimizationProgress], None] = no_callback,
) -> Tensor:
    """Images that minimize an objective of the user: N x C x H x W in [0, 1].

    The default canvas is pixels that begin as weak noise of `size`. `transforms` are applied to the images before the
    network. Raises GapError for unknown layers, and where no gradient reaches the canvas.
    """
    canvas = (canvas or PixelCanvas(_initial_image(backbone, 1, size, None, seed))).to(_device(backbone))
    transform = transforms or nn.Identity()
    with torch.no_grad():
        images = canvas()
    extractors = MultiFeatureExtractor({"": prepare_backbone(backbone, images, list(objective.layers))})
    with extractors.frozen(), torch.random.fork_rng():
        torch.manual_seed(seed)
        optimize(
            canvas,
            objective,
            lambda images: extractors(transform(images)),
            evaluations=steps,
            optimizer="adam",
            tell=tell,
        )
    return canvas.image()


def check_features(backbone: Classifier, features: Sequence[Feature], size: tuple[int, int] | None = None) -> None:
    """Raise GapError for unknown layers and channels, and for features that cannot be drawn together."""
    _extractor_for(features, backbone, _initial_image(backbone, 1, size, None, 0))


def invert_features(
    backbone: Classifier,
    picture: Tensor,
    layer: str,
    *,
    steps: int = 128,
    seed: int = 0,
    tell: Callable[[OptimizationProgress], None] = no_callback,
) -> Tensor:
    """An image with the same output of a layer as an image C x H x W in [0, 1], optimized from noise.

    It shows what information the layer has (Mahendran and Vedaldi, 2015). With more robust backbones, it is more
    similar to the original (Engstrom et al., 2019).
    """
    images = _initial_image(backbone, 1, (picture.shape[1], picture.shape[2]), None, seed)
    extractors = MultiFeatureExtractor({"": prepare_backbone(backbone, images, [layer])})
    check_memory(extractors, images, (images.shape[2], images.shape[3]))
    with extractors.frozen():
        with torch.no_grad():
            target = feature_maps(Activations(picture[None], extractors(picture[None])), layer)
        canvas = PixelCanvas(images)
        optimize(canvas, ContentLoss(layer, target), extractors, evaluations=steps, tell=tell)
    return canvas.image()[0]


def _initial_image(
    backbone: Classifier, count: int, size: tuple[int, int] | None, init: Tensor | None, seed: int
) -> Tensor:
    if init is not None:
        return init[None].repeat(count, 1, 1, 1)
    shape = (count, backbone.spec.channels, *(size or backbone.spec.size))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (0.5 + INIT_STD * noise).clamp(0, 1).to(_device(backbone))


def _device(backbone: Classifier) -> torch.device:
    return backbone.device


def _extractor_for(features: Sequence[Feature], backbone: Classifier, images: Tensor) -> MultiFeatureExtractor:
    layer = features[0].layer
    if len({(feature.layer, feature.neuron) for feature in features}) > 1:
        raise GapError("features that are drawn together are of one layer and kind; draw others apart")
    extractors = MultiFeatureExtractor({"": prepare_backbone(backbone, images, [layer])})
    with torch.no_grad(), extractors.frozen():
        _check_channels(extractors(images[:1])[layer], features, backbone)
    return extractors


def _warn_if_dead(values: Tensor, features: Sequence[Feature]) -> None:
    """Warn about features with an activation of exactly 0: without a gradient, their drawings are meaningless."""
    dead = [str(feature) for feature, value in zip(features, values.tolist(), strict=True) if value == 0]
    if dead:
        names = ", ".join(dict.fromkeys(dead))
        message = f"{names} never became active: it is 0 at the initial image; try another `seed`, or the whole channel"
        warnings.warn(message, GapWarning, stacklevel=3)


def _check_channels(output: Tensor, features: Sequence[Feature], backbone: Classifier) -> None:
    highest = max(features, key=lambda feature: feature.channel)
    if highest.channel >= output.shape[1]:
        kind = "classes" if highest.layer == LOGITS else "channels"
        last = output.shape[1] - 1
        raise GapError(f"{highest.layer} of {backbone.name} has the {kind} 0 to {last}, not {highest.channel}")
