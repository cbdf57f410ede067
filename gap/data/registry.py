"""Data by name: the embedded digits, a published data set, or a folder of images."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from gap.core.errors import GapError, unknown_name_error
from gap.core.paths import expanded
from gap.data.adapters import DatasetSplit
from gap.data.dataset import Dataset, ImageFolderSplit, InMemorySplit, Split
from gap.data.image_folder import load_folder
from gap.data.names import FOLDER, default_root, list_datasets
from gap.data.torchvision_datasets import DATASETS, load_mnist_5k, load_published

LUMA = (0.299, 0.587, 0.114)


def load_data(
    name: str,
    root: str | Path | None = None,
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    download: bool = True,
) -> Dataset:
    """A dataset by its name, one of `list_datasets()`, in its own channels and size (H, W) or in the given ones.

    Each batch is converted to another size by an antialiased resize that covers it and a center crop, and between gray
    and RGB. Pixels stay uint8. A folder has no size of its own, so both arguments are required for it.

    Raises GapError for an unknown name, and for data that is missing, damaged or in a folder of unknown structure.
    """
    if name.startswith(FOLDER):
        if channels is None or size is None:
            raise GapError(f"{name} has no size of its own; name a classifier, whose channels and size are taken")
        return load_folder(name.removeprefix(FOLDER), channels, size)
    if name == "mnist-5k":
        data = load_mnist_5k()
    elif name in DATASETS:
        data = load_published(name, expanded(root) if root else default_root(), download)
    else:
        raise unknown_name_error("data", name, list_datasets())
    return converted(data, channels or data.channels, size or data.size)


def converted(data: Dataset, channels: int, size: tuple[int, int]) -> Dataset:
    """The dataset converted to `channels`, 1 or 3, and `size` (H, W).

    Raises GapError for another number of channels, and for splits that are not of gap's own classes.
    """
    if (channels, size) == (data.channels, data.size):
        return data
    if channels not in (1, 3):
        raise GapError(f"{data.name} can be had with 1 or 3 channels, not {channels}")
    if data.channels not in (1, 3):
        raise GapError(f"{data.name} has images of {data.channels} channels, and only 1 or 3 become {channels}")

    def convert_split(split: Split) -> Split:
        if isinstance(split, ImageFolderSplit):
            return replace(split, channels=channels, size=size)
        if isinstance(split, InMemorySplit | DatasetSplit):
            return replace(split, transform=partial(_convert, channels=channels, size=size))
        shapes = [
            "x".join(map(str, (count, *side_lengths)))
            for count, side_lengths in ((data.channels, data.size), (channels, size))
        ]
        raise GapError(
            f"{data.name} is of {shapes[0]} and is wanted at {shapes[1]}, which a {type(split).__name__} cannot be"
            " brought to; give it at that shape"
        )

    return replace(
        data,
        train=convert_split(data.train),
        validation=convert_split(data.validation),
        test=convert_split(data.test),
        channels=channels,
        size=size,
    )


def _convert(images: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """uint8 images converted to `channels` and `size`."""
    return _convert_channels(_resize_and_crop(images.float(), size), channels).round().clamp(0, 255).to(torch.uint8)


def _resize_and_crop(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images resized to cover H x W, then cropped at the center."""
    height, width = images.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    cover = (max(round(height * scale), size[0]), max(round(width * scale), size[1]))
    top, left = (cover[0] - size[0]) // 2, (cover[1] - size[1]) // 2
    resized = functional.interpolate(images, cover, mode="bilinear", antialias=True)
    return resized[..., top : top + size[0], left : left + size[1]]


def _convert_channels(images: Tensor, channels: int) -> Tensor:
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    return (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)
