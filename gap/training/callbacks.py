"""Callbacks of a training: a progress bar, TensorBoard, and the log of metrics in the artifact."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gap.core.artifact import METRICS
from gap.core.files import reraise_write_errors, write_text
from gap.core.progress import StepBar
from gap.training.trainer import TrainingProgress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class ProgressBar(StepBar):
    """A progress bar with the metrics of a training."""

    def __enter__(self) -> "ProgressBar":
        super().__enter__()
        return self

    def __call__(self, progress: TrainingProgress) -> None:
        if not progress.metrics:
            self.update(progress.step, progress.steps)
            return
        milestone = ""
        if progress.validation_metrics:
            milestone = f"epoch {progress.epoch:.0f}: {_format_validation(progress)}"
        self.update(progress.step, progress.steps, _format_metrics(progress), milestone)


class MetricsLog:
    """Writes a JSON object per line to metrics.jsonl. A resumed run first removes the lines after its checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS

    def __call__(self, progress: TrainingProgress) -> None:
        if not progress.metrics:
            self._drop_after(progress.step)
            return
        with reraise_write_errors(self.path), self.path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(_row(progress)) + "\n")

    def _drop_after(self, step: int) -> None:
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            write_text(self.path, "".join(line + "\n" for line in lines if _is_line_up_to(step, line)))


class History:
    """Collects the metrics of a training as rows: step, epoch, and metrics of training and validation."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def __call__(self, progress: TrainingProgress) -> None:
        if progress.metrics:
            self.rows.append(_row(progress))


class TensorBoard:
    """Writes scalars at every call, and images, clean and perturbed, at the end of each epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tensorboard"
        self.writer: SummaryWriter | None = None

    def __call__(self, progress: TrainingProgress) -> None:
        with reraise_write_errors(self.folder):
            self._write(progress)

    def _write(self, progress: TrainingProgress) -> None:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter  # imported here because that takes a second

            self.writer = SummaryWriter(self.folder, purge_step=progress.step + 1)
            return
        for name, value in progress.metrics.items():
            self.writer.add_scalar(f"training/{name}", value, progress.step)
        for name, value in progress.validation_metrics.items():
            self.writer.add_scalar(f"validation/{name}", value, progress.step)
        self.writer.add_scalar("training/images_per_second", progress.images_per_second, progress.step)
        for name, images in progress.pictures.items():
            self.writer.add_images(
                name, images[:, :3] if images.shape[1] > 3 else _to_gray_or_rgb(images), progress.step
            )
        self.writer.flush()


def _row(progress: TrainingProgress) -> dict[str, float]:
    """The metrics of a step as one flat row."""
    return {
        "step": progress.step,
        "epoch": round(progress.epoch, 4),
        "images_per_second": round(progress.images_per_second, 1),
        **progress.metrics,
        **{f"validation_{name}": value for name, value in progress.validation_metrics.items()},
    }


def _is_line_up_to(step: int, line: str) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):  # an incomplete line of a killed process
        return False


def _to_gray_or_rgb(images: torch.Tensor) -> torch.Tensor:
    return images[:, :1] if images.shape[1] == 2 else images


def _format_metrics(progress: TrainingProgress) -> str:
    parts = [f"{name.replace('_', ' ')} {value:.3g}" for name, value in progress.metrics.items()]
    return "  ".join([f"epoch {progress.epoch:.2f}", *parts, f"{progress.images_per_second:.0f} images/s"])


def _format_validation(progress: TrainingProgress) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in progress.validation_metrics.items())
