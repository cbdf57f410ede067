"""Backbones of drawings: classifiers prepared for images of any size, and the layers that losses use."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from gap.classifiers.classifier import Classifier
from gap.classifiers.fuse import FusedCopy
from gap.classifiers.memory_format import random_images, use_channels_last_for
from gap.core.errors import GapError, GapWarning
from gap.core.frozen import frozen
from gap.imagery.options import Padding, Pooling, Strides
from gap.models.feature_extractor import (
    SHAPE_ERRORS,
    FeatureExtractor,
    last_layer_per_resolution,
    layer_aliases,
    with_average_pooling,
    with_padding,
    with_smooth_strides,
)

# Before the softmax of smoothed activations, outputs are scaled to at most this magnitude.
MAX_LOGIT = 3.0
TINY = 1e-12
# Layers for style and for content, by a layer name that identifies the architecture: ResNets, VGG, AlexNet. They are
# those of the articles, except for the content layer of ResNets, which is relu4_x there: with relu2_x, the same style
# distance has a lower content distance (docs/results.md).
DEFAULT_LAYERS = {
    "relu5_x": (["relu2_x", "relu3_x", "relu4_x", "relu5_x"], ["relu2_x"]),
    "relu5_1": ([f"relu{block}_1" for block in range(1, 6)], ["relu4_2"]),
    "conv_5": ([f"conv_{place}" for place in range(1, 5)], ["conv_3"]),
}


class Backbone(nn.Module):
    """A classifier's network with its normalizer, for images of any size, which are not resized."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.logits_at(images)


def prepare_backbone(
    classifier: Classifier,
    images: Tensor,
    layers: Sequence[str],
    *,
    pooling: Pooling = "max",
    padding: Padding = "zeros",
    strides: Strides = "own",
) -> FeatureExtractor:
    """An extractor of these layers of a copy of a backbone, prepared for drawing.

    The copy does not resize images, has fused norms, and is in channels-last format if the backbone works with it.
    Average pooling is scaled so that the outputs for these images (N x C x H x W) have the scale that they have with
    max pooling. Raises GapError for unknown layers, and for images that are too small, with the smallest size that
    works.
    """
    backbone = deepcopy(Backbone(_fuse_if_equivalent(classifier, layers))).eval().requires_grad_(False)
    check_size(_extractor(backbone, layers), images, classifier.name)
    if pooling == "average":
        backbone = with_average_pooling(backbone, images)
    if padding != "zeros":
        backbone = with_padding(backbone, padding)
    if strides == "smooth":
        backbone = with_smooth_strides(backbone)
    extractor = _extractor(backbone, layers)
    with frozen(backbone):
        extractor.read_as_maps(random_images(classifier, 1))
    if layers:
        use_channels_last_for(backbone.classifier, lambda images: list(extractor(images).values()), [images[:1]])
    return extractor


def default_layers(classifier: Classifier) -> list[str]:
    """The default style layers.

    They are those usual for the architecture, or else the last layers at each of the first five resolutions. Raises
    GapError for a network without feature maps.
    """
    if usual_layers := _usual_layers(classifier):
        return usual_layers[0]
    spec = classifier.spec
    device = classifier.device
    with frozen(classifier):
        images = torch.rand(1, spec.channels, *spec.size, device=device)
        layers_by_resolution = last_layer_per_resolution(Backbone(classifier), images, spec.classes)
    if not layers_by_resolution:
        raise GapError(f"{classifier.name} has no layer that gives maps; draw with a convolutional network")
    names = [name.removeprefix("classifier.network.") for name in layers_by_resolution[:5]]
    if len(names) == 1:
        warnings.warn(
            f"{classifier.name} has one layer that gives maps, {names[0]}; a drawing through it alone shows little",
            GapWarning,
            stacklevel=2,
        )
    return names


def default_content_layers(classifier: Classifier) -> list[str]:
    """The default content layers.

    They are those usual for the architecture, or else the last but one of the style layers, which still has spatial
    information.
    """
    if usual_layers := _usual_layers(classifier):
        return usual_layers[1]
    layers = default_layers(classifier)
    return layers[-2:-1] or layers


