"""Layout of PIL images and text: borders, captions, grids."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import matplotlib
from PIL import Image, ImageDraw, ImageFont, ImageOps

PAPER, INK, MUTED, EDGE = "#ffffff", "#1c2024", "#5b6470", "#d5d9de"


def with_border(image: Image.Image, at_least: int, at_most: int | None = None) -> Image.Image:
    """The image, enlarged by a whole number to a longer side of at least `at_least` pixels, with a thin border."""
    factor = max(1, math.ceil(at_least / max(image.size)))
    size = (factor * image.width, factor * image.height)
    enlarged = image.convert("RGB").resize(size, Image.Resampling.NEAREST)
    if at_most is not None:
        enlarged.thumbnail((at_most, at_most), Image.Resampling.LANCZOS)
    return ImageOps.expand(enlarged, 1, EDGE)


def label(
    text: str,
    font: ImageFont.FreeTypeFont,
    width: int,
    *,
    color: str = INK,
    align: Literal["left", "center"] = "center",
    height: int = 0,
) -> Image.Image:
    """An image of text, wrapped to `width` and vertically centered in `height` if that is larger."""
    lines = [line for paragraph in text.splitlines() for line in _wrapped(paragraph, font, width)]
    line_height = sum(font.getmetrics())
    label = Image.new("RGB", (width, max(height, line_height * len(lines), 1)), PAPER)
    draw = ImageDraw.Draw(label)
    x, anchor = (0, "la") if align == "left" else (width // 2, "ma")
    top = (label.height - line_height * len(lines)) // 2
    for number, line in enumerate(lines):
        draw.text((x, top + number * line_height), line, fill=color, font=font, anchor=anchor)
    return label


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The lines of a text wrapped to `width` pixels, at spaces if possible."""
    lines = [""]
    for word in text.split():
        extended = f"{lines[-1]} {word}".strip()
        if font.getlength(extended) <= width:
            lines[-1] = extended
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]


def grid(cells: Sequence[Sequence[Image.Image]], across: int, down: int) -> Image.Image:
    """Cells in rows and columns. Columns and rows have the size of their largest cell; cells are aligned top center."""
    widths = [max(cell.width for cell in column) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        line = Image.new("RGB", (sum(widths) + across * (len(widths) - 1), max(cell.height for cell in row)), PAPER)
        left = 0
        for cell, width in zip(row, widths, strict=True):
            line.paste(cell, (left + (width - cell.width) // 2, 0))
            left += width + across
        lines.append(line)
    return stack(lines, down)


def stack(images: Sequence[Image.Image], down: int) -> Image.Image:
    """Images below each other, aligned left."""
    height = sum(image.height for image in images) + down * (len(images) - 1)
    stacked = Image.new("RGB", (max(image.width for image in images), height), PAPER)
    top = 0
    for image in images:
        stacked.paste(image, (0, top))
        top += image.height + down
    return stacked


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans from matplotlib's files, so that captions are the same on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)
