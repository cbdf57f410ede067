"""Conversion of items and batches of a user's data: images to 8-bit tensors, labels to class indices."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gap.core.errors import GapError, first_line
from gap.data.images import flatten

# The possible keys of the image and of the label in a mapping; the first existing one is used.
IMAGE_KEYS = ("image", "img", "images", "pixel_values")
LABEL_KEYS = ("label", "labels", "fine_label", "target", "class")
# The possible numbers of channels of an image; the fourth channel is transparency.
CHANNELS = (1, 3, 4)
# The largest rounding error of floats outside of [0, 1].
TOLERANCE = 1e-4


def image_and_label(item: Any) -> tuple[Any, Any]:
    """The image and the label of an item, or the images and the labels of a batch.

    An item is a mapping with keys such as "image" and "label", or a sequence that begins with both. Raises GapError for
    anything else.
    """
    if isinstance(item, Mapping):
        image, label = (next((key for key in names if key in item), None) for names in (IMAGE_KEYS, LABEL_KEYS))
        if image is not None and label is not None:
            return item[image], item[label]
        raise GapError(f"an item of the data has the keys {', '.join(map(str, item))}; name them image and label")
    if isinstance(item, tuple | list) and len(item) >= 2:
        return item[0], item[1]
    raise GapError(f"an item of the data is an image and its label, not a {type(item).__name__}")


def read_batch(batch: Any) -> tuple[Tensor, Tensor]:
    """The images, uint8 N x C x H x W, and the labels, int64, of a value that a DataLoader yields.

    That is a batch of images with their labels, a list of items, or a single item.
    """
    if isinstance(batch, tuple | list) and batch and all(map(_is_item, batch)):
        images, labels = zip(*map(image_and_label, batch), strict=True)
        return batch_levels(images), label_indices(labels)
    images, labels = image_and_label(batch)
    if is_image(images) and _is_single(images, labels):
        return image_levels(images)[None], torch.tensor([label_index(labels)])
    return batch_levels(images), label_indices(labels)


def is_columns(data: Any) -> bool:
    """Whether data is a pair: all images, as an array or a list of images, and all labels."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    images, labels = data
    listed = isinstance(images, tuple | list) and len(images) > 0 and all(map(is_image, images))
    return (_is_array(images) or listed) and (_is_array(labels) or isinstance(labels, tuple | list))


def is_image(value: Any) -> bool:
    """Whether a value is an image: a PIL image, or an array of two dimensions or more."""
    return isinstance(value, Image.Image) or (_is_array(value) and value.ndim >= 2)


def is_image_list(data: Any) -> bool:
    """Whether data is images without labels: an array of N images, or a list of images, each with its channels."""
    if _is_array(data):
        return len(data.shape) == 4
    if not isinstance(data, tuple | list) or not data:
        return False
    return all(is_image(item) and (isinstance(item, Image.Image) or len(item.shape) == 3) for item in data)


def image_levels(image: Any) -> Tensor:
    """An image as uint8 C x H x W, from a tensor C x H x W or H x W, an array, also H x W x C, or a PIL image.

    PIL images are converted to 8 bits without transparency, as files are. Raises GapError for other shapes and for
    pixels outside of [0, 1].
    """
    if isinstance(image, Image.Image):
        pixels = torch.from_numpy(np.array(flatten(image)))
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
    if not _is_array(image):
        raise GapError(f"an image of the data is a tensor, an array or a PIL image, not a {type(image).__name__}")
    pixels = as_tensor(image, "pixels")
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3:
        raise GapError(f"an image of the data is C x H x W, not of the shape {tuple(pixels.shape)}")
    if not _is_channels_last(pixels.shape):
        return _as_levels(pixels)
    if isinstance(image, Tensor):
        raise GapError(
            f"an image of the data is C x H x W, and this one seems to be H x W x C, {_by(pixels.shape)}; give"
            " image.permute(2, 0, 1)"
        )
    levels = _as_levels(pixels)
    if levels.shape[2] == 4:
        return image_levels(Image.fromarray(levels.numpy()))
    return levels.permute(2, 0, 1).contiguous()


def batch_levels(images: Any) -> Tensor:
    """Images as uint8 N x C x H x W.

    `images` is a tensor of that shape, an array, which may also be N x H x W x C, or a list of images of one shape for
    `image_levels`.
    """
    if isinstance(images, tuple | list):
        return stack([image_levels(image) for image in images])
    if not _is_array(images):
        raise GapError(f"images are a tensor, an array or a list of images, not a {type(images).__name__}")
    pixels = as_tensor(images, "pixels")
    if pixels.ndim != 4:
        hint = "; add the channels: images[:, None]" if pixels.ndim == 3 else ""
        raise GapError(f"images are N x C x H x W, not of the shape {tuple(pixels.shape)}{hint}")
    if not _is_channels_last(pixels.shape[1:]):
        return _as_levels(pixels)
    if isinstance(images, Tensor):
        raise GapError(
            f"images are N x C x H x W, and these seem to be N x H x W x C, {_by(pixels.shape)}; give"
            " images.permute(0, 3, 1, 2)"
        )
    return stack([image_levels(image) for image in images])


