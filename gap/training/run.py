"""The parts that all trainings share: the output folder, the progress bar, the logs and the cleanup."""

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

# A function of options, a folder, callbacks and the keyword `resume`, which saves an artifact in the folder.
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
    """Run a training from Python, in the folder `out`, or in memory if that is None.

    Returns the artifact, whose tensors are in memory if there is no folder, and the metrics during the training.
    """
    history = History()
    all_callbacks: list[Callback] = [history, *callbacks]
    if out is None:
        with TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            artifact = run_in_folder(name, work, options, Path(temporary), all_callbacks, progress=progress)
            return artifact.in_memory(), history.rows
    folder = Path(out)
    if resume and is_artifact(folder):
        artifact = open_artifact(folder)
        if artifact.card.get("options") != options.to_dict():
            raise GapError(f"{folder} is finished, with other options; leave out `resume`, or use another folder")
        return artifact, []
    prepare_run_dir(folder, resume=resume, overwrite=overwrite)
    artifact = run_in_folder(
        name, work, options, folder, [*logs(folder), *all_callbacks], resume=resume, progress=progress
    )
    return artifact, history.rows


def logs(folder: Path) -> list[Callback]:
    """The callbacks that write the metrics of a training to its folder: a file of JSON lines, and TensorBoard."""
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
    """Run `work(options, folder, callbacks, resume=...)`, with a progress bar if `progress` is True.

    The files of an earlier run are removed immediately before the first step, so that an error in the options does not
    lose them. Of several processes, only the main process shows progress and warnings.
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
        except Exception:  # a user's network may raise anything
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
        """Remove the files of a failed run without a checkpoint, so that the folder can be used again.

        The files of an earlier run are already removed at that time.
        """
        if self.opened and not (self.out / CHECKPOINT).is_file():
            remove_run_files(self.out)
            (self.out / MARKER_FILE).unlink(missing_ok=True)
        with suppress(OSError):
            self.out.rmdir()  # fails where the folder is not empty
