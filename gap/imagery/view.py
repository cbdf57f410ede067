"""What is seen of a drawing: the layers of one backbone, or of two, made ready for pictures of any size."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from gap.classifier import Classifier
from gap.errors import GapError, first_line
from gap.folding import folded
from gap.frozen import frozen
from gap.models.taps import Taps, stages, with_average_pooling, with_padding

Pooling = Literal["max", "average"]
Padding = Literal["zeros", "reflect", "replicate"]


def at_size(classifier: Classifier, size: tuple[int, int]) -> Classifier:
    """The same network taking pictures of (H, W) as they are, where the classifier itself would resize them."""
    facts = replace(classifier.facts, size=size)
    return Classifier(
        classifier.network, facts, name=classifier.name, architecture=classifier.architecture
    ).requires_grad_(False)


def prepared(
    classifier: Classifier, images: Tensor, *, pooling: Pooling = "max", padding: Padding = "zeros"
) -> Classifier:
    """A backbone for drawing at the size of these images: no resizing, its norms folded, channels last, eval mode.

    Average pooling keeps the scale that the images (N x C x H x W) have under max pooling.
    """
    backbone = at_size(classifier, (images.shape[2], images.shape[3])).eval()
    backbone = folded(backbone, images.shape[1], classifier.facts.size)
    if pooling == "average":
        backbone = with_average_pooling(backbone, images)
    if padding != "zeros":
        backbone = with_padding(backbone, padding)
    return backbone.to(memory_format=torch.channels_last)


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
    size = tuple(max(64, side) for side in classifier.facts.size)
    with frozen(classifier):
        found = stages(at_size(classifier, (size[0], size[1])), torch.rand(1, classifier.facts.channels, *size))
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


def view_of(backbone: Classifier, layers: Sequence[str]) -> View:
    """A view of one backbone."""
    return View({"": taps_of(backbone, layers)})


def taps_of(backbone: Classifier, layers: Sequence[str]) -> Taps:
    """The layers of a backbone by the names that its own network gives them."""
    return Taps(backbone.network, layers, run=backbone)


def check_size(taps: Taps, images: Tensor, name: str) -> None:
    """Raise GapError, naming the least size that works, where a backbone's layers cannot take images of this size."""
    try:
        with torch.no_grad():
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
        with torch.no_grad():
            taps(images.new_zeros(1, images.shape[1], side, side))
        return True
    except (RuntimeError, GapError):
        return False
