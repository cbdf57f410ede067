"""Augmentation of training images."""

import kornia.augmentation as K
import torch
from torch import Tensor, nn


def make_augmentation(
    size: tuple[int, int],
    *,
    shift: int = 0,
    rotate: float = 0.0,
    scale: float = 0.0,
    flip: bool = False,
    crop: float = 1.0,
) -> nn.Module:
    """Random changes of images N x C x H x W, different for each image, that keep their size (H, W).

    Args:
        size: (H, W) of the images.
        shift: the largest translation, in whole pixels.
        rotate: the largest rotation in either direction, in degrees, with interpolation and repeated borders.
        scale: the largest relative change of the scale, with interpolation and repeated borders.
        flip: whether half of the images are mirrored.
        crop: the smallest share of each side that a random crop keeps; the crop is resized to `size`.
    """
    height, width = size
    parts: list[nn.Module] = []
    if shift:
        translation = (min(1.0, shift / width), min(1.0, shift / height))
        parts.append(K.RandomAffine(0.0, translate=translation, padding_mode="border", resample="nearest", p=1.0))
    if rotate or scale:
        parts.append(K.RandomAffine(rotate, scale=(1 - scale, 1 + scale), padding_mode="border", p=1.0))
    if flip:
        parts.append(K.RandomHorizontalFlip())
    if crop < 1:
        ratio = (width / height, width / height)
        parts.append(K.RandomResizedCrop(size, scale=(crop**2, 1.0), ratio=ratio, cropping_mode="resample"))
    return Float32Sequential(*parts)


class Float32Sequential(nn.Sequential):
    """A Sequential that computes in the precision of its images, also under autocast.

    With the 8 bits of bfloat16's mantissa, coordinates would be off by whole pixels.
    """

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            output: Tensor = super().forward(images)
        return output
