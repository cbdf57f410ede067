"""Perturbations made visible: beside the picture they change, and on sheets of thumbnails.

Pictures come in as tensors C x H x W or N x C x H x W, floats in [0, 1] or uint8. One channel is drawn gray and three
as RGB; two are drawn as their gray mean, more than three by their first three.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from gap.core.errors import GapError
from gap.core.files import atomic_write
from gap.report.layout import MUTED, PAPER, font, grid, label, stack, with_border

PANEL = 224  # the least side of a panel of `side_by_side`, in pixels
THUMBNAIL = 84  # the least side of a thumbnail of `contact_sheet`
NO_PERTURBATION = 1e-6  # far below one 8-bit level: nothing to amplify


@dataclass(frozen=True, eq=False)
class ContactRow:
    """One attack on a contact sheet: `clean` and `adversarial` are N x C x H x W, `captions` has N entries."""

    title: str
    clean: Tensor
    adversarial: Tensor
    captions: Sequence[str]


def amplify(perturbation: Tensor, factor: float | None = None) -> tuple[Tensor, float]:
    """Show a perturbation (signed floats of any shape) around mid gray: `0.5 + factor * perturbation`, cut to [0, 1].

    Without a factor, the largest whole number is taken that keeps the largest pixel inside the range (at least 1, and 1
    where there is nothing to see). The factor is one for the whole batch. Returns the picture and the factor.
    """
    if not perturbation.is_floating_point():
        raise GapError(f"a perturbation is signed floats, not {perturbation.dtype}; subtract pictures in [0, 1]")
    perturbation = perturbation.detach().float().nan_to_num(0, 0, 0)
    if factor is None:
        largest = perturbation.abs().max().item() if perturbation.numel() else 0.0
        factor = float(max(1, math.floor(0.5 / largest + 1e-3))) if largest > NO_PERTURBATION else 1.0
    return (0.5 + factor * perturbation).clamp(0, 1), factor


def to_image(picture: Tensor) -> Image.Image:
    """The 8-bit picture nearest to a C x H x W (or 1 x C x H x W) tensor: mode L or RGB, pixel for pixel."""
    pictures = _as_batch(picture)
    if len(pictures) != 1:
        raise GapError(f"one picture was asked for, {len(pictures)} were given")
    return _images(pictures)[0]


def side_by_side(clean: Tensor, adversarial: Tensor, before: str, after: str) -> Image.Image:
    """Three panels: clean, perturbation amplified, perturbed, each of 224 pixels or more by whole-number enlargement.

    `before` and `after` (label and confidence, say) stand under the first and the last panel, the factor of
    amplification under the middle one. Raises GapError when the two pictures differ in shape.
    """
    clean, perturbation, adversarial, factor = _trio(clean, adversarial)
    panels = [with_border(to_image(picture), PANEL) for picture in (clean, perturbation, adversarial)]
    width = max(PANEL, panels[0].width)
    size = max(14, width // 18)
    names = ("clean", "perturbation", "perturbed")
    captions = (before, f"\N{MULTIPLICATION SIGN} {factor:g}, around gray", after)
    laid = grid(
        [
            panels,
            [label(name, font(size, bold=True), width) for name in names],
            [label(caption, font(size), width, color=MUTED) for caption in captions],
        ],
        across=size,
        down=size // 3,
    )
    return ImageOps.expand(laid, size, PAPER)


def contact_sheet(rows: Sequence[ContactRow]) -> Image.Image:
    """Per attack, under its title: a line of clean thumbnails, their perturbations amplified, and the perturbed ones.

    All pictures of a row stand in one line, so hand over about ten at most; one factor of amplification holds for the
    row and is written beside it. Raises GapError when a row is empty or its parts do not match.
    """
    if not rows:
        raise GapError("a contact sheet needs at least one row of pictures")
    return ImageOps.expand(stack([_sheet_row(row) for row in rows], down=28), 18, PAPER)


def to_png_bytes(image: Image.Image) -> bytes:
    """The picture as the bytes of a small PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_image(image: Image.Image | Tensor, path: str | Path) -> Path:
    """Write a picture, or a tensor C x H x W as the picture nearest to it, as a PNG that appears whole.

    The folder is made where it is missing. Raises GapError when the file cannot be written.
    """
    picture = to_image(image) if isinstance(image, Tensor) else image
    with atomic_write(path) as part:
        picture.save(part, format="PNG")
    return Path(path)


def _sheet_row(row: ContactRow) -> Image.Image:
    clean, perturbation, adversarial, factor = _trio(row.clean, row.adversarial)
    if len(row.captions) != len(clean):
        raise GapError(f"the row {row.title!r} has {len(clean)} pictures but {len(row.captions)} captions")
    lines = [
        [with_border(image, THUMBNAIL, at_most=PANEL) for image in _images(pictures)]
        for pictures in (clean, perturbation, adversarial)
    ]
    width, height = max(THUMBNAIL, lines[0][0].width), lines[0][0].height
    names = ("clean", f"perturbation\n\N{MULTIPLICATION SIGN} {factor:g}", "perturbed")
    named = [
        [label(name, font(12), 92, color=MUTED, align="left", height=height), *line]
        for name, line in zip(names, lines, strict=True)
    ]
    captions = [label("", font(12), 92), *(label(caption, font(12), width) for caption in row.captions)]
    laid = grid([*named, captions], across=8, down=8)
    return stack([label(row.title, font(16, bold=True), laid.width, align="left"), laid], down=10)


def _trio(clean: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Clean, perturbation amplified and perturbed, each N x C x H x W in [0, 1], with the factor."""
    if clean.shape != adversarial.shape:
        raise GapError(
            f"clean and perturbed pictures differ in shape: {tuple(clean.shape)} and {tuple(adversarial.shape)}"
        )
    clean, adversarial = _as_batch(clean), _as_batch(adversarial)
    perturbation, factor = amplify(adversarial - clean)
    return clean, perturbation, adversarial, factor


def _as_batch(pictures: Tensor) -> Tensor:
    """The pictures as N x C x H x W floats in [0, 1] on the CPU; what is not a number is drawn black."""
    if pictures.ndim not in (3, 4) or 0 in pictures.shape:
        raise GapError(
            f"cannot draw a tensor of shape {tuple(pictures.shape)}; a picture is C x H x W, a batch N x C x H x W"
        )
    pictures = pictures.detach().cpu().reshape(-1, *pictures.shape[-3:])
    if pictures.dtype == torch.uint8:
        return pictures.float() / 255
    if not pictures.is_floating_point():
        raise GapError(f"cannot draw pictures of {pictures.dtype}; use floats in [0, 1] or uint8")
    return pictures.float().nan_to_num(0).clamp(0, 1)


def _images(pictures: Tensor) -> list[Image.Image]:
    channels = pictures.shape[1]
    if channels == 2:
        pictures = pictures.mean(dim=1, keepdim=True)
    levels = pictures[:, :3].mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture) for picture in levels]
