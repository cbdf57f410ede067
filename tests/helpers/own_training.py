"""A training from Python of a network of one's own. Run as a script, `own_training.py FOLDER`, it kills itself half-way
through the second epoch."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gap
from gap.training.trainer import Callback, TrainingProgress

BUDGET = "linf:0.2"
# 190 images to train on: 19 steps an epoch, so that a checkpoint stands before the step.
STEP, EPOCHS, BATCH_SIZE = 20, 3, 10


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * 100, 4)
        )


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (200, 1, 12, 12), generator=generator, dtype=torch.uint8)
    return images, torch.arange(200) % 4


def at_step(act: Callable[[], None]) -> Callback:
    def callback(progress: TrainingProgress) -> None:
        if progress.step == STEP and not progress.validation_metrics:
            act()

    return callback


def train(verb: str, out: Path, callbacks: Sequence[Callback] = (), *, resume: bool = False) -> Any:
    """Train by one of the verbs of Python, on the CPU."""
    options: dict[str, Any] = {
        "epochs": EPOCHS, "batch_size": BATCH_SIZE, "seed": 3, "device": "cpu", "progress": False,
        "out": out, "callbacks": callbacks, "resume": resume,
    }  # fmt: skip
    calls: dict[str, Callable[[], Any]] = {
        "pretrain": lambda: gap.pretrain(network(), data(), **options),
        "harden": lambda: gap.harden(network(), data(), BUDGET, attacks=["generator-start"], **options),
        "train_generator": lambda: gap.train_generator(network(), data(), BUDGET, **options),
    }
    return calls[verb]()


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]), [at_step(lambda: os.kill(os.getpid(), signal.SIGKILL))])
