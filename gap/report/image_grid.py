"""Grids of captioned images."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps

from gap.report.layout import INK, PAPER, font, grid, label, stack, with_border

SIDE = 160  # small images are enlarged to this longer side, in pixels
MAX_SIDE = 384  # large images are reduced to this longer side


@dataclass(frozen=True, eq=False)
class CaptionedImage:
    """An image with its caption."""

    picture: Image.Image
    caption: str


def image_grid(pictures: Sequence[CaptionedImage], columns: int = 8) -> Image.Image:
    """Images in rows with captions below; small images are enlarged by whole numbers, large ones reduced."""
    cells = [_cell(captioned) for captioned in pictures]
    columns = min(columns, len(cells))
    blank = Image.new("RGB", (1, 1), PAPER)
    cells += [blank] * (-len(cells) % columns)
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    return ImageOps.expand(grid(rows, across=10, down=12), 18, PAPER)


def _cell(captioned: CaptionedImage) -> Image.Image:
    image = with_border(captioned.picture, SIDE, at_most=MAX_SIDE)
    return stack([image, label(captioned.caption, font(12), image.width, color=INK)], down=3)
