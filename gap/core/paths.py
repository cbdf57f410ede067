"""Tests of paths that the user wrote. A path that is not a valid name is one where nothing exists."""

import os
import stat
from pathlib import Path

from gap.core.errors import GapError


def is_file(path: Path | str) -> bool:
    """Whether a path is a regular file; raises GapError where permissions do not allow the test."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path | str) -> bool:
    """Whether a path is a folder; raises GapError where permissions do not allow the test."""
    return stat.S_ISDIR(_mode(path))


def exists(path: Path | str) -> bool:
    """Whether a path exists; raises GapError where permissions do not allow the test."""
    return _mode(path) != 0


def expanded(path: Path | str) -> Path:
    """A path with the home folder in place of ~; raises GapError where that home folder does not exist."""
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError) as error:  # ValueError: not a valid name on any system
        raise GapError(f"there is no home folder for {path}; write the whole path, or ./{path}") from error


def _mode(path: Path | str) -> int:
    """The mode of the file at a path, 0 where there is none."""
    try:
        return os.stat(path).st_mode
    except PermissionError as error:
        raise GapError(f"cannot look at {path}: {error.strerror}; change the permissions of its folder") from error
    except (OSError, ValueError):  # includes names that are too long or have invalid characters
        return 0
