"""Drawing functions of the Python API, for paths, PIL images, arrays or tensors, and any network as backbone."""

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

# The largest relative difference of the aspect ratios of mask and content, which allows for rounded sizes.
MASK_TOLERANCE = 0.02

Callback = Callable[[OptimizationProgress], None]


@dataclass(frozen=True, eq=False)
class FeatureSheet(Drawing):
    """The drawings of `visualize`: images, each C x H x W in [0, 1], with their captions."""

    images: Sequence[Tensor]
    captions: Sequence[str]

    def captioned(self) -> list[CaptionedImage]:
        """The drawings as 8-bit images with their captions."""
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
    """Draw the content of an image in the style of other images.

    Args:
        content: a path, a PIL image, an array or a tensor C x H x W in [0, 1].
        styles: one such image or several, of any sizes.
        backbone: the network whose layers are compared: a name, a folder, a `gap.Classifier` or any `nn.Module`.
            Drawings with hardened networks are better.
        content_backbone: another network for the comparison of the content.
        weights: a weight for each style; equal by default.
        masks: a gray image for each style, which is white in the region of that style.
        init: the initial image: "content", "noise", or an image.
        size: pixels of the longer side of the drawing; None is the size of the content.
        device: the torch device; by default that of the backbone.
        progress: whether a progress bar is shown.
        callback: a function that is called with the progress at each evaluation.
        **options: further options of `gap stylize` by name: style_weight, layers, evaluations, keep_colors, seed...

    Returns:
        The drawing: `image` (C x H x W in [0, 1]), `to_pil`, `save`. A notebook displays it.

    Raises:
        GapError: for unknown layers, for sizes that a backbone does not support, and for a lack of memory.

    References:
        Gatys et al., 2016.
    """
    style_options = StyleTransferOptions.read(options)
    network, device = _backbone(backbone, device)
    channels = network.spec.channels
    content_network = None if content_backbone is None else _backbone(content_backbone, device)[0]
    if content_network and content_network.spec.channels != channels:
        raise GapError(
            f"{network.name} and {content_network.name} differ in channels; take two with the same number of channels"
        )
    image = sized_image(content, channels, size).to(device)
    style_list = styles if isinstance(styles, list | tuple) else [cast(ImageLike, styles)]
    style_images = [sized_image(style, channels).to(device) for style in style_list]
    init_image = init if isinstance(init, str) and init in get_args(Init) else sized_image(init, channels).to(device)
    with _progress(progress, callback) as notify:
        return transfer_style(
            image,
            style_images,
            network,
            content_backbone=content_network,
            weights=weights,
            masks=None if masks is None else [_sized_mask(mask, image) for mask in masks],
            init=cast(Tensor | Init, init_image),
            options=style_options,
            tell=notify,
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
    """Draw a texture in the style of an image, from noise, at any size.

    Args:
        style: a path, a PIL image, an array or a tensor C x H x W in [0, 1].
        size: (H, W) of the drawing, or the side of a square.
        backbone, device, progress, callback, **options: as for `stylize`.

    References:
        Gatys et al., 2015.
    """
    style_options = StyleOptions.read(options)
    network, device = _backbone(backbone, device)
    sides = (size, size) if isinstance(size, int) else size
    style_image = sized_image(style, network.spec.channels).to(device)
    with _progress(progress, callback) as notify:
        return synthesize_texture(style_image, sides, network, options=style_options, tell=notify)


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
    """Draw images that activate classes, channels or neurons of a network.

    Args:
        model: a name, a folder, a `gap.Classifier` or any `nn.Module`.
        features: a text such as "logit:3", "logit:cat", "layer2:0-15", "layer3:4@center", a `gap.Feature("layer2", 3)`,
            or a list of these, in which a list of features of one layer is drawn together. Or an objective from
            `gap.imagery`, which is optimized on `canvas`.
        size: (H, W) of the drawings, or the side of a square; by default the network's input size.
        init: an initial image, to which the features are added; its longer side gets the pixels of `size`.
        prior: "none" takes steps inside a ball, which works with hardened networks. "natural" uses a Fourier canvas and
            random transforms, which standard networks need.
        samples: the number of drawings of each feature, from different noise.
        diversity: the weight of the differences between the drawings of a group at that layer (Olah et al., 2017).
        canvas: the canvas for an objective; by default pixels that begin as weak noise.
        transforms: a module that is applied to the images before the network; it may change their size.
        budget: the largest distance of a drawing to its initial image, without a prior.
        extra_objective: an objective that is added to each feature.
        steps: evaluations of each drawing.
        seed: the seed of all random choices.
        device: the torch device; by default that of the model.
        progress: whether a progress bar is shown.
        callback: a function that is called with the progress at each step.

    Returns:
        The drawings: `images`, `captions`, `to_pil`, `save`. A notebook displays them.

    Raises:
        GapError: for unknown layers and channels, and for a size that the network does not support.

    References:
        Santurkar et al., 2019 (without a prior); Olah et al., 2017 (natural).
    """
    network, device = _backbone(model, device)
    sides = (size, size) if isinstance(size, int) else size
    with _progress(progress, callback) as notify:
        if isinstance(features, Objective):
            given = {"init": init, "budget": budget, "extra_objective": extra_objective, "diversity": diversity or None}
            given |= {"prior": None if prior == "none" else prior, "samples": None if samples == 1 else samples}
            if unused := [f"`{name}`" for name, value in given.items() if value is not None]:
                raise GapError(f"an objective of your own does not go with {', '.join(unused)}")
            images = draw_objective(
                network, features, canvas=canvas, size=sides, transforms=transforms, steps=steps, seed=seed, tell=notify
            )
            return FeatureSheet(list(images), [str(features)] * len(images))
        if canvas is not None:
            raise GapError("a canvas goes with an objective; leave it out, or give an objective in place of features")
        groups = group_features(network, features, samples)
        if diversity and any(len(set(group)) == len(group) for group in groups):
            raise GapError("`diversity` is among several drawings of one feature; ask for more `samples`")
        for group in groups:
            check_features(network, group, sides)
        longest = max(sides or network.spec.size)
        init_image = None if init is None else sized_image(init, network.spec.channels, longest).to(device)
        drawings: list[Tensor] = []
        for group in groups:
            drawings += visualize_features(
                network,
                group,
                size=sides,
                init=init_image,
                prior=prior,
                transforms=transforms,
                budget=None if budget is None else as_budget(budget),
                diversity=diversity,
                extra_objective=extra_objective,
                steps=steps,
                seed=seed,
                tell=notify,
            )
    return FeatureSheet(drawings, [feature_name(feature, network) for group in groups for feature in group])


def group_features(
    network: Classifier, features: str | Feature | Sequence[str | Feature | Sequence[Feature]], samples: int = 1
) -> list[list[Feature]]:
    """The groups of features that are drawn together: those of a text or list, or the samples of one feature.

    Raises GapError for text that cannot be read.
    """
    feature_list = [features] if isinstance(features, str | Feature) else features
    groups: list[list[Feature]] = []
    for item in feature_list:
        if isinstance(item, str):
            groups.append(parse_features(item, network))
        else:
            groups.append([item] if isinstance(item, Feature) else list(item))
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
    """Reconstruct an image from the activations of single layers of a network.

    Args:
        model: a name, a folder, a `gap.Classifier` or any `nn.Module`.
        image: a path, a PIL image, an array or a tensor C x H x W in [0, 1].
        layers: the name of a layer, or several.
        size: pixels of the longer side of the reconstructions; by default the longer side of the network's input size.
        steps: evaluations of each reconstruction.
        seed: the seed of the initial noise.
        device, progress, callback: as for `visualize`.

    Returns:
        One drawing for each layer: `images`, `captions`, `to_pil`, `save`.

    References:
        Mahendran and Vedaldi, 2015; Engstrom et al., 2019 (robust networks).
    """
    network, device = _backbone(model, device)
    target = sized_image(image, network.spec.channels, size or max(network.spec.size)).to(device)
    names = [layers] if isinstance(layers, str) else list(layers)
    for name in names:
        prepare_backbone(network, target[None], [name])
    with _progress(progress, callback) as notify:
        drawings = [invert_features(network, target, name, steps=steps, seed=seed, tell=notify) for name in names]
    return FeatureSheet(drawings, names)


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
    """Move images towards a class, along the gradient of its logit.

    Args:
        model: a name, a folder, a `gap.Classifier` or any `nn.Module`. With hardened classifiers, the images come to
            look like the class.
        images: tensors N x C x H x W in [0, 1], or one image or several: paths, PIL images, arrays, tensors C x H x W.
        target: the class, by number or by name, or one for each image.
        budget: the largest distance to the initial images; by default an L2 budget of a quarter of the largest
            distance between two images.
        steps: the number of steps, which are also the frames of the video.
        device: the torch device; by default that of the model.
        progress: whether a progress bar is shown.
        callback: a function that is called with the progress at each step.

    Returns:
        The frames (T x N x C x H x W), the probabilities of the classes, and `save("traversal.mp4")`.

    Raises:
        GapError: for an unknown class, and where the model passes no gradient.
    """
    batch = images if isinstance(images, Tensor) and images.ndim == 4 else None
    size = None if batch is None else (batch.shape[2], batch.shape[3])
    if batch is not None:
        check_images(batch)
    elif isinstance(images, Tensor):
        size = (images.shape[-2], images.shape[-1])
    network, device = _backbone(model, device, size=size)
    if batch is None:
        image_list = images if isinstance(images, list | tuple) else [cast(ImageLike, images)]
        batch = torch.stack([as_image(image, network.spec.channels, network.spec.size) for image in image_list])
    target_values = target.tolist() if isinstance(target, Tensor) else target
    targets = target_values if isinstance(target_values, list | tuple) else [target_values] * len(batch)
    if len(targets) != len(batch):
        raise GapError(f"{len(batch)} images need one target, or as many, not {len(targets)}")
    classes = torch.as_tensor([network.find_class(str(value)) for value in targets])
    with _progress(progress, callback) as notify:
        traversal = traverse_images(
            network,
            batch.to(device),
            classes.to(device),
            budget=None if budget is None else as_budget(budget),
            steps=steps,
            tell=notify,
        )
    names = [network.label(index) for index in range(network.spec.classes)]
    return replace(traversal, class_names=names, title=network.name)


def _backbone(
    model: ClassifierLike, device: torch.device | str | None, *, size: tuple[int, int] | None = None
) -> tuple[Classifier, torch.device]:
    """A network for drawing, and its device. The input of networks by name that do not define it is 3 x 224 x 224."""
    torch_device = find_device([model], device)
    is_name = not isinstance(model, nn.Module)
    network = as_classifier(model, channels=3 if is_name else None, size=size or ((224, 224) if is_name else None))
    return network.to(torch_device), torch_device


def sized_image(image: ImageLike, channels: int, size: int | None = None) -> Tensor:
    """An image as C x H x W in [0, 1], with its longer side resized to `size` pixels; warns where colors are lost."""
    tensor = as_image(image, channels)
    if channels == 1 and (colored := as_image(image, 3)).ne(colored[:1]).any():
        name = image if isinstance(image, str | PathLike) else "an image"
        warnings.warn(f"{name} loses its colors: the network looks at gray pictures", GapWarning, stacklevel=2)
    return tensor if size is None else resize(tensor, fit_size(tensor, size, enlarge=True))


def _sized_mask(image: ImageLike, content: Tensor) -> Tensor:
    """A mask, 1 x H x W in [0, 1], resized to the content; raises GapError where its aspect ratio differs."""
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
def _progress(show_bar: bool, callback: Callback) -> Iterator[Callback]:
    """Yield the callback of a drawing: the user's callback, together with a progress bar if `show_bar`."""
    if not show_bar:
        yield callback
        return
    with StepBar("drawing") as bar:

        def update(progress: OptimizationProgress) -> None:
            objective = progress.values.detach().mean().item()
            bar.update(progress.step + 1, progress.steps, f"objective {objective:.4g}")
            callback(progress)

        yield update
