"""The progress display: a bar on a terminal, and otherwise a plain line from time to time; single lines of results."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gap.core.process import is_main_process

# Seconds between two lines where there is no terminal.
LINE_SECONDS = 10.0


def print_progress(line: str) -> None:
    """Print a line on standard error. Of several processes, only the main process prints."""
    if is_main_process():
        print(line, file=sys.stderr, flush=True)


class StepBar:
    """Shows the steps of long work and its metrics. Of several processes, only the main process prints."""

    def __init__(self, description: str, every: float = LINE_SECONDS) -> None:
        self.description, self.every = description, every
        self.last_line = time.monotonic()
        self.quiet = not is_main_process()
        self.console = Console(stderr=True, quiet=self.quiet)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=self.quiet or not self.console.is_terminal,
        )
        self.task = self.bar.add_task(description, total=None, figures="")

    def __enter__(self) -> "StepBar":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, step: int, steps: int, figures: str = "", milestone: str = "") -> None:
        """Show a step. A milestone, such as the metrics at the end of an epoch, is printed on a line of its own."""
        if self.quiet:
            return
        self.bar.update(self.task, completed=step, total=steps, figures=figures)
        if self.console.is_terminal:
            if milestone:
                self.console.print(f"{self.description} {milestone}", highlight=False)
        elif figures and (milestone or time.monotonic() - self.last_line > self.every):
            self.last_line = time.monotonic()
            sys.stderr.write(f"{self.description} {step}/{steps} {figures}{f' | {milestone}' if milestone else ''}\n")
