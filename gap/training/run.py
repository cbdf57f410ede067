"""What every training does around its work: the output folder, the progress, the logs, leaving cleanly."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from gap.core.artifact import (
    CHECKPOINT,
    CONFIG,
    MARKER_FILE,
    RUN_FILES,
    Artifact,
    is_artifact,
    open_artifact,
    prepare_run_dir,
    remove_run_files,
    write_marker,
)
from gap.core.errors import GapError, GapWarning
from gap.core.files import stale_temp_files, write_text
from gap.core.options import Options
from gap.core.process import TrainingInterrupted, is_main_process
from gap.training.callbacks import History, MetricsLog, ProgressBar, TensorBoard
from gap.training.trainer import Callback, TrainingProgress

# Takes the options, a folder and callbacks, and `resume` by name; leaves an artifact in the folder.
Work = Callable[..., Artifact]


def run_training(
    name: str,
    work: Work,
    options: Options,
    out: Path | str | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> tuple[Artifact, list[dict[str, float]]]:
    """A training of a user in Python, in the folder `out`, or in memory where that is None.

    Returns the artifact, whose tensors are in memory where there is no folder, and the metrics along the way.
    """
    history = History()
    shown: list[Callback] = [history, *callbacks]
    if out is None:
        with TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            artifact = run_in_folder(name, work, options, Path(temporary), shown, progress=progress)
            return artifact.in_memory(), history.rows
    folder = Path(out)
    if resume and is_artifact(folder):
        artifact = open_artifact(folder)
        if artifact.card.get("options") != options.to_dict():
            raise GapError(f"{folder} is finished, with other options; leave out `resume`, or use another folder")
        return artifact, []
    prepare_run_dir(folder, resume=resume, overwrite=overwrite)
    artifact = run_in_folder(name, work, options, folder, [*logs(folder), *shown], resume=resume, progress=progress)
    return artifact, history.rows


def logs(folder: Path) -> list[Callback]:
    """What keeps the metrics of a training in its folder: a file of JSON lines, and TensorBoard."""
    return [MetricsLog(folder), TensorBoard(folder)]


def run_in_folder(
    name: str,
    work: Work,
    options: Options,
    out: Path,
    callbacks: Sequence[Callback],
    *,
    resume: bool = False,
    progress: bool = True,
) -> Artifact:
    """Run `work(options, folder, callbacks, resume=...)`, with a progress bar if `progress` says so.

    What an earlier run left in the folder goes when the first step is about to be made, not before: options that turn
    out not to fit lose nothing. Of several processes, one shows the progress and the warnings.
    """
    for part in stale_temp_files(out, (MARKER_FILE, *RUN_FILES)):
        part.unlink(missing_ok=True)
    opening = _OutputFolder(out, options, resume)
    with warnings.catch_warnings(), ProgressBar(name) if progress else nullcontext() as bar:
        if not is_main_process():
            warnings.simplefilter("ignore", GapWarning)
        try:
            return work(options, out, [opening, *([bar] if bar else []), *callbacks], resume=resume)
        except TrainingInterrupted:
            raise
        except Exception:  # a network of the user's own may raise anything
            opening.rollback()
            raise


class _OutputFolder:
    """Writes the options on the first step; a run that is killed before that leaves only the marker file."""

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
