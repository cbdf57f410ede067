"""What shakes a drawing between two looks at it, so that no network is pleased by pixels that happen to line up."""

import kornia.augmentation as K
from torch import Tensor, nn


class Shaken(nn.Module):
    """Images N x C x H x W moved by up to `jitter` pixels, turned by up to `rotate` degrees and scaled by up to `scale`
    (a share), each in its own way at each call, the edge repeated (Olah et al., 2017)."""

    def __init__(self, jitter: int = 8, rotate: float = 5.0, scale: float = 0.1) -> None:
        super().__init__()
        self.jitter, self.rotate, self.scale = jitter, rotate, scale

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        shaken = K.RandomAffine(
            self.rotate,
            translate=(min(1.0, self.jitter / width), min(1.0, self.jitter / height)),
            scale=(1 - self.scale, 1 + self.scale),
            padding_mode="border",
            p=1.0,
        )(images)
        assert isinstance(shaken, Tensor)
        return shaken
