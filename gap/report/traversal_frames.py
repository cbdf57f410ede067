"""Walks drawn: pictures with the classes' probabilities under them, frame by frame, and the key frames as a sheet."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from gap.core.errors import GapError
from gap.report.layout import EDGE, INK, MUTED, PAPER, font, grid, label, stack, with_border
from gap.report.pictures import to_image

SIDE, BAR = 168, 13  # the least side of a picture and the height of a bar, in pixels
SHOWN = 10  # classes with a bar, the likeliest ones where there are more
LEADING = "#2f6fde"


@dataclass(frozen=True, eq=False)
class TraversalFrames:
    """What one classifier saw on its walk: pictures T x N x C x H x W in [0, 1], probabilities T x N x K."""

    title: str
    pictures: Tensor
    probabilities: Tensor


def traversal_frames(walks: Sequence[TraversalFrames], names: Sequence[str]) -> list[Image.Image]:
    """One frame for each of the T moments: a row for each picture, a column for each walk, all of the same length."""
    lengths = {len(walk.pictures) for walk in walks}
    if len(lengths) != 1:
        raise GapError("walks that stand side by side need one length")
    order = _order(walks[0].probabilities)
    return [_frame(walks, names, order, moment) for moment in range(lengths.pop())]


def key_frames(walks: Sequence[TraversalFrames], names: Sequence[str], moments: int = 6) -> Image.Image:
    """A line for each picture and walk: evenly spaced moments, with the likeliest class under each."""
    length = len(walks[0].pictures)
    chosen = [round(place * (length - 1) / max(1, moments - 1)) for place in range(moments)]
    lines = []
    for image in range(walks[0].pictures.shape[1]):
        for walk in walks:
            cells = [_key(walk, names, moment, image) for moment in chosen]
            lines.append([label(walk.title, font(13), 110, align="left"), *cells])
    return ImageOps.expand(grid(lines, across=8, down=12), 18, PAPER)


def _key(walk: TraversalFrames, names: Sequence[str], moment: int, image: int) -> Image.Image:
    share, index = walk.probabilities[moment, image].max(dim=0)
    picture = with_border(to_image(walk.pictures[moment, image]), SIDE // 2, at_most=SIDE)
    return stack(
        [picture, label(f"{names[int(index)]} {share.item():.0%}", font(12), picture.width, color=MUTED)], down=3
    )


def _frame(walks: Sequence[TraversalFrames], names: Sequence[str], order: list[list[int]], moment: int) -> Image.Image:
    heads = [label(walk.title, font(14, bold=True), SIDE + 2) for walk in walks]
    rows = [
        [_cell(walk.pictures[moment, image], walk.probabilities[moment, image], names, shown) for walk in walks]
        for image, shown in enumerate(order)
    ]
    return ImageOps.expand(grid([heads, *rows], across=18, down=12), 14, PAPER)


def _cell(picture: Tensor, probabilities: Tensor, names: Sequence[str], shown: list[int]) -> Image.Image:
    image = with_border(to_image(picture), SIDE, at_most=SIDE)
    return stack([image, _bars(probabilities, names, shown, image.width)], down=6)


def _bars(probabilities: Tensor, names: Sequence[str], shown: list[int], width: int) -> Image.Image:
    """A bar for each class shown, its name before it; the likeliest one in color."""
    drawn = Image.new("RGB", (width, BAR * len(shown)), PAPER)
    draw = ImageDraw.Draw(drawn)
    longest = max(font(10).getlength(names[index][:12]) for index in shown)
    left, leading = round(longest) + 6, int(probabilities.argmax())
    for line, index in enumerate(shown):
        top = line * BAR
        color = LEADING if index == leading else EDGE
        draw.text((0, top), names[index][:12], fill=INK if index == leading else MUTED, font=font(10))
        draw.rectangle(
            (left, top + 2, left + (width - left - 1) * probabilities[index].item(), top + BAR - 3), fill=color
        )
    return drawn


def _order(probabilities: Tensor) -> list[list[int]]:
    """For each picture, the classes that have a bar: all of them in order, or those that were ever likeliest."""
    if probabilities.shape[2] <= SHOWN:
        return [list(range(probabilities.shape[2]))] * probabilities.shape[1]
    return [probabilities[:, image].amax(dim=0).topk(SHOWN).indices.tolist() for image in range(probabilities.shape[1])]