def stack(images: Sequence[Tensor]) -> Tensor:
    """Images of one shape as one tensor. Raises GapError where the shapes differ."""
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        sizes = " and ".join(_by(shape) for shape in sorted(shapes)[:2])
        raise GapError(f"the images of the data differ in size ({sizes}); add a transform that resizes them")
    return torch.stack(list(images))


def label_index(label: Any) -> int:
    """The class index of a label: a whole number, alone or in an array, or a one-hot vector."""
    if isinstance(label, int | float | list | tuple | np.generic | np.ndarray | Tensor):
        values = as_tensor(label, "labels")
        return int(label_indices(values.reshape(1) if values.numel() == 1 else values[None])[0])
    raise GapError(f"a label is the index of a class, not {label!r}")


def label_indices(labels: Any) -> Tensor:
    """The class indices of labels as int64: N whole numbers, N x 1, or N x K with one-hot rows.

    Raises GapError for other labels, such as probabilities of several classes.
    """
    if isinstance(labels, tuple | list) and not all(isinstance(label, int) for label in labels):
        return torch.tensor([label_index(label) for label in labels], dtype=torch.int64)
    values = as_tensor(labels, "labels").cpu()
    values = values if values.is_floating_point() else values.to(torch.int64)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values.squeeze(1)
    if values.ndim == 2 and values.shape[1] > 1:
        if not bool(((values == 0) | (values == 1)).all() and (values.sum(dim=1) == 1).all()):
            raise GapError(
                f"labels {_by(values.shape)} need a single 1 in each row, and 0 elsewhere; give class indices"
            )
        return values.to(torch.int64).argmax(dim=1)
    indices = values.to(torch.int64)
    if values.ndim != 1 or not bool((indices == values).all()):
        raise GapError(f"labels are one whole number for each image, not {tuple(values.shape)} of {values.dtype}")
    if len(indices) and int(indices.min()) < 0:
        raise GapError(f"labels are indices of classes, 0 or more, not {int(indices.min())}")
    return indices


def as_tensor(value: Any, description: str) -> Tensor:
    """Numbers, or an array with any strides, as a tensor. Raises GapError for any other value."""
    if isinstance(value, np.ndarray) and not (value.flags.writeable and value.flags.c_contiguous):
        value = value.copy()
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise GapError(f"{description} are numbers, not a {type(value).__name__} ({first_line(error)})") from error


def _is_item(value: Any) -> bool:
    """Whether an entry of a list is an item, and not all images or all labels of a batch."""
    if isinstance(value, Mapping):
        return True
    return isinstance(value, tuple | list) and len(value) >= 2 and is_image(value[0]) and not is_image(value[1])


def _is_single(image: Any, label: Any) -> bool:
    """Whether these are one image and its label, and not a batch of images without channels and their labels."""
    if isinstance(image, Image.Image):
        return True
    count = len(label) if isinstance(label, tuple | list) or (_is_array(label) and label.ndim) else 1
    return image.ndim < 4 and (count == 1 or count != len(image))


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _is_channels_last(shape: Sequence[int]) -> bool:
    """Whether three sizes can only be height, width and channels."""
    return shape[2] in CHANNELS and shape[0] not in CHANNELS


def _by(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


def _as_levels(images: Tensor) -> Tensor:
    """Pixels as uint8: floats in [0, 1] are rounded to 8 bits, and true is white."""
    if images.dtype == torch.uint8:
        return images
    if images.dtype == torch.bool:
        return images.to(torch.uint8) * 255
    if not images.is_floating_point():
        hint = "; images.to(torch.uint8) where they go from 0 to 255" if not images.is_complex() else ""
        raise GapError(f"pixels are uint8 or floats in [0, 1], not {images.dtype}{hint}")
    if not images.numel():
        return images.to(torch.uint8)
    low, high = images.min().item(), images.max().item()
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        raise GapError(
            f"pixels are floats in [0, 1], and these go from {low:.3g} to {high:.3g}; leave normalization out of the"
            " data and give it to the classifier: gap.Classifier(model, mean=..., std=...)"
        )
    return images.float().mul(255).round().clamp(0, 255).to(torch.uint8)
