"""The parts that all training commands share: the output folder, resuming, and printing the result."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gap.classifiers.registry import runs_user_code
from gap.core.artifact import (
    CARD,
    CONFIG,
    Artifact,
    open_artifact,
    prepare_run_dir,
)
from gap.core.errors import GapError
from gap.core.options import Options, read_yaml_file
from gap.core.process import is_main_process
from gap.training.run import logs, run_in_folder

T = TypeVar("T", bound=Options)


def run_training(
    verb: str,
    read: Callable[..., T],
    work: Callable[..., Artifact],
    out: Path,
    resume: bool,
    overwrite: bool,
) -> None:
    """Run a training command, from reading its options to printing its result."""
    if resume and (out / CARD).is_file():
        artifact = open_artifact(out)
        _print(f"{out} is finished; there is nothing to resume, and options change nothing\n{_next_argument(artifact)}")
        return
    options = _options(verb, read, out, resume)
    prepare_run_dir(out, resume=resume, overwrite=overwrite)
    artifact = run_in_folder(verb, work, options, out, logs(out), resume=resume)
    metrics_text = "  ".join(
        f"{split} {name.replace('_', ' ')} {value:.4g}"
        for split, values in artifact.card["metrics"].items()
        for name, value in values.items()
    )
    _print(f"{artifact.kind}: {metrics_text}\n{_next_argument(artifact)}")


def _next_argument(artifact: Artifact) -> str:
    """The argument for the next command: the folder, for a network of user code after its factory and an @."""
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
