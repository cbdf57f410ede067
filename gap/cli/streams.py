"""Standard output and standard error that never raise, so that printing cannot end a command."""

import codecs
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

REPLACE = "gap.replace"
ESCAPED_BYTES = range(0xDC80, 0xDD00)  # Python's surrogates of bytes in a path that are not valid text


class SafeOutput(io.RawIOBase):
    """The raw part of a stream that drops what it cannot write, because a pipe is closed or a disk is full."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self.stream = stream  # a reference: the stream would close its file when it is garbage collected
        self.raw = _raw(stream)
        self.name = stream.name

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.raw.fileno()

    def isatty(self) -> bool:
        return self.raw.isatty()

    def write(self, content: Any) -> int:
        remaining = memoryview(content)
        count = len(remaining)
        with suppress(OSError):
            while remaining:
                remaining = remaining[self._write_some(remaining) :]
        return count

    def _write_some(self, content: memoryview) -> int:
        """Write as much as possible. Waits for a non-blocking descriptor that is not ready."""
        count = self.raw.write(content)
        if count is None:
            select.select([], [self.raw.fileno()], [])
        return count or 0


def install() -> None:
    """Replace standard output and standard error by streams that never raise.

    Streams that are not files, such as those of tests, are not replaced.
    """
    codecs.register_error(REPLACE, _replace)
    _open_closed_descriptors()
    sys.stdout = _safe(sys.stdout)
    sys.stderr = _safe(sys.stderr)


def _safe(stream: TextIO | None) -> TextIO:
    """A stream with the same encoding and buffering that drops what it cannot write."""
    if stream is None:  # its descriptor was closed when Python started
        return open(os.devnull, "w", encoding="utf-8", errors=REPLACE)
    if not isinstance(stream, io.TextIOWrapper) or not isinstance(_raw(stream), io.RawIOBase):
        return stream
    raw: Any = SafeOutput(stream)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=REPLACE,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _raw(stream: io.TextIOWrapper) -> Any:
    """The raw stream below the encoding and the buffer."""
    return getattr(stream.buffer, "raw", stream.buffer)


def _open_closed_descriptors() -> None:
    """Open the null device on every closed standard descriptor, so that no other file gets its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """The replacement of a character that an encoding does not have: the byte of a path, or else a question mark."""
    assert isinstance(error, UnicodeEncodeError)
    code = ord(error.object[error.start])
    return bytes([code - 0xDC00]) if code in ESCAPED_BYTES else "?", error.start + 1
