"""The image that is being drawn."""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gap.threat import Budget

# How the red, green and blue of photographs vary together: a square root of their covariance, its longest column scaled
# to 1. Measured on 1,000 ImageNet photos at 64 pixels.
COLORS = ((0.56, 0.22, 0.06), (0.58, 0.00, -0.12), (0.59, -0.21, 0.06))


class Canvas(nn.Module):
    """Images that an objective moves: its `weights`, drawn as N x C x H x W in [0, 1]."""

    weights: nn.Parameter

    @abstractmethod
    def forward(self) -> Tensor:
        """The images."""

    def project_(self) -> None:
        """Bring the weights back to where they may be, after a move."""

    @torch.no_grad()
    def image(self) -> Tensor:
        """The images as they are, apart from the canvas."""
        return self().detach().clone()


class PixelCanvas(Canvas):
    """Moved pixel by pixel; with a budget, never further from where they began."""

    def __init__(self, init: Tensor, budget: Budget | None = None) -> None:
        super().__init__()
        self.init = init.detach().clone()
        self.budget = budget
        self.weights = nn.Parameter(init.detach().clone())

    def forward(self) -> Tensor:
        return self.weights.clone()

    def project_(self) -> None:
        moved = self.weights.data - self.init
        if self.budget is not None:
            moved = self.budget.project(moved)
        self.weights.data = (self.init + moved).clamp(0, 1)


class FourierCanvas(Canvas):
    """Drawn from a spectrum whose fine waves are scaled down as those of photographs are, in colors that vary together
    as theirs do (Olah et al., 2017): what an objective moves is even, so no frequency and no color shouts.

    Begins as faint noise around gray; a sigmoid keeps the images inside [0, 1].
    """

    def __init__(self, count: int, channels: int, size: tuple[int, int], seed: int = 0) -> None:
        super().__init__()
        self.size = size
        self.scale: Tensor
        self.colors: Tensor
        height, width = size
        down, across = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :]
        frequency = (down.square() + across.square()).sqrt().clamp_min(1 / max(size))
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
    """A size of the picture's own shape whose longer side has so many pixels; a smaller one may keep its size."""
    height, width = picture.shape[-2:]
    factor = side / max(height, width)
    factor = factor if enlarge else min(1.0, factor)
    return max(1, round(height * factor)), max(1, round(width * factor))


def resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture C x H x W in [0, 1] at another size."""
    if picture.shape[-2:] == size:
        return picture
    return F.interpolate(picture[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)
