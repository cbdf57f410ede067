"""What hears a training run: the terminal, TensorBoard, and the log in the artifact."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch.utils.tensorboard import SummaryWriter

from gap.core.artifact import METRICS
from gap.core.files import reraise_write_errors, write_text
from gap.core.process import is_main_process
from gap.training.trainer import TrainingProgress


class ProgressBar:
    """A progress bar with the metrics that matter; plain lines, now and then, where there is no terminal.

    Of several processes, only one shows anything.
    """

    def __init__(self, what: str, every: float = 10.0) -> None:
        self.what = what
        self.every = every
        self.told = time.monotonic()
        self.quiet = not is_main_process()
        self.console = Console(stderr=True, quiet=self.quiet)
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=self.quiet or not self.console.is_terminal,
        )
        self.task = self.bar.add_task(what, total=None, metrics="")

    def __enter__(self) -> "ProgressBar":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, progress: TrainingProgress) -> None:
        if self.quiet:
            return
        if not progress.metrics:
            self.bar.update(self.task, completed=progress.step, total=progress.steps)
            return
        metrics = _format_metrics(progress)
        self.bar.update(self.task, completed=progress.step, total=progress.steps, metrics=metrics)
        now = time.monotonic()
        due = progress.validation_metrics or now - self.told > self.every
        if progress.validation_metrics and self.console.is_terminal:
            self.console.print(
                f"{self.what} epoch {progress.epoch:.0f}: {_format_validation(progress)}", highlight=False
            )
        elif due and not self.console.is_terminal:
            validation_metrics = f" | {_format_validation(progress)}" if progress.validation_metrics else ""
            sys.stderr.write(f"{self.what} {progress.step}/{progress.steps} {metrics}{validation_metrics}\n")
        if due:
            self.told = now


class MetricsLog:
    """One JSON object a line in the artifact's metrics.jsonl; a resumed run goes on where its checkpoint was."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS

    def __call__(self, progress: TrainingProgress) -> None:
        if not progress.metrics:
            self._drop_after(progress.step)
            return
        line = {
            "step": progress.step,
            "epoch": round(progress.epoch, 4),
            "images_per_second": round(progress.images_per_second, 1),
            **progress.metrics,
            **{f"validation_{name}": value for name, value in progress.validation_metrics.items()},
        }
        with reraise_write_errors(self.path), self.path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def _drop_after(self, step: int) -> None:
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            write_text(self.path, "".join(line + "\n" for line in lines if _is_line_up_to(step, line)))


class TensorBoard:
    """Scalars at every report; pictures, clean and perturbed, at the end of each epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tensorboard"
        self.writer: SummaryWriter | None = None

    def __call__(self, progress: TrainingProgress) -> None:
        with reraise_write_errors(self.folder):
            self._write(progress)

    def _write(self, progress: TrainingProgress) -> None:
        if self.writer is None:
            self.writer = SummaryWriter(self.folder, purge_step=progress.step + 1)
            return
        for name, value in progress.metrics.items():
            self.writer.add_scalar(f"training/{name}", value, progress.step)
        for name, value in progress.validation_metrics.items():
            self.writer.add_scalar(f"validation/{name}", value, progress.step)
        self.writer.add_scalar("training/images_per_second", progress.images_per_second, progress.step)
        for name, pictures in progress.pictures.items():
            self.writer.add_images(
                name, pictures[:, :3] if pictures.shape[1] > 3 else _drawable(pictures), progress.step
            )
        self.writer.flush()


def _is_line_up_to(step: int, line: str) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):  # cut short by the end of the process
        return False


def _drawable(pictures: torch.Tensor) -> torch.Tensor:
    return pictures[:, :1] if pictures.shape[1] == 2 else pictures


def _format_metrics(progress: TrainingProgress) -> str:
    parts = [f"{name.replace('_', ' ')} {value:.3g}" for name, value in progress.metrics.items()]
    return "  ".join([f"epoch {progress.epoch:.2f}", *parts, f"{progress.images_per_second:.0f} images/s"])


def _format_validation(progress: TrainingProgress) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in progress.validation_metrics.items())
