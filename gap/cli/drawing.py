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
from gap.classifiers.task import load_classifiers, parse_input
from gap.cli.options import parse_numbers
from gap.core.errors import GapError, GapWarning, unknown
from gap.core.files import check_writable, writing
from gap.data.images import open_picture, save_picture
from gap.imagery.canvas import resized, within
from gap.imagery.optimize import DrawingProgress
from gap.imagery.style_transfer import Stylized
from gap.training.runtime import MachineOptions, make_accelerator

Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="auto, cpu or cuda")]
# Seconds between two previews, and between two lines where there is no terminal.
EVERY = 10.0


class Easel:
    """Hears of a drawing: a progress bar, and every ten seconds the pictures so far (N x C x H x W), handed to
    `keep`."""

    def __init__(self, keep: Callable[[Tensor], None], bar: Bar, diary: SummaryWriter | None = None) -> None:
        self.keep, self.bar, self.diary = keep, bar, diary
        self.task = bar.add_task("drawing", total=None, figures="")
        self.told = time.monotonic()
        self.step = self.steps = 0
        self.pictures: Tensor | None = None

    def __call__(self, progress: DrawingProgress) -> None:
        self.step, self.steps = progress.step + 1, progress.steps
        # Not the progress itself, which holds what every layer saw.
        self.pictures = progress.look.images.detach()
        objective = progress.values.detach().mean().item()
        figures = f"objective {objective:.4g}"
        if self.diary:
            self.diary.add_scalar("objective", objective, self.step)
        self.bar.update(self.task, completed=self.step, total=self.steps, figures=figures)
        if time.monotonic() - self.told > EVERY:
            self.told = time.monotonic()
            self.keep(self.pictures)
            if self.diary:
                self.diary.add_images("pictures", self.pictures.cpu(), self.step)
            if not self.bar.console.is_terminal:
                sys.stderr.write(f"evaluation {self.step}/{self.steps} {figures}\n")

    def stop(self) -> None:
        """Leave the picture as it is now, and say so."""
        if self.pictures is not None:
            self.keep(self.pictures)
            sys.stderr.write(f"gap: ended at evaluation {self.step} of {self.steps}; the picture so far is kept\n")


@contextmanager
def easel(keep: Callable[[Tensor], None], log: Path | None = None) -> Iterator[Easel]:
    """An easel for a drawing; where it is interrupted, or comes apart, the pictures so far are kept."""
    console = Console(stderr=True)
    figures = TextColumn("{task.fields[figures]}")
    columns = TextColumn("{task.description}"), BarColumn(), figures, TimeRemainingColumn()
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar, _event_writer(log) as writer:
        stand = Easel(keep, bar, writer)
        try:
            with _terminated():
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
    with writing(log):
        writer = SummaryWriter(log)
    try:
        yield writer
    finally:
        with writing(log):
            writer.close()


@contextmanager
def _terminated() -> Iterator[None]:
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


def draw(out: Path, work: Callable[[Easel], Stylized], log: Path | None = None) -> None:
    """Do a drawing's work at an easel, leave the picture in `out`, and say how the objective ended.

    With `log`, TensorBoard gets the objective there and the pictures on the way.
    """
    with easel(lambda pictures: save_picture(pictures[0], out), log) as stand:
        drawn = work(stand)
        save_picture(drawn.picture, out)
    typer.echo(f"{drawn.told}\n{drawn.evaluations} evaluations\n{out}")


def check_apart(out: Path, pictures: Iterable[Path | None]) -> None:
    """Raise GapError where a drawing would be left in place of a picture that it is made from."""
    for picture in pictures:
        if picture and picture.exists() and out.exists() and out.samefile(picture):
            raise GapError(f"{out} is a picture that is drawn from, and would be lost; leave the drawing elsewhere")


def check_out(out: Path, pictures: Iterable[Path | None] = ()) -> None:
    """Raise GapError where a drawing could not be left, or only in place of one of the pictures that it is made from,
    before any work is done for it."""
    check_apart(out, pictures)
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
    """The backbone of that name; one that does not say what it takes is tried on colour pictures of 224 pixels."""
    given = parse_numbers("--mean", mean), parse_numbers("--std", std)
    (backbone,) = load_classifiers([name], parse_input(input), (3, (224, 224)), *given)
    return backbone.to(device)


def find_class(classifier: Classifier, text: str) -> int:
    """The class of that number or name; raises GapError where there is none."""
    count = classifier.facts.classes
    if text.isdecimal():
        if int(text) < count:
            return int(text)
        raise GapError(f"{classifier.name} knows the classes 0 to {count - 1}, not {text}")
    names = {classifier.label(index).casefold(): index for index in range(count)}
    found = names.get(text.casefold())
    if found is None:
        raise unknown("class", text, names)
    return found


def find_device(device: str, seed: int) -> torch.device:
    """Where to draw; raises GapError where there is no such device."""
    return make_accelerator(MachineOptions.read({"device": device, "seed": seed})).device


def open_sized(path: Path, channels: int, side: int | None = None) -> Tensor:
    """A picture file as C x H x W in [0, 1], its longer side brought to `side` pixels; warns where colours are lost."""
    picture = open_picture(path, channels).float() / 255
    if channels == 1 and (coloured := open_picture(path, 3)).ne(coloured[:1]).any():
        warnings.warn(f"{path} loses its colours: the network looks at grey pictures", GapWarning, stacklevel=2)
    return resized(picture, within(picture, side, enlarge=True)) if side else picture


def split_names(given: Sequence[str] | None) -> list[str] | None:
    """Names given as a,b,c or by repeating a flag; None where it was not given."""
    return [name for text in given for name in text.split(",") if name] if given else None
