"""Random transforms of a drawing between evaluations, so that the objective does not depend on exact positions."""

import kornia.augmentation as K
from torch import Tensor, nn
from torch.nn import functional as F

# The value of the padding.
GRAY = 0.5


class RandomTransform(nn.Module):
    """Random transforms of images N x C x H x W, different for each image and call (Olah et al., 2017).

    Args:
        jitter: the largest translation, in pixels, with repeated borders.
        rotate: the largest rotation, in degrees.
        scale: the largest relative change of the scale.
        pad: pixels of gray padding, which is added first: the network's own padding causes artifacts at borders.
        crop: rows and columns that a random crop removes at the end, so that the alignment of pixels to strides varies.
    """

    def __init__(self, jitter: int = 8, rotate: float = 5.0, scale: float = 0.1, pad: int = 0, crop: int = 0) -> None:
        super().__init__()
        self.jitter, self.rotate, self.scale, self.pad, self.crop = jitter, rotate, scale, pad, crop

    def forward(self, images: Tensor) -> Tensor:
        images = F.pad(images, [self.pad] * 4, value=GRAY)
        height, width = images.shape[-2:]
        transforms: list[nn.Module] = []
        if self.jitter or self.rotate or self.scale:
            shift = (min(1.0, self.jitter / width), min(1.0, self.jitter / height))
            scales = (1 - self.scale, 1 + self.scale)
            transforms.append(K.RandomAffine(self.rotate, translate=shift, scale=scales, padding_mode="border", p=1.0))
        if self.crop:
            transforms.append(K.RandomCrop((max(1, height - self.crop), max(1, width - self.crop))))
        for transform in transforms:
            images = transform(images)
        return images
