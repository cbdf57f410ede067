"""What shakes a drawing between two looks at it, so that no network is pleased by pixels that happen to line up."""

import kornia.augmentation as K
from torch import Tensor, nn
from torch.nn import functional as F

# What lies around a picture that is padded.
GRAY = 0.5


class RandomTransform(nn.Module):
    """Images N x C x H x W moved by up to `jitter` pixels, turned by up to `rotate` degrees and scaled by up to `scale`
    (a share), each in its own way at each call, the edge repeated (Olah et al., 2017).

    `pad` pixels of gray are put around them first, for what happens at the border of a picture is the padding's doing;
    at last up to `crop` rows and columns go, so that no pixel lies at the same place of a stride every time.
    """

    def __init__(self, jitter: int = 8, rotate: float = 5.0, scale: float = 0.1, pad: int = 0, crop: int = 0) -> None:
        super().__init__()
        self.jitter, self.rotate, self.scale, self.pad, self.crop = jitter, rotate, scale, pad, crop

    def forward(self, images: Tensor) -> Tensor:
        images = F.pad(images, [self.pad] * 4, value=GRAY)
        height, width = images.shape[-2:]
        moves: list[nn.Module] = []
        if self.jitter or self.rotate or self.scale:
            shift = (min(1.0, self.jitter / width), min(1.0, self.jitter / height))
            scales = (1 - self.scale, 1 + self.scale)
            moves.append(K.RandomAffine(self.rotate, translate=shift, scale=scales, padding_mode="border", p=1.0))
        if self.crop:
            moves.append(K.RandomCrop((max(1, height - self.crop), max(1, width - self.crop))))
        for move in moves:
            images = move(images)
        return images
