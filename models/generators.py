"""Generators: networks from images in [0, 1] to an unbounded output of the same shape."""

from collections.abc import Sequence
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gap.core.errors import GapError, unknown_name_error

Architecture = Literal["unet", "autoencoder"]


class Generator(nn.Module):
    """Runs a network after pixel unshuffling (space to depth), for images of any size.

    Images N x C x H x W are padded to a multiple of `multiple` by repeating edge pixels, unshuffled by a factor of
    `pixel_unshuffle`, passed to `body`, shuffled back and cropped, so that the padding is not part of the output. On a
    CPU, a U-Net spends most of its time in convolutions at full resolution, which this avoids.
    """

    def __init__(self, body: nn.Module, pixel_unshuffle: int, stride: int) -> None:
        super().__init__()
        self.body = body
        self.pixel_unshuffle = pixel_unshuffle
        self.multiple = pixel_unshuffle * stride

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        top, left = (-height % self.multiple) // 2, (-width % self.multiple) // 2
        bottom, right = -height % self.multiple - top, -width % self.multiple - left
        padded = F.pad(images * 2 - 1, (left, right, top, bottom), mode="replicate")
        raw = F.pixel_shuffle(self.body(F.pixel_unshuffle(padded, self.pixel_unshuffle)), self.pixel_unshuffle)
        return raw[..., top : top + height, left : left + width]


class UniversalGenerator(nn.Module):
    """One unbounded output for all images: a generator whose input is a fixed uniform noise, or one of several noises.

    The statistics of its norms are those of the noise at every call. It is always in eval mode, so that the saved
    network is the trained one. At the coarsest scale, the noise has at least two positions in each direction, because
    norms need more than one value.
    """

    noise: Tensor

    def __init__(self, generator: Generator, channels: int, size: tuple[int, int], candidates: int = 1) -> None:
        super().__init__()
        self.generator = generator
        self.size = size
        for norm in generator.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.track_running_stats = False
                norm.running_mean = norm.running_var = norm.num_batches_tracked = None
        self.eval()
        self.register_buffer("noise", self._noise(candidates, channels))

    def forward(self, which: Tensor | None = None) -> Tensor:
        """The outputs K x C x H x W for K indices of noises, by default for all noises."""
        height, width = self.size
        noises = self.noise if which is None else self.noise[which]
        return torch.cat([self.generator(noise) for noise in noises.split(1)])[..., :height, :width]

    def train(self, mode: bool = True) -> "UniversalGenerator":
        return super().train(False)

    @torch.no_grad()
    def _noise(self, candidates: int, channels: int) -> Tensor:
        """Noise in the size of the images, or larger if norms at the coarsest scale need it: encoders may be deep."""
        min_side = 2 * self.generator.multiple
        while True:
            noise = torch.rand(candidates, channels, *(max(side, min_side) for side in self.size))
            try:
                self.generator(noise[:1])
                return noise
            except ValueError:  # a norm had a single value for each channel
                min_side *= 2
                if min_side > 64 * self.generator.multiple:
                    raise


class Discriminator(nn.Module):
    """An averaged patch discriminator of clean and adversarial images: N x C x H x W in [0, 1] to N logits."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images * 2 - 1).mean(dim=(1, 2, 3))


def make_generator(
    channels: int,
    *,
    architecture: Architecture = "unet",
    encoder: str = "vgg11_bn",
    weights: str | None = None,
    decoder: Sequence[int] = (64, 64),
    pixel_unshuffle: int = 4,
) -> Generator:
    """A generator for images of `channels` channels.

    `unet` is segmentation-models-pytorch's U-Net with any of its encoders, as deep as `decoder` is long;
    `weights` names pretrained encoder weights (downloaded); None is random weights. `autoencoder` is a network of
    convolutions and transposed convolutions without skip connections, with the same widths.
    """
    if pixel_unshuffle < 1 or not decoder or min(decoder) < 1:
        raise GapError(
            "a generator needs pixel_unshuffle >= 1 and positive decoder widths,"
            f" not pixel_unshuffle={pixel_unshuffle}, decoder={list(decoder)}"
        )
    unshuffled = channels * pixel_unshuffle * pixel_unshuffle
    if architecture == "autoencoder":
        return Generator(_autoencoder(unshuffled, list(decoder)), pixel_unshuffle, 2 ** len(decoder))
    return Generator(_unet(unshuffled, encoder, weights, list(decoder)), pixel_unshuffle, 2 ** len(decoder))


def _segmentation_models() -> ModuleType:
    """segmentation-models-pytorch with gap's encoders. It is imported here because that takes seconds."""
    import segmentation_models_pytorch
    from gap.models import encoders

    encoders.register()
    return segmentation_models_pytorch


def encoder_names() -> list[str]:
    """The encoders of segmentation-models-pytorch and gap; `tu-NAME` is any timm network with feature outputs."""
    return sorted(_segmentation_models().encoders.get_encoder_names())


def _unet(channels: int, encoder: str, weights: str | None, decoder: list[int]) -> nn.Module:
    if not encoder.startswith("tu-") and encoder not in encoder_names():
        raise unknown_name_error("encoder", encoder, encoder_names())
    try:
        unet = _segmentation_models().Unet(
            encoder_name=encoder,
            encoder_depth=len(decoder),
            encoder_weights=weights,
            decoder_channels=decoder,
            in_channels=channels,
            classes=channels,
        )
        return _remove_unused_modules(unet, torch.zeros(1, channels, *[2 ** (len(decoder) + 1)] * 2))
    except (RuntimeError, KeyError, ValueError, OSError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise GapError(f"cannot build a U-Net on the encoder {encoder!r} (weights {weights}): {line}") from error


def _remove_unused_modules(network: nn.Module, images: Tensor) -> nn.Module:
    """Remove modules that the forward pass does not use, such as the deep stages of an encoder of smaller depth.

    They would be saved in artifacts, and cause errors in several processes, which wait for all gradients.
    """
    used: set[nn.Module] = set()
    hooks = [module.register_forward_pre_hook(lambda module, _: used.add(module)) for module in network.modules()]
    with torch.enable_grad():
        network.eval()(images).sum().backward()
    for hook in hooks:
        hook.remove()
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            weights = list(child.parameters())
            if weights and child not in used and all(weight.grad is None for weight in weights):
                setattr(parent, name, nn.Identity())
    for weight in network.parameters():
        weight.requires_grad_(weight.grad is not None)
        weight.grad = None
    return network.train()


def _autoencoder(channels: int, decoder: list[int]) -> nn.Module:
    widths = decoder[::-1]
    layers: list[nn.Module] = []
    in_channels = channels
    for width in widths:
        layers += [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        in_channels = width
    for width in decoder:
        layers += [
            nn.ConvTranspose2d(in_channels, width, 4, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        in_channels = width
    return nn.Sequential(*layers, nn.Conv2d(in_channels, channels, 3, padding=1))
