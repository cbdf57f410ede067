"""Frames of class traversals: images with the probabilities of the classes, and sheets of key frames."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from gap.core.errors import GapError
from gap.report.layout import EDGE, INK, MUTED, PAPER, font, grid, label, stack, with_border
from gap.report.pictures import to_image

SIDE, BAR = 168, 13  # the minimum side of an image and the height of a bar, in pixels
MAX_BARS = 10  # the maximum number of classes with a bar; the most likely ones are shown
MOST_LIKELY_COLOR = "#2f6fde"


@dataclass(frozen=True, eq=False)
class TraversalFrames:
    """The traversal of one classifier: images T x N x C x H x W in [0, 1], probabilities T x N x K."""

    title: str
    pictures: Tensor
    probabilities: Tensor


def traversal_frames(walks: Sequence[TraversalFrames], names: Sequence[str]) -> list[Image.Image]:
    """The T frames of traversals of the same length, with a row for each image and a column for each traversal."""
    lengths = {len(traversal.pictures) for traversal in walks}
    if len(lengths) != 1:
        raise GapError("walks that stand side by side need one length")
    classes_of_images = _shown_classes(walks[0].probabilities)
    return [_frame(walks, names, classes_of_images, step) for step in range(lengths.pop())]


def key_frames(walks: Sequence[TraversalFrames], names: Sequence[str], moments: int = 6) -> Image.Image:
    """A row for each image and traversal: evenly spaced steps, with the most likely class of each."""
    length = len(walks[0].pictures)
    steps = [round(index * (length - 1) / max(1, moments - 1)) for index in range(moments)]
    lines = []
    for image in range(walks[0].pictures.shape[1]):
        for traversal in walks:
            cells = [_key_frame(traversal, names, step, image) for step in steps]
            lines.append([label(traversal.title, font(13), 110, align="left"), *cells])
    return ImageOps.expand(grid(lines, across=8, down=12), 18, PAPER)


def _key_frame(traversal: TraversalFrames, names: Sequence[str], step: int, image: int) -> Image.Image:
    probability, index = traversal.probabilities[step, image].max(dim=0)
    bordered = with_border(to_image(traversal.pictures[step, image]), SIDE // 2, at_most=SIDE)
    return stack(
        [bordered, label(f"{names[int(index)]} {probability.item():.0%}", font(12), bordered.width, color=MUTED)],
        down=3,
    )


def _frame(
    traversals: Sequence[TraversalFrames], names: Sequence[str], classes_of_images: list[list[int]], step: int
) -> Image.Image:
    heads = [label(traversal.title, font(14, bold=True), SIDE + 2) for traversal in traversals]
    rows = [
        [
            _cell(traversal.pictures[step, image], traversal.probabilities[step, image], names, class_indices)
            for traversal in traversals
        ]
        for image, class_indices in enumerate(classes_of_images)
    ]
    return ImageOps.expand(grid([heads, *rows], across=18, down=12), 14, PAPER)


def _cell(image_tensor: Tensor, probabilities: Tensor, names: Sequence[str], class_indices: list[int]) -> Image.Image:
    image = with_border(to_image(image_tensor), SIDE, at_most=SIDE)
    return stack([image, _bars(probabilities, names, class_indices, image.width)], down=6)


def _bars(probabilities: Tensor, names: Sequence[str], class_indices: list[int], width: int) -> Image.Image:
    """Bars of the probabilities of classes, with their names; the most likely class is colored."""
    image = Image.new("RGB", (width, BAR * len(class_indices)), PAPER)
    draw = ImageDraw.Draw(image)
    longest = max(font(10).getlength(names[index][:12]) for index in class_indices)
    left, most_likely = round(longest) + 6, int(probabilities.argmax())
    for line, index in enumerate(class_indices):
        top = line * BAR
        color = MOST_LIKELY_COLOR if index == most_likely else EDGE
        draw.text((0, top), names[index][:12], fill=INK if index == most_likely else MUTED, font=font(10))
        draw.rectangle(
            (left, top + 2, left + (width - left - 1) * probabilities[index].item(), top + BAR - 3), fill=color
        )
    return image


def _shown_classes(probabilities: Tensor) -> list[list[int]]:
    """The classes with a bar, for each image: all in order, or those with the highest probabilities in any step."""
    if probabilities.shape[2] <= MAX_BARS:
        return [list(range(probabilities.shape[2]))] * probabilities.shape[1]
    return [
        probabilities[:, image].amax(dim=0).topk(MAX_BARS).indices.tolist() for image in range(probabilities.shape[1])
    ]
