"""Small classifiers and pictures for the tests of the attacks: no training, no files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn


@dataclass
class Pictures:
    """Pictures, their labels, and a network that tells them apart by curved boundaries."""

    images: Tensor
    labels: Tensor
    net: nn.Module

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.images.split(50), self.labels.split(50), strict=True)

    def accuracy(self, images: Tensor) -> float:
        with torch.no_grad():
            return (self.net(images).argmax(dim=1) == self.labels).double().mean().item()


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    """200 noisy 12 x 12 pictures of four faint patterns, and random tanh features with a ridge regression on top."""
    generator = torch.Generator().manual_seed(0)
    patterns = 0.5 + 0.3 * (torch.rand(4, 1, 12, 12, generator=generator) - 0.5)
    labels = torch.arange(200) % 4
    images = (patterns[labels] + 0.15 * torch.randn(200, 1, 12, 12, generator=generator)).clamp(0, 1)

    hidden, output = nn.Linear(144, 256), nn.Linear(256, 4)
    hidden.weight.data = torch.randn(256, 144, generator=generator) / 2
    hidden.bias.data = -hidden.weight.data.sum(dim=1) / 2
    features = torch.tanh(hidden(images.flatten(1))).detach()
    ridge = features.T @ features + 5 * torch.eye(256)
    output.weight.data = torch.linalg.solve(ridge, features.T @ (8 * torch.eye(4)[labels] - 2)).T.contiguous()
    output.bias.data = torch.zeros(4)
    return Pictures(images, labels, nn.Sequential(nn.Flatten(), hidden, nn.Tanh(), output).eval())


@pytest.fixture(scope="session")
def small_net() -> Callable[..., nn.Module]:
    """Makes random networks for pictures of any size, with parts that have modes and buffers."""

    def make(classes: int = 5, channels: int = 1) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(classes)
            return nn.Sequential(
                nn.Conv2d(channels, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(2),
                nn.Flatten(),
                nn.Dropout(0.5),
                nn.Linear(32, classes),
            )

    return make
