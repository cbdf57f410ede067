"""What is seen of a drawing: the layers of one backbone, or of two, made ready for pictures of any size."""

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

# Of smoothed outputs, none outweighs another by more than e to the power of twice this.
MAX_LOGIT = 3.0
TINY = 1e-12
# Where style and content are read, by a name that tells the kind of network: ResNets, VGG, AlexNet. As articles have
# it, but for ResNets' content, theirs being relu4_x: in the first stage as much style costs less (docs/results.md).
DEFAULT_LAYERS = {
    "relu5_x": (["relu2_x", "relu3_x", "relu4_x", "relu5_x"], ["relu2_x"]),
    "relu5_1": ([f"relu{block}_1" for block in range(1, 6)], ["relu4_2"]),
    "conv_5": ([f"conv_{place}" for place in range(1, 5)], ["conv_3"]),
}


class Backbone(nn.Module):
    """A classifier's network with its normalizer, taking pictures of any size as they are: nothing is resized."""

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
    """These layers of a copy of a backbone made ready to draw with: no resizing, norms folded, channels last where the
    backbone allows it.

    Average pooling keeps the scale that these images (N x C x H x W) have under max pooling. Raises GapError for layers
    that are not there, and naming the least size that works where the images are too small.
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
    """The layers that style is read from where nobody says.

    Those usual for a kind of network; else the last at each of the first five resolutions. Raises GapError for a
    network that gives no maps.
    """
    if usual := _usual(classifier):
        return usual[0]
    spec = classifier.spec
    device = classifier.device
    with frozen(classifier):
        probe = torch.rand(1, spec.channels, *spec.size, device=device)
        found = last_layer_per_resolution(Backbone(classifier), probe, spec.classes)
    if not found:
        raise GapError(f"{classifier.name} has no layer that gives maps; draw with a convolutional network")
    names = [name.removeprefix("classifier.network.") for name in found[:5]]
    if len(names) == 1:
        warnings.warn(
            f"{classifier.name} has one layer that gives maps, {names[0]}; a drawing through it alone shows little",
            GapWarning,
            stacklevel=2,
        )
    return names


def default_content_layers(classifier: Classifier) -> list[str]:
    """Where content is read from if nobody says: where it is usual for a kind of network, or in the last but one of the
    layers that style is read from, which knows what is where."""
    if usual := _usual(classifier):
        return usual[1]
    layers = default_layers(classifier)
    return layers[-2:-1] or layers


def _usual(classifier: Classifier) -> tuple[list[str], list[str]] | None:
    known = layer_aliases(classifier.network)
    return next((usual for kind, usual in DEFAULT_LAYERS.items() if kind in known), None)


def _extractor(backbone: Backbone, layers: Sequence[str]) -> FeatureExtractor:
    return FeatureExtractor(backbone.classifier.network, layers, run=backbone)


@torch.no_grad()
def _fuse_if_equivalent(classifier: Classifier, layers: Sequence[str]) -> Classifier:
    """The classifier with its norms folded, if these layers give the same there; some lie where a norm went."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in classifier.modules()):
        return classifier
    spec = classifier.spec
    plain = _extractor(Backbone(classifier), layers)
    lean = FusedCopy(classifier, spec.channels, spec.size).lean
    probe = torch.rand(2, spec.channels, *spec.size, generator=torch.Generator().manual_seed(0))
    probe = probe.to(classifier.device)
    with frozen(classifier, lean):
        try:
            found = _extractor(Backbone(lean), layers)(probe)
        except GapError:
            return classifier
        expected = plain(probe)
    same = all(
        torch.allclose(found[name], output, rtol=1e-3, atol=1e-3 * float(output.std()))
        for name, output in expected.items()
    )
    return lean if same else classifier


class MultiFeatureExtractor:
    """The layers of a style network and of a content network, which may be one and the same, by name.

    Where they are two, `content` layers are named with that word before them. With `half` the networks multiply in
    bfloat16; what objectives make of their outputs stays float32.
    """

    def __init__(self, extractors: Mapping[str, FeatureExtractor], half: bool = False) -> None:
        self.extractors = dict(extractors)
        self.half = half
        self.peaks: dict[str, float] = {}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.half):
            for prefix, extractor in self.extractors.items():
                seen |= {prefix + name: output for name, output in extractor(images).items()}
        return {name: self._calm(name, output) for name, output in seen.items()}

    def smooth_activations(self, images: Tensor) -> None:
        """From now on give a softmax over each layer's outputs for an image, times their number (SWAG, Wang et al.,
        2021). They are scaled so that the greatest that it gives for these images is STEEPEST before it."""
        self.peaks = {name: max(output.abs().max().item(), TINY) for name, output in self(images).items()}

    def _calm(self, name: str, output: Tensor) -> Tensor:
        if name not in self.peaks:
            return output
        flat = output.float().flatten(1) * (MAX_LOGIT / self.peaks[name])
        return (flat.softmax(dim=1) * flat.shape[1]).view_as(output)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold the networks in eval mode and with frozen weights."""
        with frozen(*(extractor.run for extractor in self.extractors.values())):
            yield


def check_size(extractor: FeatureExtractor, images: Tensor, name: str) -> None:
    """Raise GapError, naming the least size that works, where a backbone's layers cannot take images of this size."""
    if _accepts(extractor, images[:1]):
        return
    least = next((side for side in range(1, 513) if _accepts(extractor, _square_input(images, side))), None)
    if least is None:
        what = "nor of any size that was tried"
    else:
        beyond = next(
            (side for side in range(least, 2 * least + 1) if not _accepts(extractor, _square_input(images, side))), None
        )
        what = f"it takes {least} pixels or more" if beyond is None else f"it takes {least} to {beyond - 1}"
    raise GapError(f"{name} cannot look at pictures of {images.shape[2]} x {images.shape[3]} pixels: {what}")


def _square_input(images: Tensor, side: int) -> Tensor:
    return images.new_zeros(1, images.shape[1], side, side)


def _accepts(extractor: FeatureExtractor, images: Tensor) -> bool:
    try:
        with torch.no_grad(), frozen(extractor.run):
            extractor(images)
    except SHAPE_ERRORS:
        return False
    return True
