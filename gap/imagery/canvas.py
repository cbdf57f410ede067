"""Canvases: parameterizations of the images that are optimized."""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gap.threat import Budget

# A square root of the covariance of red, green and blue in photos, with its longest column scaled to 1. It was measured
# on 1,000 ImageNet photos at 64 pixels.
COLORS = ((0.56, 0.22, 0.06), (0.58, 0.00, -0.12), (0.59, -0.21, 0.06))


class Canvas(nn.Module):
    """Images N x C x H x W in [0, 1], computed from the parameter `weights`."""

    weights: nn.Parameter

    @abstractmethod
    def forward(self) -> Tensor:
        """The images."""

    def project_(self) -> None:
        """Project the weights onto their allowed values, after a step."""

    @torch.no_grad()
    def image(self) -> Tensor:
        """A copy of the present images, without a graph."""
        return self().detach().clone()


class PixelCanvas(Canvas):
    """Images whose weights are their pixels, with a budget around the initial images if given."""

    def __init__(self, init: Tensor, budget: Budget | None = None) -> None:
        super().__init__()
        self.init = init.detach().clone()
        self.budget = budget
        self.weights = nn.Parameter(init.detach().clone())

    def forward(self) -> Tensor:
        return self.weights.clone()

    def project_(self) -> None:
        perturbation = self.weights.data - self.init
        if self.budget is not None:
            perturbation = self.budget.project(perturbation)
        self.weights.data = (self.init + perturbation).clamp(0, 1)


class FourierCanvas(Canvas):
    """Images from a Fourier spectrum with decorrelated colors (Olah et al., 2017).

    High frequencies are scaled down, and colors are correlated, as in photos, so that the gradients of all weights have
    similar scales. The initial images are weak noise around gray; a sigmoid limits the images to [0, 1].
    """

    def __init__(self, count: int, channels: int, size: tuple[int, int], seed: int = 0) -> None:
        super().__init__()
        self.size = size
        self.scale: Tensor
        self.colors: Tensor
        height, width = size
        vertical, horizontal = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :]
        frequency = (vertical.square() + horizontal.square()).sqrt().clamp_min(1 / max(size))
        self.register_buffer("scale", (height * width) ** 0.5 / (frequency * max(size)))
        self.register_buffer("colors", torch.tensor(COLORS) if channels == 3 else torch.eye(channels))
        generator = torch.Generator().manual_seed(seed)
        shape = (count, channels, height, width // 2 + 1, 2)
        self.weights = nn.Parameter(0.01 * torch.randn(shape, generator=generator))

    def forward(self) -> Tensor:
        spectrum = torch.view_as_complex(self.weights) * self.scale
        waves = torch.fft.irfft2(spectrum, s=self.size, norm="ortho")
        colored = torch.einsum("ij,njhw->nihw", self.colors, waves)
        return (4 * colored).sigmoid()


def fit_size(picture: Tensor, side: int, *, enlarge: bool = False) -> tuple[int, int]:
    """The size with the image's aspect ratio and `side` pixels in its longer side; no larger unless `enlarge`."""
    height, width = picture.shape[-2:]
    factor = side / max(height, width)
    factor = factor if enlarge else min(1.0, factor)
    return max(1, round(height * factor)), max(1, round(width * factor))


def resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """An image C x H x W in [0, 1] resized to (H, W)."""
    if picture.shape[-2:] == size:
        return picture
    return F.interpolate(picture[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)
