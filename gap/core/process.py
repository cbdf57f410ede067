"""The main-process check, and the exception for an interrupted training. Does not import torch."""

import os
from pathlib import Path


class TrainingInterrupted(Exception):  # noqa: N818  # not an error: the user stopped the training, and its state is saved
    """A signal stopped a training, whose state is saved. `code` is the exit status, `advice` says how to go on."""

    def __init__(self, step: int, steps: int, folder: Path, signal_number: int) -> None:
        super().__init__(step, steps, folder)
        self.code = 128 + signal_number
        self.stop = f"stopped at step {step} of {steps}"
        self.advice = f"saved; go on with `resume` `out` {folder}"

    def __str__(self) -> str:
        return f"{self.stop}, {self.advice}"


def is_main_process() -> bool:
    """Whether this process, of those that torchrun started, is the one that prints for the user."""
    return os.environ.get("RANK", "0") == "0"
