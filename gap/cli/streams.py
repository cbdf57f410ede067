"""Standard output and standard error that never fail, so that what is printed cannot end the work."""

import codecs
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

REPLACE = "gap.replace"
ESCAPED_BYTES = range(0xDC80, 0xDD00)  # how Python keeps the bytes of a path that are no text


class SafeOutput(io.RawIOBase):
    """The raw part of a stream. What it cannot write, because a pipe is closed or a disk is full, is given up."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self.stream = stream  # would close its file when it is collected
        self.raw = _raw(stream)
        self.name = stream.name

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.raw.fileno()

    def isatty(self) -> bool:
        return self.raw.isatty()

    def write(self, content: Any) -> int:
        rest = memoryview(content)
        count = len(rest)
        with suppress(OSError):
            while rest:
                rest = rest[self._write_some(rest) :]
        return count

    def _write_some(self, content: memoryview) -> int:
        """Write what fits. A descriptor that does not block is waited for."""
        count = self.raw.write(content)
        if count is None:
            select.select([], [self.raw.fileno()], [])
        return count or 0


def install() -> None:
    """Put streams that never fail in the place of standard output and standard error.

    Streams that are no files, such as those of a test, stay as they are.
    """
    codecs.register_error(REPLACE, _replace)
    _open_closed_descriptors()
    sys.stdout = _safe(sys.stdout)
    sys.stderr = _safe(sys.stderr)


def _safe(stream: TextIO | None) -> TextIO:
    """The stream with its encoding, its buffering and its width, that gives up what it cannot write."""
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
    """What is beneath the encoding and the buffer of a stream."""
    return getattr(stream.buffer, "raw", stream.buffer)


def _open_closed_descriptors() -> None:
    """Open the null device on each standard descriptor that is closed, so that no file of the work takes its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """For an encoding that lacks a character: the bytes that a path is made of as they are, ? for anything else."""
    assert isinstance(error, UnicodeEncodeError)
    code = ord(error.object[error.start])
    return bytes([code - 0xDC00]) if code in ESCAPED_BYTES else "?", error.start + 1
