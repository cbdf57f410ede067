"""What every drawing verb does around its work: the bar, the preview, and the picture kept on Ctrl-C."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor

from gap.classifier import Classifier
from gap.data.pictures import open_picture, save_picture
from gap.errors import GapError
from gap.files import writing
from gap.imagery.optimise import Sight
from gap.setting import load_classifiers

# Seconds between two previews, and between two lines where there is no terminal.
EVERY = 10.0


class Easel:
    """Hears of a drawing: a progress bar, and every ten seconds the picture so far in the file that it will be in."""

    def __init__(self, out: Path | None, bar: Bar) -> None:
        self.out, self.bar = out, bar
        self.task = bar.add_task("drawing", total=None, figures="")
        self.told = time.monotonic()
        self.last: Sight | None = None

    def __call__(self, sight: Sight) -> None:
        self.last = sight
        value = sight.values.detach().mean().item()
        self.bar.update(self.task, completed=sight.step + 1, total=sight.steps, figures=f"objective {value:.4g}")
        if time.monotonic() - self.told > EVERY:
            self.told = time.monotonic()
            self.keep()
            if not self.bar.console.is_terminal:
                sys.stderr.write(f"evaluation {sight.step + 1}/{sight.steps} objective {value:.4g}\n")

    def keep(self) -> None:
        """Write the picture as it is now."""
        if self.last is not None and self.out is not None:
            save_picture(self.last.look.images[0].detach(), self.out)


@contextmanager
def easel(out: Path, *, preview: bool = True) -> Iterator[Easel]:
    """An easel for a drawing that will be in `out`; on Ctrl-C the picture so far is left there."""
    console = Console(stderr=True)
    figures = TextColumn("{task.fields[figures]}")
    columns = TextColumn("{task.description}"), BarColumn(), figures, TimeRemainingColumn()
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        stand = Easel(out if preview else None, bar)
        try:
            yield stand
        except KeyboardInterrupt:
            stand.keep()
            if stand.last is not None and preview:
                done = f"{stand.last.step + 1} of {stand.last.steps}"
                sys.stderr.write(f"gap: stopped at evaluation {done}; the picture as it was then is in {out}\n")
            raise


def check_out(out: Path) -> None:
    """Raise GapError where a drawing could not be left, before any work is done for it."""
    if out.suffix.lower() != ".png" or out.is_dir():
        raise GapError(f"{out} is not the name of a PNG; end it in .png")
    trial = out.with_name(f".{out.name}.{os.getpid()}.part")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()


def load_backbone(name: str, channels: int | None = None) -> Classifier:
    """The backbone of that name; one that does not say what it takes is tried on colour pictures of 224 pixels."""
    (backbone,) = load_classifiers([name], None, (channels or 3, (224, 224)))
    return backbone


def open_sized(path: Path, channels: int, side: int | None) -> Tensor:
    """A picture file as C x H x W in [0, 1], its longer side brought to `side` pixels."""
    picture = open_picture(path, channels).float() / 255
    if side is None:
        return picture
    factor = side / max(picture.shape[-2:])
    size = tuple(max(1, round(length * factor)) for length in picture.shape[-2:])
    resized = torch.nn.functional.interpolate(picture[None], size, mode="bicubic", antialias=True)
    return resized[0].clamp(0, 1)


def split_names(given: Sequence[str] | None) -> list[str] | None:
    """Names given as a,b,c or by repeating a flag; None where it was not given."""
    return [name for text in given for name in text.split(",") if name] if given else None
