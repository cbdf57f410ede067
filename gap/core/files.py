"""Atomic writes: a file is written under a temporary name in its folder, then renamed.

Links are followed. A target that is not a regular file, such as a pipe or a device, is not replaced: the content is
copied into it.
"""

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from safetensors import SafetensorError

from gap.core.errors import GapError

STANDARD_OUTPUT = Path("/dev/stdout")
# The folder of the open descriptors of this process, or of the process with that id.
DESCRIPTORS = re.compile(r"(?:/dev|/proc/(?P<process>\d+)(?:/task/\d+)?)/fd")
MOST_LINKS = 40  # the limit of Linux


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to. It is renamed to `path` at the end of the block, or removed on an error.

    Creates the folder. A file that is replaced keeps its permissions. Where `path` is a pipe, a device or an open
    descriptor, the content is copied into it. Raises GapError when the folder cannot be written or the disk is full.
    """
    with reraise_write_errors(path, SafetensorError, RuntimeError):  # torch.save reports a full disk as RuntimeError
        target = _target(Path(path))
        with _copied(target) if _is_special(target) else _renamed(target) as part:
            yield part


def check_writable(path: str | Path) -> None:
    """Raise GapError where `path` cannot be written. Creates the folder. Meant for the start of long work."""
    with reraise_write_errors(path):
        target = _target(Path(path))
        if _is_special(target):
            _check_special(target)
            return
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _part(target)
        part.touch()
        part.unlink()


def descriptor(path: str | Path) -> int | None:
    """The number of the descriptor of this process at a path such as /dev/stdout; None for any other path."""
    target = _target(Path(path))
    if target == STANDARD_OUTPUT:
        return 1
    process = _process(target)
    return int(target.name) if process == os.getpid() else None


def _target(path: Path) -> Path:
    """The path with its links followed, up to the name of a descriptor: its open file may have no name."""
    target = path
    for _ in range(MOST_LINKS):
        if target == STANDARD_OUTPUT or _process(target) is not None or not target.is_symlink():
            return target
        target = target.parent / os.readlink(target)
    raise GapError(f"{path} is a link that leads back to itself; remove it, or write to another file")


def _process(path: Path) -> int | None:
    """The id of the process whose descriptor is at a path; None where the path is not one of a descriptor."""
    folder = DESCRIPTORS.fullmatch(os.path.realpath(path.parent))
    if folder is None or not path.name.isdecimal():
        return None
    return int(folder["process"] or os.getpid())


def _is_special(target: Path) -> bool:
    """Whether a target must not be replaced: a descriptor, or anything other than a file or a folder."""
    if target == STANDARD_OUTPUT or _process(target) is not None:
        return True
    return target.exists() and not target.is_file() and not target.is_dir()


def _check_special(target: Path) -> None:
    number = descriptor(target)
    if number is not None:
        os.fstat(number)
    elif not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def _renamed(target: Path) -> Iterator[Path]:
    """Yield a path in the folder of the target, renamed to the target at the end."""
    part = _part(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        part.chmod(_mode(target))  # safetensors creates files that only their owner can read
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _copied(target: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder, copied into the target at the end. A closed pipe is ignored."""
    with TemporaryDirectory() as folder:
        part = Path(folder) / target.name
        yield part
        with suppress(BrokenPipeError), part.open("rb") as content, _opened(target) as stream:
            shutil.copyfileobj(content, stream)


def _opened(target: Path) -> BinaryIO:
    """The target opened for writing. A descriptor is duplicated: opening its name would truncate a redirected file."""
    number = descriptor(target)
    return target.open("ab") if number is None else os.fdopen(os.dup(number), "wb")


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.part")


def _mode(target: Path) -> int:
    """The permissions of the existing file, or those of a new one."""
    return stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextmanager
def reraise_write_errors(path: str | Path, *kinds: type[Exception]) -> Iterator[None]:
    """Turn an OSError, or an error of these classes, into a GapError with the message that `path` cannot be written."""
    caught: tuple[type[Exception], ...] = (OSError, *kinds)
    try:
        yield
    except caught as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise GapError(f"{path} cannot be written: {reason}; is there space, and may you write there?") from error


def stale_temp_files(folder: Path, names: Iterable[str]) -> list[Path]:
    """The incomplete temporary files of these names that a killed process left in a folder."""
    patterns = [re.compile(rf"\.{re.escape(name)}\.\d+\.part") for name in names]
    return [path for path in folder.iterdir() if any(pattern.fullmatch(path.name) for pattern in patterns)]


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file atomically and return its path."""
    with atomic_write(path) as part:
        part.write_bytes(content)
    return Path(path)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, content: object) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
