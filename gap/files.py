"""Files that appear whole: written under a temporary name in their own folder, then renamed."""

import json
import os
from collections.abc import Iterator
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise GapError(f"{path} cannot be written: {reason}; is there space, and may you write there?") from error


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
