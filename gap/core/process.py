"""The process as a whole: whether it is the one that talks, and how a signal ends it. Without torch, for `main`."""

import os
from pathlib import Path


class TrainingInterrupted(Exception):  # noqa: N818  # not an error: the user asked, and the work is saved
    """A signal came, the work is saved. `code` is the exit status it asks for, `advice` what to do next."""

    def __init__(self, step: int, steps: int, folder: Path, signal_number: int) -> None:
        super().__init__(step, steps, folder)
        self.code = 128 + signal_number
        self.stop = f"stopped at step {step} of {steps}"
        self.advice = f"saved; go on with `resume` `out` {folder}"

    def __str__(self) -> str:
        return f"{self.stop}, {self.advice}"


def is_main_process() -> bool:
    """Whether this process is the one, of those that torchrun started, that talks to the user."""
    return os.environ.get("RANK", "0") == "0"
