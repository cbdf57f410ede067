"""Images of perturbations: side by side with clean images, and contact sheets of thumbnails.

Images are tensors C x H x W or N x C x H x W, floats in [0, 1] or uint8. One channel is shown as gray, two as their
mean in gray, three as RGB; of more than three channels, the first three are shown.
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

PANEL = 224  # the minimum side of a panel of `side_by_side`, in pixels
THUMBNAIL = 84  # the minimum side of a thumbnail of `contact_sheet`
NO_PERTURBATION = 1e-6  # far below one 8-bit level: not amplified


@dataclass(frozen=True, eq=False)
class ContactRow:
    """One attack on a contact sheet: `clean` and `adversarial` are N x C x H x W, `captions` has N entries."""

    title: str
    clean: Tensor
    adversarial: Tensor
    captions: Sequence[str]


def amplify(perturbation: Tensor, factor: float | None = None) -> tuple[Tensor, float]:
    """A perturbation (signed floats of any shape) around gray: `0.5 + factor * perturbation`, clamped to [0, 1].

    The default factor is the largest whole number with which no pixel is clamped, at least 1, and 1 for a perturbation
    of nearly 0. The whole batch has the same factor. Returns the image and the factor.
    """
    if not perturbation.is_floating_point():
        raise GapError(f"a perturbation is signed floats, not {perturbation.dtype}; subtract pictures in [0, 1]")
    perturbation = perturbation.detach().float().nan_to_num(0, 0, 0)
    if factor is None:
        largest = perturbation.abs().max().item() if perturbation.numel() else 0.0
        factor = float(max(1, math.floor(0.5 / largest + 1e-3))) if largest > NO_PERTURBATION else 1.0
    return (0.5 + factor * perturbation).clamp(0, 1), factor


def to_image(picture: Tensor) -> Image.Image:
    """The nearest 8-bit image of a tensor C x H x W (or 1 x C x H x W), of mode L or RGB."""
    batch = _as_batch(picture)
    if len(batch) != 1:
        raise GapError(f"one picture was asked for, {len(batch)} were given")
    return _images(batch)[0]


def side_by_side(clean: Tensor, adversarial: Tensor, before: str, after: str) -> Image.Image:
    """Three panels: clean, perturbation amplified, perturbed, enlarged by a whole number to at least 224 pixels.

    `before` and `after`, for example predictions, are the captions of the first and the last panel; that of the middle
    one is the factor of amplification. Raises GapError when the two images differ in shape.
    """
    clean, perturbation, adversarial, factor = _with_perturbation(clean, adversarial)
    panels = [with_border(to_image(panel_image), PANEL) for panel_image in (clean, perturbation, adversarial)]
    width = max(PANEL, panels[0].width)
    size = max(14, width // 18)
    names = ("clean", "perturbation", "perturbed")
    captions = (before, f"\N{MULTIPLICATION SIGN} {factor:g}, around gray", after)
    layout = grid(
        [
            panels,
            [label(name, font(size, bold=True), width) for name in names],
            [label(caption, font(size), width, color=MUTED) for caption in captions],
        ],
        across=size,
        down=size // 3,
    )
    return ImageOps.expand(layout, size, PAPER)


def contact_sheet(rows: Sequence[ContactRow]) -> Image.Image:
    """For each attack, with a title: lines of clean thumbnails, amplified perturbations and perturbed thumbnails.

    All images of an attack are in one line, so that about ten are the practical maximum. They have one factor of
    amplification, which is shown at the left. Raises GapError when a row is empty or its parts do not match.
    """
    if not rows:
        raise GapError("a contact sheet needs at least one row of pictures")
    return ImageOps.expand(stack([_sheet_row(row) for row in rows], down=28), 18, PAPER)


def to_png_bytes(image: Image.Image) -> bytes:
    """The bytes of an optimized PNG file of the image."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_image(image: Image.Image | Tensor, path: str | Path) -> Path:
    """Write an image, or a tensor C x H x W as its nearest 8-bit image, to a PNG file atomically.

    Creates the folder. Raises GapError when the file cannot be written.
    """
    pil_image = to_image(image) if isinstance(image, Tensor) else image
    with atomic_write(path) as part:
        pil_image.save(part, format="PNG")
    return Path(path)


def _sheet_row(row: ContactRow) -> Image.Image:
    clean, perturbation, adversarial, factor = _with_perturbation(row.clean, row.adversarial)
    if len(row.captions) != len(clean):
        raise GapError(f"the row {row.title!r} has {len(clean)} pictures but {len(row.captions)} captions")
    lines = [
        [with_border(image, THUMBNAIL, at_most=PANEL) for image in _images(batch)]
        for batch in (clean, perturbation, adversarial)
    ]
    width, height = max(THUMBNAIL, lines[0][0].width), lines[0][0].height
    names = ("clean", f"perturbation\n\N{MULTIPLICATION SIGN} {factor:g}", "perturbed")
    named_lines = [
        [label(name, font(12), 92, color=MUTED, align="left", height=height), *line]
        for name, line in zip(names, lines, strict=True)
    ]
    captions = [label("", font(12), 92), *(label(caption, font(12), width) for caption in row.captions)]
    layout = grid([*named_lines, captions], across=8, down=8)
    return stack([label(row.title, font(16, bold=True), layout.width, align="left"), layout], down=10)


def _with_perturbation(clean: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Clean images, amplified perturbations and perturbed images, N x C x H x W in [0, 1], and the factor."""
    if clean.shape != adversarial.shape:
        raise GapError(
            f"clean and perturbed pictures differ in shape: {tuple(clean.shape)} and {tuple(adversarial.shape)}"
        )
    clean, adversarial = _as_batch(clean), _as_batch(adversarial)
    perturbation, factor = amplify(adversarial - clean)
    return clean, perturbation, adversarial, factor


def _as_batch(images: Tensor) -> Tensor:
    """The images as N x C x H x W floats in [0, 1] on the CPU; NaN is shown as black."""
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise GapError(
            f"cannot draw a tensor of shape {tuple(images.shape)}; a picture is C x H x W, a batch N x C x H x W"
        )
    images = images.detach().cpu().reshape(-1, *images.shape[-3:])
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise GapError(f"cannot draw pictures of {images.dtype}; use floats in [0, 1] or uint8")
    return images.float().nan_to_num(0).clamp(0, 1)


def _images(batch: Tensor) -> list[Image.Image]:
    channels = batch.shape[1]
    if channels == 2:
        batch = batch.mean(dim=1, keepdim=True)
    levels = batch[:, :3].mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image) for image in levels]
