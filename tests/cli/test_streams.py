"""Standard output and standard error that never raise: closed, full, of a narrow encoding, or non-blocking."""

import io
import os
import pty
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from gap.cli.streams import install

# Longer than the buffers of a pipe and of the stream before it.
LONG = "x" * 200_000
PRINT = "import sys; from gap.cli.streams import install; install(); {}; sys.stdout.write('a \\u2013 b\\n'); {}"

InstallStream = Callable[..., TextIO]


@pytest.fixture
def install_stream(monkeypatch: pytest.MonkeyPatch) -> InstallStream:
    """Makes this stream the standard output, calls `install`, and returns the standard output that results."""

    def call(stream: object) -> TextIO:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        install()
        return sys.stdout

    return call


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for number in (reader, writer):
        try:
            os.close(number)
        except OSError:
            continue


def write_and_read(stream: TextIO, reader: int, text: str) -> bytes:
    stream.write(text)
    stream.flush()
    return os.read(reader, 1000)


def test_stream_closed_pipe_writes_without_error(install_stream: InstallStream, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    stream = install_stream(os.fdopen(writer, "w", closefd=False))
    os.close(reader)
    stream.write(LONG)
    stream.flush()
    print("more", file=stream, flush=True)


def test_stream_full_disk_writes_without_error(install_stream: InstallStream, tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "full", 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        file = (tmp_path / "full").open("w")
    except OSError:
        pytest.skip("device nodes may not be made here")
    stream = install_stream(file)
    stream.write(LONG)
    stream.flush()


def test_stream_ascii_encoding_prints_question_marks_and_keeps_bytes_of_paths(
    install_stream: InstallStream, pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    stream = install_stream(os.fdopen(writer, "w", encoding="ascii", closefd=False))
    assert write_and_read(stream, reader, "a \u2013 b \udcff\u2192") == b"a ? b \xff?"
    assert stream.encoding == "ascii"


def test_stream_utf_8_encoding_keeps_undecodable_bytes_of_paths(
    install_stream: InstallStream, pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    stream = install_stream(os.fdopen(writer, "w", encoding="utf-8", closefd=False))
    assert write_and_read(stream, reader, "\u2013 \udcff \ud800") == b"\xe2\x80\x93 \xff ?"


def test_stream_terminal_stays_a_terminal(install_stream: InstallStream) -> None:
    main, terminal = pty.openpty()
    os.set_blocking(main, False)
    stream = install_stream(os.fdopen(terminal, "w", buffering=1))
    stream.write("a\n")
    assert os.read(main, 100) == b"a\r\n", "a line is written at its end"
    assert stream.isatty() and stream.fileno() == terminal
    os.close(main)
    stream.write(LONG + "\n")  # the window was closed


def test_stream_unbuffered_stays_unbuffered(install_stream: InstallStream, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(reader, False)
    raw = os.fdopen(writer, "wb", buffering=0, closefd=False)
    stream = install_stream(io.TextIOWrapper(raw, write_through=True))
    stream.write("a")
    assert os.read(reader, 100) == b"a"


def test_stream_non_blocking_pipe_gets_all_bytes(install_stream: InstallStream, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    stream = install_stream(os.fdopen(writer, "w", closefd=False))
    parts: list[bytes] = []

    def read_all() -> None:
        while sum(map(len, parts)) < len(LONG):
            parts.append(os.read(reader, 1000))

    thread = threading.Thread(target=read_all, daemon=True)
    thread.start()
    stream.write(LONG)
    stream.flush()
    thread.join(timeout=10)
    assert b"".join(parts) == LONG.encode()


def test_stream_string_io_is_left_unchanged(install_stream: InstallStream) -> None:
    stream = io.StringIO()
    assert install_stream(stream) is stream


def test_stream_none_accepts_any_text(install_stream: InstallStream) -> None:
    install_stream(None).write("a \u2013 \udcff\n")


@pytest.mark.parametrize("redirect", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>&-"])
def test_process_closed_descriptors_exits_with_0_and_its_files_keep_their_content(
    redirect: str, tmp_path: Path
) -> None:
    """Catches: a file that gets the number of a closed standard stream, to which other code then writes."""
    file = tmp_path / "result.txt"
    code = PRINT.format(f"f = open({str(file)!r}, 'w')", "import os; os.write(2, b'noise'); f.write('result')")
    result = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" {redirect}', sys.executable, code], capture_output=True, check=False, timeout=60
    )
    assert result.returncode == 0
    assert file.read_text() == "result"


def test_process_closed_reader_exits_with_0_and_no_message() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = PRINT.format("pass", "sys.stdout.write('x' * 200_000)")
    result = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
def test_process_ascii_environment_prints_question_marks(environment: dict[str, str]) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PRINT.format("pass", "pass")],
        env=os.environ | environment,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (0, b"a ? b\n")
