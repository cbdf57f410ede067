"""Feed-forward stylizers: networks that draw a content in a style from a backbone's feature maps of both.

They encode a style to a code, and decode the maps of a content and a code to an image. Codes of several styles can be
mixed by adding them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gap.core.errors import unknown_name_error

# Added to the variance of a channel, which may be 0.
TINY = 1e-5


class Decoder(nn.Module):
    """Decodes maps of several resolutions to an image, from the deepest to the shallowest.

    `widths` are the channels of the maps, from the shallowest to the deepest.
    """

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        in_channels = 0
        for width in reversed(widths):
            out_channels = max(16, width // 2)
            blocks.append(
                nn.Sequential(
                    _conv(in_channels + width, out_channels), nn.ReLU(), _conv(out_channels, out_channels), nn.ReLU()
                )
            )
            in_channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.last = _conv(in_channels, channels)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Images N x C x H x W in [0, 1], with `size` as (H, W)."""
        deepest, *others = reversed(maps)
        features = self.blocks[0](deepest)
        for block, layer_maps in zip(self.blocks[1:], others, strict=True):
            features = block(torch.cat([F.interpolate(features, layer_maps.shape[-2:]), layer_maps], dim=1))
        return self.last(F.interpolate(features, size)).float().sigmoid()


class Stylizer(nn.Module, ABC):
    """The base of stylizers. `scales` are the typical magnitudes of the maps, one number for each layer."""

    scales: Tensor

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.register_buffer("scales", torch.ones(layers))

    def normalize_scale(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps of all layers divided by their typical magnitudes."""
        return [layer_maps.float() / scale for layer_maps, scale in zip(maps, self.scales, strict=True)]

    @abstractmethod
    def encode_style(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The codes of N styles for each layer, from their maps N x C x H x W for each layer."""

    @abstractmethod
    def forward(self, maps: Sequence[Tensor], code: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Images N x C x H x W in [0, 1] from the maps of N contents and the codes of N styles."""


class AdaINStylizer(Stylizer):
    """Adaptive instance normalization at several resolutions (Huang and Belongie, 2017).

    Each channel of the content's maps gets the mean and the standard deviation of the style in that channel.
    """

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__(len(widths))
        self.decoder = Decoder(widths, channels)

    def encode_style(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat(_moments(layer_maps), dim=1) for layer_maps in self.normalize_scale(maps)]

    def forward(self, maps: Sequence[Tensor], code: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        normalized = []
        for layer_maps, moments in zip(self.normalize_scale(maps), code, strict=True):
            mean, std = _moments(layer_maps)
            new_mean, new_std = moments.chunk(2, dim=1)
            normalized.append((layer_maps - mean) / std * new_std + new_mean)
        return self.decoder(normalized, size)


class GramStackStylizer(Stylizer):
    """Gram matrices of the style as additional channels: they are resized like images to each map of the content.

    This is a baseline: the rows and columns of a Gram matrix are channels, which have no spatial meaning.
    """

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__(len(widths))
        self.decoder = Decoder([width + len(widths) for width in widths], channels)

    def encode_style(self, maps: Sequence[Tensor]) -> list[Tensor]:
        with torch.autocast(maps[0].device.type, enabled=False):
            flat = [layer_maps.flatten(2) for layer_maps in self.normalize_scale(maps)]
            return [layer_maps @ layer_maps.transpose(1, 2) / layer_maps.shape[2] for layer_maps in flat]

    def forward(self, maps: Sequence[Tensor], code: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        stacked = []
        for layer_maps in self.normalize_scale(maps):
            resized_grams = [
                F.interpolate(gram[:, None], layer_maps.shape[-2:], mode="bilinear", antialias=True) for gram in code
            ]
            stacked.append(torch.cat([layer_maps, *resized_grams], dim=1))
        return self.decoder(stacked, size)


FORMS: dict[str, type[AdaINStylizer] | type[GramStackStylizer]] = {
    "adaptive": AdaINStylizer,
    "gram-maps": GramStackStylizer,
}


def make_stylizer(form: str, widths: Sequence[int], channels: int) -> Stylizer:
    """A new stylizer of one of FORMS, for maps of these widths, shallowest first. Raises GapError for other forms."""
    if form not in FORMS:
        raise unknown_name_error("form of stylizer", form, FORMS)
    return FORMS[form](widths, channels)


def _moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    return maps.mean(dim=(2, 3), keepdim=True), (maps.var(dim=(2, 3), correction=0, keepdim=True) + TINY).sqrt()


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, padding_mode="replicate")
