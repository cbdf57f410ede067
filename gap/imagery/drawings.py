"""Drawings from whatever the user holds: paths, PIL images, arrays or tensors, and any network as the backbone."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, cast, get_args

import torch
from PIL import Image
from torch import Tensor, nn

from gap.classifiers.adapters import ClassifierLike, as_classifier
from gap.classifiers.classifier import Classifier
from gap.classifiers.task import find_device
from gap.core.errors import GapError, GapWarning
from gap.core.network import check_images
from gap.core.progress import StepBar
from gap.data.images import ImageLike, as_image
from gap.imagery.backbone import prepare_backbone
from gap.imagery.canvas import Canvas, fit_size, resize
from gap.imagery.feature_visualization import (
    Feature,
    check_features,
    draw_objective,
    feature_name,
    invert_features,
    parse_features,
    visualize_features,
)
from gap.imagery.objectives import Objective
from gap.imagery.optimize import OptimizationProgress, no_callback
from gap.imagery.options import (
    BACKBONE,
    Init,
    Prior,
    StyleOptions,
    StyleTransferOptions,
    StylizeOptions,
    TextureOptions,
)
from gap.imagery.results import Drawing
from gap.imagery.style_transfer import StyleTransferResult, synthesize_texture, transfer_style
from gap.imagery.traversal import Traversal, traverse_images
from gap.report.image_grid import CaptionedImage, image_grid
from gap.report.pictures import to_image
from gap.threat import Budget, as_budget

# By what share the proportions of a mask may differ from those of the content: sizes are whole numbers.
MASK_TOLERANCE = 0.02

Callback = Callable[[OptimizationProgress], None]


@dataclass(frozen=True, eq=False)
class FeatureSheet(Drawing):
    """What `visualize` draws: images, each C x H x W in [0, 1], and what each of them shows."""

    images: Sequence[Tensor]
    captions: Sequence[str]

    def captioned(self) -> list[CaptionedImage]:
        """The drawings as 8-bit images, each with its caption."""
        pairs = zip(self.images, self.captions, strict=True)
        return [CaptionedImage(to_image(image.cpu()), caption) for image, caption in pairs]

    def to_pil(self) -> Image.Image:
        return image_grid(self.captioned())


def stylize(
    content: ImageLike,
    styles: ImageLike | Sequence[ImageLike],
    *,
    backbone: ClassifierLike = BACKBONE,
    content_backbone: ClassifierLike | None = None,
    weights: Sequence[float] | None = None,
    masks: Sequence[ImageLike] | None = None,
    init: ImageLike | Init = "content",
    size: int | None = StylizeOptions.model_fields["size"].default,
    device: torch.device | str | None = None,
    progress: bool = True,
    callback: Callback = no_callback,
    **options: Any,
) -> StyleTransferResult:
    """Draw the content of one image in the style of others.

    Args:
        content: a path, a PIL image, an array or a tensor C x H x W in [0, 1].
        styles: one such image or several, of any sizes.
        backbone: the network whose layers are compared: a name, a folder, a `gap.Classifier` or any `nn.Module`.
            Hardened networks draw better.
        content_backbone: another network to compare the content by.
        weights: one for each style; equal by default.
        masks: gray images, one for each style: white where that style goes.
        init: where the drawing begins: "content", "noise", or an image.
        size: pixels of the longer side of the drawing; None keeps the size of the content.
        device: what torch calls it; None takes the one that the backbone is on.
        progress: whether a progress bar is shown.
        callback: is called with the progress at each evaluation.
        **options: more options of `gap stylize` by name: style_weight, layers, evaluations, keep_colors, seed...

    Returns:
        The drawing: `image` (C x H x W in [0, 1]), `to_pil`, `save`; it shows itself in a notebook.

    Raises:
        GapError: for layers that are not there, sizes that a backbone cannot take, and more than memory holds.

    References:
        Gatys et al., 2016.
    """
    chosen = StyleTransferOptions.read(options)
    network, device = _backbone(backbone, device)
    channels = network.spec.channels
    other = None if content_backbone is None else _backbone(content_backbone, device)[0]
    if other and other.spec.channels != channels:
        raise GapError(f"{network.name} and {other.name} differ in channels; take two that look at the same pictures")
    image = sized_image(content, channels, size).to(device)
    listed = styles if isinstance(styles, list | tuple) else [cast(ImageLike, styles)]
    paintings = [sized_image(style, channels).to(device) for style in listed]
    start = init if isinstance(init, str) and init in get_args(Init) else sized_image(init, channels).to(device)
    with _progress(progress, callback) as shown:
        return transfer_style(
            image,
            paintings,
            network,
            content_backbone=other,
            weights=weights,
            masks=None if masks is None else [_sized_mask(mask, image) for mask in masks],
            init=cast(Tensor | Init, start),
            options=chosen,
            tell=shown,
        )


def texture(
    style: ImageLike,
    size: tuple[int, int] | int = TextureOptions.model_fields["size"].default,
    *,
    backbone: ClassifierLike = BACKBONE,
    device: torch.device | str | None = None,
    progress: bool = True,
    callback: Callback = no_callback,
    **options: Any,
) -> StyleTransferResult:
    """Draw the style of an image alone, from noise, at any size.

    Args:
        style: a path, a PIL image, an array or a tensor C x H x W in [0, 1].
        size: (H, W) of the drawing, or the side of a square.
        backbone, device, progress, callback, **options: as for `stylize`.

    References:
        Gatys et al., 2015.
    """
    chosen = StyleOptions.read(options)
    network, device = _backbone(backbone, device)
    sides = (size, size) if isinstance(size, int) else size
    painting = sized_image(style, network.spec.channels).to(device)
    with _progress(progress, callback) as shown:
        return synthesize_texture(painting, sides, network, options=chosen, tell=shown)


def visualize(
    model: ClassifierLike,
    features: str | Feature | Objective | Sequence[str | Feature | Sequence[Feature]],
    *,
    size: tuple[int, int] | int | None = None,
    init: ImageLike | None = None,
    prior: Prior = "none",
    samples: int = 1,
    diversity: float = 0.0,
    canvas: Canvas | None = None,
    transforms: nn.Module | None = None,
    budget: Budget | str | None = None,
    extra_objective: Objective | None = None,
    steps: int = 128,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    callback: Callback = no_callback,
) -> FeatureSheet:
    """Draw what classes, channels or neurons of a network respond to.

    Args:
        model: a name, a folder, a `gap.Classifier` or any `nn.Module`.
        features: such as "logit:3", "logit:cat", "layer2:0-15", "layer3:4@center", `gap.Feature("layer2", 3)`, or a
            list of these, in which a list of features of one layer is drawn together; or an objective of one's own
            from `gap.imagery`, which is drawn on `canvas`.
        size: (H, W) of the drawings, or the side of a square; by default the network's own.
        init: an image that the features are added to.
        prior: "none" takes steps inside a ball, which suits hardened networks; "natural" draws by frequencies, with
            random transforms, which standard networks need.
        samples: drawings of each feature, each from other noise.
        diversity: how much drawings of a group are to differ from each other at that layer (Olah et al., 2017).
        canvas: what is optimized where an objective is given; by default pixels that begin as faint noise.
        transforms: what images go through before the network, images to images of any size.
        budget: how far a drawing may be from where it begins, without a prior.
        extra_objective: an objective that is added to each feature.
        steps: evaluations of each drawing.
        seed: of every random choice.
        device: what torch calls it; None takes the one that the model is on.
        progress: whether a progress bar is shown.
        callback: is called with the progress at each step.

    Returns:
        The drawings: `images`, `captions`, `to_pil`, `save`; they show themselves in a notebook.

    Raises:
        GapError: for a layer or a channel that is not there, for a size that the network cannot take.

    References:
        Santurkar et al., 2019 (without a prior); Olah et al., 2017 (natural).
    """
    network, device = _backbone(model, device)
    sides = (size, size) if isinstance(size, int) else size
    with _progress(progress, callback) as shown:
        if isinstance(features, Objective):
            images = draw_objective(
                network, features, canvas=canvas, size=sides, transforms=transforms, steps=steps, seed=seed, tell=shown
            )
            return FeatureSheet(list(images), [str(features)] * len(images))
        if canvas is not None:
            raise GapError("a canvas goes with an objective; leave it out, or give an objective in place of features")
        groups = group_features(network, features, samples)
        if diversity and any(len(set(group)) == len(group) for group in groups):
            raise GapError("`diversity` is among several drawings of one feature; ask for more `samples`")
        for group in groups:
            check_features(network, group, sides)
        begin = None if init is None else sized_image(init, network.spec.channels).to(device)
        drawn: list[Tensor] = []
        for group in groups:
            drawn += visualize_features(
                network,
                group,
                size=sides,
                init=begin,
                prior=prior,
                transforms=transforms,
                budget=None if budget is None else as_budget(budget),
                diversity=diversity,
                extra_objective=extra_objective,
                steps=steps,
                seed=seed,
                tell=shown,
            )
    return FeatureSheet(drawn, [feature_name(feature, network) for group in groups for feature in group])


def group_features(
    network: Classifier, features: str | Feature | Sequence[str | Feature | Sequence[Feature]], samples: int = 1
) -> list[list[Feature]]:
    """What is drawn together: the features of one text or list, or the samples of one feature.

    Raises GapError for text that cannot be read.
    """
    listed = [features] if isinstance(features, str | Feature) else features
    groups: list[list[Feature]] = []
    for each in listed:
        if isinstance(each, str):
            groups.append(parse_features(each, network))
        else:
            groups.append([each] if isinstance(each, Feature) else list(each))
    return groups if samples == 1 else [[feature] * samples for group in groups for feature in group]


def invert(
    model: ClassifierLike,
    image: ImageLike,
    layers: str | Sequence[str],
    *,
    size: int | None = None,
    steps: int = 128,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    callback: Callback = no_callback,
) -> FeatureSheet:
    """Reconstruct an image from what single layers of a network give for it.

    Args:
        model: a name, a folder, a `gap.Classifier` or any `nn.Module`.
        image: a path, a PIL image, an array or a tensor C x H x W in [0, 1].
        layers: the name of a layer, or several.
        size: pixels of the longer side of the reconstructions; by default the longer side that the network takes.
        steps: evaluations of each reconstruction.
        seed: of the noise that reconstructions begin at.
        device, progress, callback: as for `visualize`.

    Returns:
        One drawing for each layer: `images`, `captions`, `to_pil`, `save`.

    References:
        Mahendran and Vedaldi, 2015; Engstrom et al., 2019 (robust networks).
    """
    network, device = _backbone(model, device)
    picture = sized_image(image, network.spec.channels, size or max(network.spec.size)).to(device)
    names = [layers] if isinstance(layers, str) else list(layers)
    for name in names:
        prepare_backbone(network, picture[None], [name])
    with _progress(progress, callback) as shown:
        drawn = [invert_features(network, picture, name, steps=steps, seed=seed, tell=shown) for name in names]
    return FeatureSheet(drawn, names)


def traverse(
    model: ClassifierLike,
    images: Tensor | ImageLike | Sequence[ImageLike],
    target: int | str | Sequence[int] | Tensor,
    *,
    budget: Budget | str | None = None,
    steps: int = 60,
    device: torch.device | str | None = None,
    progress: bool = True,
    callback: Callback = no_callback,
) -> Traversal:
    """Move images towards a class, as the gradient of its logit leads.

    Args:
        model: a name, a folder, a `gap.Classifier` or any `nn.Module`; hardened ones show what the class looks like.
        images: tensors N x C x H x W in [0, 1], or one image or several: paths, PIL images, arrays, tensors C x H x W.
        target: the class, by number or by name, or one for each image.
        budget: how far images may move; by default an L2 budget of a quarter of the largest distance.
        steps: steps, and frames of the video.
        device: what torch calls it; None takes the one that the model is on.
        progress: whether a progress bar is shown.
        callback: is called with the progress at each step.

    Returns:
        The frames (T x N x C x H x W), the probabilities of the classes, and `save("walk.mp4")`.

    Raises:
        GapError: for a class that is not there, and where the model passes no gradient.
    """
    batch = images if isinstance(images, Tensor) and images.ndim == 4 else None
    size = None if batch is None else (batch.shape[2], batch.shape[3])
    if batch is not None:
        check_images(batch)
    elif isinstance(images, Tensor):
        size = (images.shape[-2], images.shape[-1])
    network, device = _backbone(model, device, size=size)
    if batch is None:
        listed = images if isinstance(images, list | tuple) else [cast(ImageLike, images)]
        batch = torch.stack([as_image(image, network.spec.channels, network.spec.size) for image in listed])
    listed_target = target.tolist() if isinstance(target, Tensor) else target
    given = listed_target if isinstance(listed_target, list | tuple) else [listed_target] * len(batch)
    if len(given) != len(batch):
        raise GapError(f"{len(batch)} images need one target, or as many, not {len(given)}")
    classes = torch.as_tensor([network.find_class(str(each)) for each in given])
    with _progress(progress, callback) as shown:
        walk = traverse_images(
            network,
            batch.to(device),
            classes.to(device),
            budget=None if budget is None else as_budget(budget),
            steps=steps,
            tell=shown,
        )
    names = [network.label(index) for index in range(network.spec.classes)]
    return replace(walk, class_names=names, title=network.name)


def _backbone(
    model: ClassifierLike, device: torch.device | str | None, *, size: tuple[int, int] | None = None
) -> tuple[Classifier, torch.device]:
    """A network to draw with, on its device. Networks by name that do not say what they take get 3 x 224 x 224."""
    chosen = find_device([model], device)
    named = not isinstance(model, nn.Module)
    network = as_classifier(model, channels=3 if named else None, size=size or ((224, 224) if named else None))
    return network.to(chosen), chosen


def sized_image(image: ImageLike, channels: int, size: int | None = None) -> Tensor:
    """An image as C x H x W in [0, 1], its longer side brought to `size` pixels; warns where colors are lost."""
    picture = as_image(image, channels)
    if channels == 1 and (colored := as_image(image, 3)).ne(colored[:1]).any():
        name = image if isinstance(image, str | PathLike) else "an image"
        warnings.warn(f"{name} loses its colors: the network looks at gray pictures", GapWarning, stacklevel=2)
    return picture if size is None else resize(picture, fit_size(picture, size, enlarge=True))


def _sized_mask(image: ImageLike, content: Tensor) -> Tensor:
    """A mask, 1 x H x W in [0, 1], at the size of the content; raises GapError where it has another shape."""
    mask = as_image(image, 1)
    height, width = content.shape[1:]
    if abs(mask.shape[1] * width / (mask.shape[2] * height) - 1) > MASK_TOLERANCE:
        name = image if isinstance(image, str | PathLike) else "a mask"
        raise GapError(
            f"{name} is {mask.shape[2]} x {mask.shape[1]} pixels, of another shape than the content"
            f" ({width} x {height}); make it as wide and high as that"
        )
    return resize(mask, (height, width)).to(content.device)


@contextmanager
def _progress(shown: bool, callback: Callback) -> Iterator[Callback]:
    """What hears of a drawing: the user's callback, and a bar if it is to be shown."""
    if not shown:
        yield callback
        return
    with StepBar("drawing") as bar:

        def show(progress: OptimizationProgress) -> None:
            objective = progress.values.detach().mean().item()
            bar.update(progress.step + 1, progress.steps, f"objective {objective:.4g}")
            callback(progress)

        yield show
