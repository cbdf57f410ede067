"""The controls that learn nothing: what a budget does to a classifier without any knowledge of it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gap.core.errors import GapError
from gap.threat import Budget, as_budget


@dataclass(frozen=True)
class Noise:
    """Random noise of the whole budget, new for each image, clamped to [0, 1].

    Linf: a random sign times epsilon for each value. L2: a random direction (Gaussian) of length epsilon. L1: a few
    random values, evenly.
    """

    budget: Budget
    name: str = "noise"

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", as_budget(self.budget))

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        noise = self.budget.epsilon * self.budget.norm.steepest(torch.randn_like(images))
        return (images + self.budget.project(noise)).clamp(0, 1).detach()


@dataclass(frozen=True)
class Checkerboard:
    """A checkerboard of squares of `side` pixels over the whole budget, the same for every image and channel.

    Its squares are +-epsilon in Linf; in other norms they are as high as epsilon allows. A strong control on small
    pictures (Co et al., 2021). Raises GapError when `side` is below 1.
    """

    budget: Budget
    side: int = 4
    name: str = "checkerboard"

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", as_budget(self.budget))
        if self.side < 1:
            raise GapError(f"a checkerboard needs a side of at least 1 pixel, not {self.side}")

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        _, channels, height, width = images.shape
        rows = torch.arange(height, device=images.device).div(self.side, rounding_mode="floor")
        columns = torch.arange(width, device=images.device).div(self.side, rounding_mode="floor")
        board = (1 - 2 * ((rows[:, None] + columns) % 2)).to(images.dtype).expand(1, channels, height, width)
        value = self.budget.epsilon / self.budget.norm_of(board).view(-1, 1, 1, 1)
        return (images + self.budget.project(value * board)).clamp(0, 1).detach()
