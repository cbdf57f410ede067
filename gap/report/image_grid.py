"""Sheets of captioned pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps

from gap.report.layout import INK, PAPER, font, grid, label, stack, with_border

SIDE = 160  # the longer side of a picture on a sheet, in pixels, where it is smaller by itself
MOST = 384  # and where it is larger


@dataclass(frozen=True, eq=False)
class CaptionedImage:
    """A picture and what stands under it."""

    picture: Image.Image
    caption: str


def image_grid(pictures: Sequence[CaptionedImage], columns: int = 8) -> Image.Image:
    """Pictures in rows, their captions under them; small ones are enlarged by whole numbers, large ones reduced."""
    cells = [_cell(each) for each in pictures]
    columns = min(columns, len(cells))
    blank = Image.new("RGB", (1, 1), PAPER)
    cells += [blank] * (-len(cells) % columns)
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    return ImageOps.expand(grid(rows, across=10, down=12), 18, PAPER)


def _cell(each: CaptionedImage) -> Image.Image:
    picture = with_border(each.picture, SIDE, at_most=MOST)
    return stack([picture, label(each.caption, font(12), picture.width, color=INK)], down=3)
