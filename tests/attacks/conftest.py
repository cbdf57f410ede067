"""Small networks for the tests of the attacks: no training, no files."""

from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture(scope="session")
def small_net() -> Callable[..., nn.Module]:
    """A factory of random networks for images of any size, with batch normalization and dropout."""

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
