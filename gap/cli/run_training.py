"""What every training verb does around its work: the output folder, resume, callbacks, leaving cleanly."""

import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, TypeVar

import typer
import yaml

from gap.classifiers.registry import runs_user_code
from gap.core.artifact import (
    CARD,
    CHECKPOINT,
    CONFIG,
    MARKER_FILE,
    RUN_FILES,
    Artifact,
    open_artifact,
    prepare_run_dir,
    remove_run_files,
    write_marker,
)
from gap.core.errors import GapError, GapWarning
from gap.core.files import stale_temp_files, write_text
from gap.core.options import Options, read_yaml_file
from gap.core.process import TrainingInterrupted, is_main_process
from gap.training.callbacks import MetricsLog, ProgressBar, TensorBoard
from gap.training.trainer import TrainingProgress

T = TypeVar("T", bound=Options)

Out = Annotated[Path, typer.Option("--out", help="the folder to leave the result in")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with the unfinished work in --out, with its options")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what an earlier run left in --out")]


def run_training(
    verb: str,
    read: Callable[..., T],
    work: Callable[..., Artifact],
    out: Path,
    resume: bool,
    overwrite: bool,
) -> None:
    """A training verb from its options to its last line."""
    if resume and (out / CARD).is_file():
        artifact = open_artifact(out)
        _print(f"{out} is finished; there is nothing to resume, and options change nothing\n{_next_argument(artifact)}")
        return
    options = _options(verb, read, out, resume)
    prepare_run_dir(out, resume=resume, overwrite=overwrite)
    artifact = run_with_progress(verb, work, options, out, resume=resume)
    figures = "  ".join(
        f"{split} {name.replace('_', ' ')} {value:.4g}"
        for split, values in artifact.card["metrics"].items()
        for name, value in values.items()
    )
    _print(f"{artifact.kind}: {figures}\n{_next_argument(artifact)}")


def run_with_progress(
    name: str, work: Callable[..., Artifact], options: Options, out: Path, *, resume: bool = False
) -> Artifact:
    """Run `work(options, folder, callbacks, resume=...)` with a progress bar and logs.

    What an earlier run left in the folder goes when the first step is about to be made, not before: options that turn
    out not to fit lose nothing. Of several processes, one shows the progress and the warnings.
    """
    for part in stale_temp_files(out, (MARKER_FILE, *RUN_FILES)):
        part.unlink(missing_ok=True)
    opening = _OutputFolder(out, options, resume)
    with warnings.catch_warnings(), ProgressBar(name) as terminal:
        if not is_main_process():
            warnings.simplefilter("ignore", GapWarning)
        try:
            return work(options, out, (opening, terminal, MetricsLog(out), TensorBoard(out)), resume=resume)
        except TrainingInterrupted:
            raise
        except Exception:  # a network of the user's own may raise anything
            opening.rollback()
            raise


class _OutputFolder:
    """Hears the beginning of a run, and makes the folder its own; killed in the middle, it is still one of gap's."""

    def __init__(self, out: Path, options: Options, resume: bool) -> None:
        self.out, self.options, self.resume = out, options, resume
        self.opened = False

    def __call__(self, progress: TrainingProgress) -> None:
        if self.opened or self.resume:
            return
        write_marker(self.out)
        self.opened = True
        remove_run_files(self.out)
        write_text(self.out / CONFIG, yaml.safe_dump(self.options.to_dict(), sort_keys=False))
        (self.out / MARKER_FILE).unlink()

    def rollback(self) -> None:
        """After a failure that left no checkpoint: nothing of the run stays, and the folder can be given again.

        What an earlier run had left there went when this one began.
        """
        if self.opened and not (self.out / CHECKPOINT).is_file():
            remove_run_files(self.out)
            (self.out / MARKER_FILE).unlink(missing_ok=True)
        with suppress(OSError):
            self.out.rmdir()  # only where it is empty


def _next_argument(artifact: Artifact) -> str:
    """How the next command names this: by the folder, and a network of the user's own by its code too."""
    architecture = artifact.card.get("classifier", {}).get("architecture", "")
    return f"{architecture}@{artifact.folder}" if runs_user_code(architecture) else str(artifact.folder)


def _print(text: str) -> None:
    if is_main_process():
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
    changed = [name for name, value in options.to_dict().items() if saved.get(name) != value]
    if changed:
        raise GapError(f"--resume goes on with the options in {out / CONFIG}, but {', '.join(changed)} would change")
    return options
