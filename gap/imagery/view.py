"""What is seen of a drawing: the layers of one backbone, or of two, made ready for pictures of any size."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from gap.classifier import Classifier
from gap.errors import GapError, first_line
from gap.folding import Folding
from gap.frozen import frozen
from gap.models.taps import Taps, stages, with_average_pooling, with_padding

Pooling = Literal["max", "average"]
Padding = Literal["zeros", "reflect", "replicate"]


class Backbone(nn.Module):
    """A classifier's network with its normaliser, taking pictures of any size as they are: nothing is resized."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier.network(self.classifier.normalised(images))
        return logits


def prepared(
    classifier: Classifier,
    images: Tensor,
    layers: Sequence[str],
    *,
    pooling: Pooling = "max",
    padding: Padding = "zeros",
) -> Taps:
    """These layers of a backbone made ready to draw with: no resizing, norms folded, channels last.

    Average pooling keeps the scale that these images (N x C x H x W) have under max pooling. Raises GapError for layers
    that are not there, and naming the least size that works where the images are too small.
    """
    folding = Folding(classifier, classifier.facts.channels, classifier.facts.size)
    asked = Taps(classifier.network, layers).modules.values()
    # A convolution that is looked at itself must give what it gives before its norm.
    whole = any(convolution in asked for convolution, _, _ in folding.pairs)
    backbone = Backbone(classifier if whole else folding.lean)
    if pooling == "average":
        backbone = with_average_pooling(backbone, images)
    if padding != "zeros":
        backbone = with_padding(backbone, padding)
    taps = Taps(backbone.classifier.network, layers, run=backbone.to(memory_format=torch.channels_last))
    check_size(taps, images, classifier.name)
    return taps


def default_layers(classifier: Classifier) -> list[str]:
    """The layers that style is read from where nobody says: the last at each of the first five resolutions.

    Where the literature has its own choice for a kind of network, that one.
    """
    for usual in (["relu2_x", "relu3_x", "relu4_x", "relu5_x"], [f"relu{block}_1" for block in range(1, 6)]):
        try:
            Taps(classifier.network, usual)
            return usual
        except GapError:
            pass
    facts = classifier.facts
    with frozen(classifier):
        found = stages(classifier, torch.rand(1, facts.channels, *facts.size))
    return [name.removeprefix("network.") for name in found[:5]]


class View:
    """The layers of a style network and of a content network, which may be one and the same, by name.

    Where they are two, `content` layers are named with that word before them.
    """

    def __init__(self, taps: Mapping[str, Taps]) -> None:
        self.taps = dict(taps)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        images = images.contiguous(memory_format=torch.channels_last)
        seen: dict[str, Tensor] = {}
        for prefix, taps in self.taps.items():
            seen |= {prefix + name: output for name, output in taps(images).items()}
        return seen

    @contextmanager
    def still(self) -> Iterator[None]:
        """Hold the networks in eval mode and with frozen weights."""
        with frozen(*(taps.run for taps in self.taps.values())):
            yield


def check_size(taps: Taps, images: Tensor, name: str) -> None:
    """Raise GapError, naming the least size that works, where a backbone's layers cannot take images of this size."""
    try:
        with torch.no_grad(), frozen(taps.run):
            taps(images[:1])
    except GapError:
        raise
    except RuntimeError as error:
        least = next((side for side in range(1, 513) if _works(taps, images, side)), None)
        mend = f"it takes {least} pixels or more" if least else first_line(error)
        height, width = images.shape[-2:]
        raise GapError(f"{name} cannot look at pictures of {height} x {width} pixels: {mend}") from error


def _works(taps: Taps, images: Tensor, side: int) -> bool:
    try:
        with torch.no_grad(), frozen(taps.run):
            taps(images.new_zeros(1, images.shape[1], side, side))
        return True
    except (RuntimeError, GapError):
        return False
