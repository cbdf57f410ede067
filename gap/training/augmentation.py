"""What training does to pictures so that what is learned holds on others."""

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
    """Changes images N x C x H x W of that size, each in its own way, and keeps their size.

    Each is moved by up to `shift` whole pixels; turned by up to `rotate` degrees, each way, and enlarged or made
    smaller by up to a share `scale`, both between pixels, its edge repeated; mirrored half of the time if `flip`; and
    cut to a random part, at least `crop` of each side, and enlarged again.
    """
    height, width = size
    parts: list[nn.Module] = []
    if shift:
        share = (min(1.0, shift / width), min(1.0, shift / height))
        parts.append(K.RandomAffine(0.0, translate=share, padding_mode="border", resample="nearest", p=1.0))
    if rotate or scale:
        parts.append(K.RandomAffine(rotate, scale=(1 - scale, 1 + scale), padding_mode="border", p=1.0))
    if flip:
        parts.append(K.RandomHorizontalFlip())
    if crop < 1:
        ratio = (width / height, width / height)
        parts.append(K.RandomResizedCrop(size, scale=(crop**2, 1.0), ratio=ratio, cropping_mode="resample"))
    return Float32Sequential(*parts)


class Float32Sequential(nn.Sequential):
    """A chain that computes in the precision of its images also where networks multiply in bfloat16: rounded to 8 bits,
    coordinates are off by whole pixels."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            changed: Tensor = super().forward(images)
        return changed
