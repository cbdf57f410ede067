"""What every training verb does around its work: the output folder, resume, listeners, leaving cleanly."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, TypeVar

import typer
import yaml

from gap.artefact import CARD, CHECKPOINT, CONFIG, Artefact, claim, claim_folder, clear
from gap.config import Options, read_yaml
from gap.errors import GapError
from gap.files import write_text
from gap.training.listeners import MetricsLog, TensorBoard, Terminal
from gap.training.loop import Listener, Stopped

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
    """Run `work(options, folder, listeners, resume=...)` with a progress bar, logs and a clean way out."""
    if resume and (out / CARD).is_file():
        sys.stdout.write(f"{out} is finished; there is nothing to resume\n")
        return
    options = _options(read, out, resume)
    claim(out, resume=resume, overwrite=overwrite)
    write_text(out / CONFIG, yaml.safe_dump(options.dump(), sort_keys=False))
    with ExitStack() as stack:
        listeners: Sequence[Listener] = (stack.enter_context(Terminal(verb)), MetricsLog(out), TensorBoard(out))
        try:
            artefact = work(options, out, listeners, resume=resume)
        except Stopped as stopped:
            stack.close()
            sys.stderr.write(f"gap: {stopped}\n")
            raise typer.Exit(stopped.code) from None
        except GapError:
            if not (out / CHECKPOINT).is_file():
                _leave_nothing(out)
            raise
    figures = "  ".join(
        f"{split} {name.replace('_', ' ')} {value:.4g}"
        for split, values in artefact.card["figures"].items()
        for name, value in values.items()
    )
    sys.stdout.write(f"{artefact.kind}: {figures}\n{out}\n")


def claim_output(folder: Path, *ours: str) -> None:
    """Make a folder for a verb's files; raises GapError when it holds others, and none of the verb's own names."""
    claim_folder(folder)
    there = {path.name for path in folder.iterdir()}
    if there and not there & {CARD, *ours}:
        raise GapError(f"{folder} exists and is not a folder that gap left; name another")


def _leave_nothing(out: Path) -> None:
    """The state before a run that failed and kept nothing: the same --out can be given again."""
    clear(out)
    with suppress(OSError):
        out.rmdir()


def _options(read: Callable[..., T], out: Path, resume: bool) -> T:
    if not resume:
        return read()
    if not (out / CONFIG).is_file():
        raise GapError(f"there is nothing to resume in {out}; leave out --resume to start")
    saved = read_yaml((out / CONFIG).read_text(encoding="utf-8"), str(out / CONFIG))
    options = read(saved)
    changed = [name for name, value in options.dump().items() if saved.get(name) != value]
    if changed:
        raise GapError(f"--resume goes on with the options in {out / CONFIG}, but {', '.join(changed)} would change")
    return options
