"""What every drawing verb does around its work: the bar, the preview, and the picture kept on Ctrl-C."""

import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from gap.classifiers.classifier import Classifier
from gap.classifiers.task import load_classifiers, parse_input_shape
from gap.cli.options import parse_numbers
from gap.core.errors import GapError, GapWarning, unknown_name_error
from gap.core.files import check_writable, reraise_write_errors
from gap.data.images import load_image, save_picture
from gap.imagery.canvas import fit_size, resize
from gap.imagery.optimize import OptimizationProgress
from gap.imagery.style_transfer import StyleTransferResult
from gap.training.runtime import RuntimeOptions, make_accelerator

Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="auto, cpu or cuda")]
# Seconds between two previews, and between two lines where there is no terminal.
PREVIEW_SECONDS = 10.0


class DrawingProgressBar:
    """Hears of a drawing: a progress bar, and every ten seconds the pictures so far (N x C x H x W), handed to
    `save_preview`."""

    def __init__(self, save_preview: Callable[[Tensor], None], bar: Bar, writer: SummaryWriter | None = None) -> None:
        self.save_preview, self.bar, self.writer = save_preview, bar, writer
        self.task = bar.add_task("drawing", total=None, figures="")
        self.told = time.monotonic()
        self.step = self.steps = 0
        self.pictures: Tensor | None = None

    def __call__(self, progress: OptimizationProgress) -> None:
        self.step, self.steps = progress.step + 1, progress.steps
        # Not the progress itself, which holds what every layer saw.
        self.pictures = progress.activations.images.detach()
        objective = progress.values.detach().mean().item()
        figures = f"objective {objective:.4g}"
        if self.writer:
            self.writer.add_scalar("objective", objective, self.step)
        self.bar.update(self.task, completed=self.step, total=self.steps, figures=figures)
        if time.monotonic() - self.told > PREVIEW_SECONDS:
            self.told = time.monotonic()
            self.save_preview(self.pictures)
            if self.writer:
                self.writer.add_images("pictures", self.pictures.cpu(), self.step)
            if not self.bar.console.is_terminal:
                sys.stderr.write(f"evaluation {self.step}/{self.steps} {figures}\n")

    def stop(self) -> None:
        """Leave the picture as it is now, and say so."""
        if self.pictures is not None:
            self.save_preview(self.pictures)
            sys.stderr.write(f"gap: ended at evaluation {self.step} of {self.steps}; the picture so far is kept\n")


@contextmanager
def progress_display(save_preview: Callable[[Tensor], None], log: Path | None = None) -> Iterator[DrawingProgressBar]:
    """A progress bar for a drawing; where it is interrupted, or comes apart, the pictures so far are kept."""
    console = Console(stderr=True)
    figures = TextColumn("{task.fields[figures]}")
    columns = TextColumn("{task.description}"), BarColumn(), figures, TimeRemainingColumn()
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar, _event_writer(log) as writer:
        stand = DrawingProgressBar(save_preview, bar, writer)
        try:
            with _sigterm_as_exit():
                yield stand
        except (KeyboardInterrupt, SystemExit, Exception):  # a backbone of the user's own may raise anything
            stand.stop()
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


def run_drawing(out: Path, work: Callable[[DrawingProgressBar], StyleTransferResult], log: Path | None = None) -> None:
    """Do a drawing's work beside a progress bar, leave the picture in `out`, and say how the objective ended.

    With `log`, TensorBoard gets the objective there and the pictures on the way.
    """
    with progress_display(lambda pictures: save_picture(pictures[0], out), log) as stand:
        drawn = work(stand)
        save_picture(drawn.picture, out)
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
    mean: list[str] | None = None,
    std: list[str] | None = None,
) -> Classifier:
    """The backbone of that name; one that does not say what it takes is tried on color pictures of 224 pixels."""
    given = parse_numbers("--mean", mean), parse_numbers("--std", std)
    (backbone,) = load_classifiers([name], parse_input_shape(input), (3, (224, 224)), *given)
    return backbone.to(device)


def find_class(classifier: Classifier, text: str) -> int:
    """The class of that number or name; raises GapError where there is none."""
    count = classifier.spec.classes
    if text.isdecimal():
        if int(text) < count:
            return int(text)
        raise GapError(f"{classifier.name} knows the classes 0 to {count - 1}, not {text}")
    names = {classifier.label(index).casefold(): index for index in range(count)}
    found = names.get(text.casefold())
    if found is None:
        raise unknown_name_error("class", text, names)
    return found


def find_device(device: str, seed: int) -> torch.device:
    """Where to draw; raises GapError where there is no such device."""
    return make_accelerator(RuntimeOptions.read({"device": device, "seed": seed})).device


def load_resized(path: Path, channels: int, side: int | None = None) -> Tensor:
    """A picture file as C x H x W in [0, 1], its longer side brought to `side` pixels; warns where colors are lost."""
    picture = load_image(path, channels).float() / 255
    if channels == 1 and (colored := load_image(path, 3)).ne(colored[:1]).any():
        warnings.warn(f"{path} loses its colors: the network looks at gray pictures", GapWarning, stacklevel=2)
    return resize(picture, fit_size(picture, side, enlarge=True)) if side else picture


def split_names(given: Sequence[str] | None) -> list[str] | None:
    """Names given as a,b,c or by repeating a flag; None where it was not given."""
    return [name for text in given for name in text.split(",") if name] if given else None
