"""Files that appear whole: written under a temporary name in their own folder, then renamed."""

import os
from pathlib import Path

from gap.errors import GapError


def write_whole(path: str | Path, content: bytes) -> Path:
    """Write `content` to `path`, making its folder; a reader sees the old file or the new one, never a part.

    Raises GapError, and leaves nothing new behind, when the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise GapError(
            f"cannot write {path}: {error.strerror or error}; is there space, and may you write there?"
        ) from error
    return path
