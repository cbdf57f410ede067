"""What stands at a path that a user wrote: names that no file can have are names of nothing."""

import os
import stat
from pathlib import Path

from gap.core.errors import GapError


def is_file(path: Path | str) -> bool:
    """Whether a file stands at a path; raises GapError where that may not be looked at."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path | str) -> bool:
    """Whether a folder stands at a path; raises GapError where that may not be looked at."""
    return stat.S_ISDIR(_mode(path))


def exists(path: Path | str) -> bool:
    """Whether anything stands at a path; raises GapError where that may not be looked at."""
    return _mode(path) != 0


def expanded(path: Path | str) -> Path:
    """A path with the home folder in place of ~; raises GapError where nobody has that home folder."""
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError) as error:  # ValueError: no system has such a name
        raise GapError(f"there is no home folder for {path}; write the whole path, or ./{path}") from error


def _mode(path: Path | str) -> int:
    """The mode of what stands at a path, 0 where nothing does."""
    try:
        return os.stat(path).st_mode
    except PermissionError as error:
        raise GapError(f"cannot look at {path}: {error.strerror}; change the permissions of its folder") from error
    except (OSError, ValueError):  # also a name that is too long, or holds what no name can
        return 0
