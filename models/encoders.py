"""A small encoder for segmentation-models-pytorch's U-Net, designed for CPUs and registered as an additional encoder.

The encoders for ImageNet begin with a large kernel, a max pooling and residual stages, which are slow on small images.
This encoder consists of 4 x 4 stride-2 convolutions with BatchNorm, all of the same width.
"""

from itertools import pairwise

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn

WIDTHS = (32, 64, 96, 128)


class StridedEncoder(nn.Module, EncoderMixin):
    """`depth` stages with `width` channels, each of which halves the size."""

    def __init__(self, width: int, depth: int = 5, output_stride: int = 32) -> None:
        super().__init__()
        self._depth = depth
        self._output_stride = output_stride
        self._in_channels = 3
        self._out_channels = [3] + [width] * depth
        widths = self._out_channels
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(in_width, out_width, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(out_width),
                nn.ReLU(inplace=True),
            )
            for in_width, out_width in pairwise(widths)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        features = [images]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features


def register() -> None:
    """Register `strided-32`, `strided-64`, ... in segmentation-models-pytorch."""
    for width in WIDTHS:
        smp.encoders.encoders[f"strided-{width}"] = {
            "encoder": StridedEncoder,
            "pretrained_settings": {},
            "params": {"width": width},
        }
