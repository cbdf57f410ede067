"""Networks that draw a content in a style in one pass, out of what the layers of a backbone see of both.

Each makes a code of a style, and pictures of contents and codes. Codes of several styles can be mixed by adding them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gap.core.errors import unknown_name_error

# Against division by the spread of a channel that is silent.
TINY = 1e-5


class Decoder(nn.Module):
    """A picture out of maps of several resolutions, merged from the deepest to the shallowest.

    `widths` are the channels of the maps, the shallowest first.
    """

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        inside = 0
        for width in reversed(widths):
            outside = max(16, width // 2)
            blocks.append(nn.Sequential(_conv(inside + width, outside), nn.ReLU(), _conv(outside, outside), nn.ReLU()))
            inside = outside
        self.blocks = nn.ModuleList(blocks)
        self.last = _conv(inside, channels)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Pictures N x C x H x W in [0, 1] of that size."""
        deepest, *others = reversed(maps)
        drawn = self.blocks[0](deepest)
        for block, each in zip(self.blocks[1:], others, strict=True):
            drawn = block(torch.cat([F.interpolate(drawn, each.shape[-2:]), each], dim=1))
        return self.last(F.interpolate(drawn, size)).float().sigmoid()


class Stylizer(nn.Module, ABC):
    """Draws contents in styles. `scales` are the sizes that maps usually have, a number for each layer."""

    scales: Tensor

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.register_buffer("scales", torch.ones(layers))

    def normalize_scale(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps of all layers brought to one scale."""
        return [each.float() / scale for each, scale in zip(maps, self.scales, strict=True)]

    @abstractmethod
    def encode_style(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What is kept of styles whose maps these are, N x C x H x W for each layer: N codes for each layer."""

    @abstractmethod
    def forward(self, maps: Sequence[Tensor], code: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Pictures N x C x H x W in [0, 1] of contents whose maps these are, in the styles of N codes."""


class AdaINStylizer(Stylizer):
    """Every layer's map of the content is given the mean and spread that the style has in each channel (adaptive
    instance normalization, Huang and Belongie, 2017), at several resolutions."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__(len(widths))
        self.decoder = Decoder(widths, channels)

    def encode_style(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat(_moments(each), dim=1) for each in self.normalize_scale(maps)]

    def forward(self, maps: Sequence[Tensor], code: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        given = []
        for each, moments in zip(self.normalize_scale(maps), code, strict=True):
            mean, spread = _moments(each)
            new_mean, new_spread = moments.chunk(2, dim=1)
            given.append((each - mean) / spread * new_spread + new_mean)
        return self.decoder(given, size)


class GramStackStylizer(Stylizer):
    """The style's Gram matrices, laid out as pictures: those of all layers, resized to each map of the content, are
    stacked onto it as further channels.

    The plain form, for comparison: rows and columns of a Gram matrix mean channels, and next to one another on a canvas
    they mean nothing.
    """

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__(len(widths))
        self.decoder = Decoder([width + len(widths) for width in widths], channels)

    def encode_style(self, maps: Sequence[Tensor]) -> list[Tensor]:
        with torch.autocast(maps[0].device.type, enabled=False):
            flat = [each.flatten(2) for each in self.normalize_scale(maps)]
            return [each @ each.transpose(1, 2) / each.shape[2] for each in flat]

    def forward(self, maps: Sequence[Tensor], code: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        stacked = []
        for each in self.normalize_scale(maps):
            laid = [F.interpolate(gram[:, None], each.shape[-2:], mode="bilinear", antialias=True) for gram in code]
            stacked.append(torch.cat([each, *laid], dim=1))
        return self.decoder(stacked, size)


FORMS: dict[str, type[AdaINStylizer] | type[GramStackStylizer]] = {
    "adaptive": AdaINStylizer,
    "gram-maps": GramStackStylizer,
}


def make_stylizer(form: str, widths: Sequence[int], channels: int) -> Stylizer:
    """A fresh stylizer of one of FORMS for maps of these widths, the shallowest first; GapError for another form."""
    if form not in FORMS:
        raise unknown_name_error("form of stylizer", form, FORMS)
    return FORMS[form](widths, channels)


def _moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    return maps.mean(dim=(2, 3), keepdim=True), (maps.var(dim=(2, 3), correction=0, keepdim=True) + TINY).sqrt()


def _conv(inside: int, outside: int) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, padding=1, padding_mode="replicate")
