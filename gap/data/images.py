"""Image files: listing them, and loading any format as 8-bit tensors."""

import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from gap.core.errors import GapError, GapWarning
from gap.core.paths import exists, is_folder

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
# Folders of operating systems, notebooks and network drives, in lower case.
SYSTEM_FOLDERS = (
    "__macosx", "__pycache__", "@eadir", "@recycle", "#recycle", "$recycle.bin", "lost+found", "recycler",
    "system volume information",
)  # fmt: skip
MODES = {1: "L", 3: "RGB"}
# Pillow's modes of gray images with 8 bits or fewer; the modes with 16 and 32 bits begin with I or F.
GRAY_MODES = ("1", "L", "LA", "La")
# The possible values of white, by the kind of a numpy type; the smallest that no pixel exceeds is taken.
WHITE_LEVELS = {"u": (65535,), "i": (65535, 2**31 - 1), "f": (1.0, 255.0, 65535.0)}
READ_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError, MemoryError,
    RuntimeError, struct.error, Image.DecompressionBombError,
)  # fmt: skip


ImageLike = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor


def load_image(path: str | Path, channels: int, size: tuple[int, int] | None = None) -> Tensor:
    """An image file as uint8 C x H x W, where C is 1 (gray) or 3 (RGB).

    With `size` (H, W) the image is resized, antialiased, to cover it and cropped at the center. The EXIF orientation is
    applied. Transparent pixels are blended with white. Of several frames the first is used, with a warning. Pixels of
    more than 8 bits are scaled, not clipped: white is 65535 for 16-bit pixels and for 32-bit integers (2**31 - 1 if any
    is larger). For floats it is the smallest of 1, 255 and 65535 that no pixel exceeds.

    Raises GapError, with the file's name, for a path that is missing, empty, a folder, not an image, damaged, or larger
    than Pillow's limit for decompression bombs.
    """
    mode = _mode(channels)
    try:
        with Image.open(path) as image:
            _check_bomb(image)
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                warnings.warn(f"{path} has {frames} frames; only the first is used", GapWarning, stacklevel=2)
            flat = _flatten_alpha(_eight_bit(ImageOps.exif_transpose(image))).convert(mode)
            if size is not None:
                flat = ImageOps.fit(flat, (size[1], size[0]), Image.Resampling.BILINEAR)
    except READ_ERRORS as error:
        raise GapError(f"{path} {_error_message(path, error)}") from error
    pixels = torch.from_numpy(np.array(flat))
    return pixels.reshape(*pixels.shape[:2], channels).permute(2, 0, 1).contiguous()


def as_image(image: ImageLike, channels: int, size: tuple[int, int] | None = None) -> Tensor:
    """An image in any form as float32 C x H x W in [0, 1].

    Args:
        image: a path, a PIL image, an array H x W x C or H x W, or a tensor C x H x W, H x W or 1 x C x H x W; uint8 or
            floats in [0, 1].
        channels: 1 (gray) or 3 (RGB): the image is converted.
        size: (H, W): the image is resized to cover it and cropped at the center. By default it is not resized.

    Raises:
        GapError: for a file that cannot be read, another shape, and pixels outside of [0, 1].
    """
    if isinstance(image, str | Path):
        return load_image(image, channels, size).float() / 255
    if isinstance(image, Tensor):
        image = Image.fromarray(_tensor_levels(image))
    elif isinstance(image, np.ndarray):
        image = Image.fromarray(_levels(image))
    if not isinstance(image, Image.Image):
        raise GapError(f"an image is a path, a PIL image, an array or a tensor, not a {type(image).__name__}")
    flat = flatten(image).convert(_mode(channels))
    if size is not None:
        flat = ImageOps.fit(flat, (size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(flat))
    return pixels.reshape(*pixels.shape[:2], channels).permute(2, 0, 1).float() / 255


def flatten(picture: Image.Image) -> Image.Image:
    """A PIL image converted to 8 bits per channel without transparency: gray images to mode L, others to mode RGB.

    Raises GapError for pixels that cannot be decoded, or whose scale is unknown.
    """
    try:
        gray = picture.mode in GRAY_MODES or _is_deep(picture)
        return _flatten_alpha(_eight_bit(picture)).convert("L" if gray else "RGB")
    except READ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise GapError(f"a PIL image of mode {picture.mode} cannot be used ({reason})") from error


def _tensor_levels(image: Tensor) -> np.ndarray[Any, Any]:
    """A tensor C x H x W as uint8 H x W x C, or H x W where C is 1."""
    pixels = image.detach().cpu()
    if pixels.ndim == 4 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3, 4):
        raise GapError(f"an image is a tensor C x H x W of 1 or 3 channels, not of the shape {tuple(image.shape)}")
    pixels = pixels.float() if pixels.is_floating_point() else pixels
    return _levels(pixels.permute(1, 2, 0).numpy())


