"""Baselines that do not use the classifier: random noise and a checkerboard."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gap.core.errors import GapError
from gap.threat import Budget, as_budget


@dataclass(frozen=True)
class Noise:
    """Random noise with the norm of the whole budget, different for each image, clamped to [0, 1].

    Linf: a random sign times epsilon for each value. L2: a random direction (Gaussian) of norm epsilon. L1: changes of
    equal size in a few random values.
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
    """A checkerboard with squares of `side` pixels and the norm of the whole budget, for every image and channel.

    Its values are +-epsilon in Linf, and as large as epsilon allows in other norms. It is a strong baseline on small
    images (Co et al., 2021). Raises GapError when `side` is below 1.
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
