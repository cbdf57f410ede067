"""Files that appear whole: written under a temporary name in their own folder, then renamed."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from gap.errors import GapError


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Give a name to write to; what was written is moved to `path` when the block ends well, and dropped when not.

    Makes the folder. Raises GapError when the folder cannot be written or the disk is full.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path, SafetensorError, RuntimeError):  # torch.save reports a full disk as RuntimeError
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            part.chmod(0o666 & ~_umask())  # safetensors writes for its owner alone
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextmanager
def writing(path: str | Path, *kinds: type[Exception]) -> Iterator[None]:
    """Turn an OSError, or an error of these kinds, into a GapError that says that `path` cannot be written."""
    caught: tuple[type[Exception], ...] = (OSError, *kinds)
    try:
        yield
    except caught as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise GapError(f"{path} cannot be written: {reason}; is there space, and may you write there?") from error


def leftovers(folder: Path, names: Iterable[str]) -> list[Path]:
    """What a killed process left in a folder of files of these names that were not whole yet."""
    patterns = [re.compile(rf"\.{re.escape(name)}\.\d+\.part") for name in names]
    return [path for path in folder.iterdir() if any(pattern.fullmatch(path.name) for pattern in patterns)]


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file whole and return its path."""
    with whole(path) as part:
        part.write_bytes(content)
    return Path(path)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, content: object) -> None:
    """Write a JSON file whole."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