def _levels(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array of uint8, or of floats in [0, 1] rounded to 8 bits."""
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise GapError(f"an image is an array H x W x C of 1 or 3 channels, not of the shape {pixels.shape}")
    if pixels.dtype != np.uint8:
        if not np.issubdtype(pixels.dtype, np.floating) or not (pixels.min() >= -1e-4 and pixels.max() <= 1 + 1e-4):
            span = f"{pixels.dtype} from {pixels.min():g} to {pixels.max():g}"
            raise GapError(f"pixels are uint8 or floats in [0, 1], not {span}")
        pixels = np.clip(pixels * 255, 0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def find_pictures(path: str | Path) -> list[Path]:
    """The image files of a folder and its subfolders, as in `list_pictures`, or the single file.

    Raises GapError where the path does not exist, or the folder has no images.
    """
    path = Path(path)
    if not exists(path):
        raise GapError(f"{path} does not exist; name a picture file or a folder of pictures")
    if not is_folder(path):
        return [path]
    paths = list_pictures(path)
    if not paths:
        raise GapError(f"{path} holds no pictures ({' '.join(SUFFIXES)})")
    return paths


def list_pictures(folder: Path) -> list[Path]:
    """The image files of a folder and its subfolders, by suffix, sorted.

    Hidden files and folders, and folders of operating systems, are left out.
    """
    paths = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_system_file(name)]
        paths += [path for name in names if is_image(path := Path(parent, name))]
    return sorted(paths)


def is_system_file(folder: str) -> bool:
    """Whether a folder of this name is hidden, or one of operating systems, so that its images are not the user's."""
    return folder.startswith(".") or folder.lower() in SYSTEM_FOLDERS


def is_image(path: Path) -> bool:
    """Whether the name of a file is that of an image: a known suffix, not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _mode(channels: int) -> str:
    if channels not in MODES:
        raise GapError(f"picture files have 1 or 3 channels here, not {channels}")
    return MODES[channels]


def _check_bomb(image: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError


def _eight_bit(image: Image.Image) -> Image.Image:
    """Images of 16 or 32 bits scaled to 8 bits; other images unchanged."""
    if not _is_deep(image):
        return image
    pixels = np.asarray(image)
    white = next((white for white in WHITE_LEVELS[pixels.dtype.kind] if pixels.max() <= white), None)
    if white is None or not pixels.min() >= 0:
        raise ValueError(f"pixels from {pixels.min()} to {pixels.max()}, no known scale")
    return Image.fromarray(np.rint(pixels * (255 / white)).astype(np.uint8))


def _is_deep(image: Image.Image) -> bool:
    """Whether an image has gray levels of 16 or 32 bits."""
    return image.mode.startswith(("I", "F"))


def _flatten_alpha(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    opaque = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")


def _error_message(path: str | Path, error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return "does not exist; name a picture file"
        case IsADirectoryError():
            return "is a folder; name a picture file"
        case PermissionError():
            return "may not be read; change its permissions"
        case Image.DecompressionBombError():
            return f"has more pixels than is safe to decode ({Image.MAX_IMAGE_PIXELS}); make it smaller"
        case UnidentifiedImageError() if Path(path).stat().st_size == 0:
            return "is an empty file; save the picture again"
        case UnidentifiedImageError():
            return "is not a picture that can be read; save it as PNG or JPEG"
    return f"is a damaged picture ({' '.join(str(error).split()) or type(error).__name__}); save it again"
