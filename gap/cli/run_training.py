"""What every training verb does around its work: the output folder, resume, listeners, leaving cleanly."""

import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, TypeVar

import typer
import yaml

from gap.classifiers.registry import is_code
from gap.core.artifact import CARD, CHECKPOINT, CONFIG, MARK, OURS, Artefact, claim, clear, mark, open_artefact
from gap.core.errors import GapError, GapWarning
from gap.core.files import leftovers, write_text
from gap.core.options import Options, read_yaml_file
from gap.core.process import Stopped, speaks
from gap.training.callbacks import MetricsLog, TensorBoard, Terminal
from gap.training.trainer import Progress

T = TypeVar("T", bound=Options)

Out = Annotated[Path, typer.Option("--out", help="the folder to leave the result in")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with the unfinished work in --out, with its options")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what an earlier run left in --out")]


def run_training(
    verb: str,
    read: Callable[..., T],
    work: Callable[..., Artefact],
    out: Path,
    resume: bool,
    overwrite: bool,
) -> None:
    """A training verb from its options to its last line."""
    if resume and (out / CARD).is_file():
        artefact = open_artefact(out)
        _say(f"{out} is finished; there is nothing to resume, and options change nothing\n{_next_argument(artefact)}")
        return
    options = _options(verb, read, out, resume)
    claim(out, resume=resume, overwrite=overwrite)
    artefact = run_work(verb, work, options, out, resume=resume)
    figures = "  ".join(
        f"{split} {name.replace('_', ' ')} {value:.4g}"
        for split, values in artefact.card["figures"].items()
        for name, value in values.items()
    )
    _say(f"{artefact.kind}: {figures}\n{_next_argument(artefact)}")


def run_work(
    name: str, work: Callable[..., Artefact], options: Options, out: Path, *, resume: bool = False
) -> Artefact:
    """Run `work(options, folder, listeners, resume=...)` with a progress bar and logs.

    What an earlier run left in the folder goes when the first step is about to be made, not before: options that turn
    out not to fit lose nothing. Of several processes, one shows the progress and the warnings.
    """
    for part in leftovers(out, (MARK, *OURS)):
        part.unlink(missing_ok=True)
    opening = _Opening(out, options, resume)
    with warnings.catch_warnings(), Terminal(name) as terminal:
        if not speaks():
            warnings.simplefilter("ignore", GapWarning)
        try:
            return work(options, out, (opening, terminal, MetricsLog(out), TensorBoard(out)), resume=resume)
        except Stopped:
            raise
        except Exception:  # a network of the user's own may raise anything
            opening.undo()
            raise


class _Opening:
    """Hears the beginning of a run, and makes the folder its own; killed in the middle, it is still one of gap's."""

    def __init__(self, out: Path, options: Options, resume: bool) -> None:
        self.out, self.options, self.resume = out, options, resume
        self.opened = False

    def __call__(self, progress: Progress) -> None:
        if self.opened or self.resume:
            return
        mark(self.out)
        self.opened = True
        clear(self.out)
        write_text(self.out / CONFIG, yaml.safe_dump(self.options.dump(), sort_keys=False))
        (self.out / MARK).unlink()

    def undo(self) -> None:
        """After a failure that left no checkpoint: nothing of the run stays, and the folder can be given again.

        What an earlier run had left there went when this one began.
        """
        if self.opened and not (self.out / CHECKPOINT).is_file():
            clear(self.out)
            (self.out / MARK).unlink(missing_ok=True)
        with suppress(OSError):
            self.out.rmdir()  # only where it is empty


def _next_argument(artefact: Artefact) -> str:
    """How the next command names this: by the folder, and a network of the user's own by its code too."""
    architecture = artefact.card.get("classifier", {}).get("architecture", "")
    return f"{architecture}@{artefact.folder}" if is_code(architecture) else str(artefact.folder)


def _say(text: str) -> None:
    if speaks():
        sys.stdout.write(f"{text}\n")


def _options(verb: str, read: Callable[..., T], out: Path, resume: bool) -> T:
    if not resume:
        return read()
    if not (out / CONFIG).is_file():
        raise GapError(f"there is nothing to resume in {out}; leave out --resume to start")
    saved = read_yaml_file(out / CONFIG)
    try:
        options = read(saved)
    except GapError as error:
        raise GapError(f"gap {verb} cannot go on with the work in {out}: {error}") from error
    changed = [name for name, value in options.dump().items() if saved.get(name) != value]
    if changed:
        raise GapError(f"--resume goes on with the options in {out / CONFIG}, but {', '.join(changed)} would change")
    return options
