"""Fixtures of all tests: images that a small network classifies, without training and without files."""

import os

# Parallel test workers share the cores: threads sleep while they wait, and commands print no warning about that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn


@dataclass
class Pictures:
    """Images, their labels, and a network that classifies them with curved boundaries."""

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
    """200 noisy 12 x 12 images of four faint patterns, and a ridge regression on random tanh features."""
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


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small networks gain nothing from more threads, and other tests use the other cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """Training flushes denormal numbers to 0 in the whole process, for speed; later tests need them."""
    yield
    torch.set_flush_denormal(False)