def _usual_layers(classifier: Classifier) -> tuple[list[str], list[str]] | None:
    aliases = layer_aliases(classifier.network)
    return next((layers for kind, layers in DEFAULT_LAYERS.items() if kind in aliases), None)


def _extractor(backbone: Backbone, layers: Sequence[str]) -> FeatureExtractor:
    return FeatureExtractor(backbone.classifier.network, layers, run=backbone)


@torch.no_grad()
def _fuse_if_equivalent(classifier: Classifier, layers: Sequence[str]) -> Classifier:
    """The classifier with fused norms if these layers have the same outputs in it, else the classifier itself."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in classifier.modules()):
        return classifier
    spec = classifier.spec
    unfused = _extractor(Backbone(classifier), layers)
    fused = FusedCopy(classifier, spec.channels, spec.size).lean
    images = torch.rand(2, spec.channels, *spec.size, generator=torch.Generator().manual_seed(0))
    images = images.to(classifier.device)
    with frozen(classifier, fused):
        try:
            outputs = _extractor(Backbone(fused), layers)(images)
        except GapError:
            return classifier
        expected = unfused(images)
    is_equivalent = all(
        torch.allclose(outputs[name], output, rtol=1e-3, atol=1e-3 * float(output.std()))
        for name, output in expected.items()
    )
    return fused if is_equivalent else classifier


class MultiFeatureExtractor:
    """The layers, by name, of a style network and a content network, which may be the same network.

    Names of the layers of a separate content network have the prefix `content`. With `half` the networks run under
    autocast in bfloat16; objectives are computed in float32.
    """

    def __init__(self, extractors: Mapping[str, FeatureExtractor], half: bool = False) -> None:
        self.extractors = dict(extractors)
        self.half = half
        self.peaks: dict[str, float] = {}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.half):
            for prefix, extractor in self.extractors.items():
                outputs |= {prefix + name: output for name, output in extractor(images).items()}
        return {name: self._smooth(name, output) for name, output in outputs.items()}

    def smooth_activations(self, images: Tensor) -> None:
        """From now on, replace each layer's outputs for an image by their softmax, times their number.

        Before the softmax, outputs are scaled so that the largest magnitude for these images is MAX_LOGIT. References:
        SWAG, Wang et al., 2021.
        """
        self.peaks = {name: max(output.abs().max().item(), TINY) for name, output in self(images).items()}

    def _smooth(self, name: str, output: Tensor) -> Tensor:
        if name not in self.peaks:
            return output
        flat = output.float().flatten(1) * (MAX_LOGIT / self.peaks[name])
        return (flat.softmax(dim=1) * flat.shape[1]).view_as(output)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Set the networks to eval mode and freeze their weights inside the block."""
        with frozen(*(extractor.run for extractor in self.extractors.values())):
            yield


def check_size(extractor: FeatureExtractor, images: Tensor, name: str) -> None:
    """Raise GapError, naming the smallest size that works, where a backbone fails on images of this size."""
    if _accepts(extractor, images[:1]):
        return
    min_side = next((side for side in range(1, 513) if _accepts(extractor, _square_input(images, side))), None)
    if min_side is None:
        supported = "nor of any size that was tried"
    else:
        first_failure = next(
            (
                side
                for side in range(min_side, 2 * min_side + 1)
                if not _accepts(extractor, _square_input(images, side))
            ),
            None,
        )
        supported = (
            f"it takes {min_side} pixels or more"
            if first_failure is None
            else f"it takes {min_side} to {first_failure - 1}"
        )
    raise GapError(f"{name} cannot look at pictures of {images.shape[2]} x {images.shape[3]} pixels: {supported}")


def _square_input(images: Tensor, side: int) -> Tensor:
    return images.new_zeros(1, images.shape[1], side, side)


def _accepts(extractor: FeatureExtractor, images: Tensor) -> bool:
    try:
        with torch.no_grad(), frozen(extractor.run):
            extractor(images)
    except SHAPE_ERRORS:
        return False
    return True
