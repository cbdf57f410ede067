"""The parts that all drawing commands share: the progress bar, previews, and saving on Ctrl-C."""

import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
import typer
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from gap.classifiers.classifier import Classifier
from gap.classifiers.task import load_classifiers, parse_input_shape
from gap.core.errors import GapError
from gap.core.files import check_writable, reraise_write_errors
from gap.core.progress import StepBar
from gap.imagery.optimize import OptimizationProgress
from gap.imagery.style_transfer import StyleTransferResult
from gap.report.pictures import save_image
from gap.training.options import RuntimeOptions
from gap.training.runtime import make_accelerator

# Seconds between two previews.
PREVIEW_SECONDS = 10.0


class DrawingProgress:
    """Shows the progress of a drawing, and calls `save_preview` with the images N x C x H x W every ten seconds."""

    def __init__(self, save_preview: Callable[[Tensor], object], bar: StepBar, writer: SummaryWriter | None) -> None:
        self.save_preview, self.bar, self.writer = save_preview, bar, writer
        self.last_preview = time.monotonic()
        self.step = self.steps = 0
        self.images: Tensor | None = None

    def __call__(self, progress: OptimizationProgress) -> None:
        self.step, self.steps = progress.step + 1, progress.steps
        # Only the images are stored: the progress has references to the outputs of all layers.
        self.images = progress.activations.images.detach()
        objective = progress.values.detach().mean().item()
        self.bar.update(self.step, self.steps, f"objective {objective:.4g}")
        if self.writer:
            self.writer.add_scalar("objective", objective, self.step)
        if time.monotonic() - self.last_preview > PREVIEW_SECONDS:
            self.last_preview = time.monotonic()
            self.save_preview(self.images)
            if self.writer:
                self.writer.add_images("pictures", self.images.cpu(), self.step)

    def keep(self) -> None:
        """Save the present images, with a message."""
        if self.images is not None:
            self.save_preview(self.images)
            sys.stderr.write(f"gap: ended at evaluation {self.step} of {self.steps}; the picture so far is kept\n")


@contextmanager
def progress_display(save_preview: Callable[[Tensor], object], log: Path | None = None) -> Iterator[DrawingProgress]:
    """Show the progress of a drawing. If it is interrupted or fails, the present images are saved."""
    with StepBar("drawing") as bar, _event_writer(log) as writer:
        progress = DrawingProgress(save_preview, bar, writer)
        try:
            with _sigterm_as_exit():
                yield progress
        except (KeyboardInterrupt, SystemExit, Exception):  # a user's backbone may raise anything
            progress.keep()
            raise


@contextmanager
def _event_writer(log: Path | None) -> Iterator[SummaryWriter | None]:
    """A writer of TensorBoard for a folder; None without a folder."""
    if log is None:
        yield None
        return
    with reraise_write_errors(log):
        writer = SummaryWriter(log)
    try:
        yield writer
    finally:
        with reraise_write_errors(log):
            writer.close()


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Turn SIGTERM inside the block into SystemExit, with the exit status of the signal."""

    def raise_exit(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    try:
        previous = signal.signal(signal.SIGTERM, raise_exit)
    except ValueError:  # only the main thread may set handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_drawing(out: Path, work: Callable[[DrawingProgress], StyleTransferResult], log: Path | None = None) -> None:
    """Run a drawing with a progress bar, save the image to `out`, and print the final objective.

    With `log`, the objective and intermediate images are written to a TensorBoard folder.
    """
    with progress_display(lambda images: save_image(images[0], out), log) as progress:
        result = work(progress)
        save_image(result.image, out)
    typer.echo(f"{result.loss_summary}\n{result.evaluations} evaluations\n{out}")


def check_not_input(out: Path, pictures: Iterable[Path | None]) -> None:
    """Raise GapError where a drawing would overwrite one of its input images."""
    for path in pictures:
        if path and path.exists() and out.exists() and out.samefile(path):
            raise GapError(f"{out} is an input image and would be overwritten; choose another `out`")


def check_output(out: Path, pictures: Iterable[Path | None] = ()) -> None:
    """Raise GapError where a drawing cannot be written, or would overwrite one of its input images."""
    check_not_input(out, pictures)
    if out.suffix.lower() != ".png" or out.is_dir():
        raise GapError(f"{out} is not the name of a PNG; end it in .png")
    check_writable(out)


def load_backbone(
    name: str,
    device: torch.device,
    input: str | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> Classifier:
    """The backbone of that name. The default input of networks that do not define it is 3 x 224 x 224."""
    (backbone,) = load_classifiers([name], parse_input_shape(input), (3, (224, 224)), mean, std)
    return backbone.to(device)


def find_device(options: RuntimeOptions) -> torch.device:
    """The device of the options, set up for drawing; raises GapError where it is not available."""
    return make_accelerator(options).device
