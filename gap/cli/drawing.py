"""What every drawing verb does around its work: the bar, the preview, and the picture kept on Ctrl-C."""

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
    """Shows the progress of a drawing, and every ten seconds hands the images so far (N x C x H x W) to
    `save_preview`."""

    def __init__(self, save_preview: Callable[[Tensor], object], bar: StepBar, writer: SummaryWriter | None) -> None:
        self.save_preview, self.bar, self.writer = save_preview, bar, writer
        self.last_preview = time.monotonic()
        self.step = self.steps = 0
        self.images: Tensor | None = None

    def __call__(self, progress: OptimizationProgress) -> None:
        self.step, self.steps = progress.step + 1, progress.steps
        # Not the progress itself, which holds what every layer returned.
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
        """Save the images as they are now, and say so."""
        if self.images is not None:
            self.save_preview(self.images)
            sys.stderr.write(f"gap: ended at evaluation {self.step} of {self.steps}; the picture so far is kept\n")


@contextmanager
def progress_display(save_preview: Callable[[Tensor], object], log: Path | None = None) -> Iterator[DrawingProgress]:
    """Shows the progress of a drawing; where it is interrupted, or fails, the images so far are kept."""
    with StepBar("drawing") as bar, _event_writer(log) as writer:
        progress = DrawingProgress(save_preview, bar, writer)
        try:
            with _sigterm_as_exit():
                yield progress
        except (KeyboardInterrupt, SystemExit, Exception):  # a backbone of the user's own may raise anything
            progress.keep()
            raise


@contextmanager
def _event_writer(log: Path | None) -> Iterator[SummaryWriter | None]:
    """TensorBoard's writer for a folder, if there is one."""
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
    """Have SIGTERM end the block by an exception, as Ctrl-C does, with the exit status that it asks for."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # only the main thread may set handlers; elsewhere the caller keeps its own
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_drawing(out: Path, work: Callable[[DrawingProgress], StyleTransferResult], log: Path | None = None) -> None:
    """Do a drawing's work beside a progress bar, leave the picture in `out`, and say how the objective ended.

    With `log`, TensorBoard gets the objective there and the pictures on the way.
    """
    with progress_display(lambda pictures: save_image(pictures[0], out), log) as stand:
        drawn = work(stand)
        save_image(drawn.image, out)
    typer.echo(f"{drawn.loss_summary}\n{drawn.evaluations} evaluations\n{out}")


def check_not_input(out: Path, pictures: Iterable[Path | None]) -> None:
    """Raise GapError where a drawing would be left in place of a picture that it is made from."""
    for picture in pictures:
        if picture and picture.exists() and out.exists() and out.samefile(picture):
            raise GapError(f"{out} is a picture that is drawn from, and would be lost; leave the drawing elsewhere")


def check_output(out: Path, pictures: Iterable[Path | None] = ()) -> None:
    """Raise GapError where a drawing could not be left, or only in place of one of the pictures that it is made from,
    before any work is done for it."""
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
    """The backbone of that name; one that does not say what it takes is tried on color pictures of 224 pixels."""
    (backbone,) = load_classifiers([name], parse_input_shape(input), (3, (224, 224)), mean, std)
    return backbone.to(device)


def find_device(options: RuntimeOptions) -> torch.device:
    """The device that the options name, made ready for drawing; raises GapError where there is no such device."""
    return make_accelerator(options).device
