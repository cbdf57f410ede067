"""The process as a whole: whether it is the one that talks, and how a signal ends it. Without torch, for `main`."""

import os
from pathlib import Path


class Stopped(Exception):  # noqa: N818  # not an error: the user asked, and the work is saved
    """A signal came, the work is saved. `code` is the exit status that the signal asks for."""

    def __init__(self, step: int, steps: int, folder: Path, signal_number: int) -> None:
        super().__init__(f"stopped at step {step} of {steps}, saved; go on with --resume --out {folder}")
        self.code = 128 + signal_number


def speaks() -> bool:
    """Whether this process is the one, of those that torchrun started, that talks to the user."""
    return os.environ.get("RANK", "0") == "0"
