"""Standard output and standard error that cannot fail: closed, full, of a narrow encoding, or not blocking."""

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

# More than a pipe and the buffers before it hold.
LONG = "x" * 200_000
PRINT = "import sys; from gap.cli.streams import install; install(); {}; sys.stdout.write('a \\u2013 b\\n'); {}"

Installed = Callable[..., TextIO]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Standard output after `install`, where it was this stream before."""

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


def written(stream: TextIO, reader: int, text: str) -> bytes:
    stream.write(text)
    stream.flush()
    return os.read(reader, 1000)


def test_stream_closed_pipe_is_given_up(installed: Installed, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    stream = installed(os.fdopen(writer, "w", closefd=False))
    os.close(reader)
    stream.write(LONG)
    stream.flush()
    print("more", file=stream, flush=True)


def test_stream_full_disk_is_given_up(installed: Installed, tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "full", 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        file = (tmp_path / "full").open("w")
    except OSError:
        pytest.skip("device nodes may not be made here")
    stream = installed(file)
    stream.write(LONG)
    stream.flush()


def test_stream_narrow_encoding_gets_question_marks_and_paths_keep_their_bytes(
    installed: Installed, pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    stream = installed(os.fdopen(writer, "w", encoding="ascii", closefd=False))
    assert written(stream, reader, "a \u2013 b \udcff\u2192") == b"a ? b \xff?"
    assert stream.encoding == "ascii"


def test_stream_of_utf_8_writes_paths_that_are_no_text(installed: Installed, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    stream = installed(os.fdopen(writer, "w", encoding="utf-8", closefd=False))
    assert written(stream, reader, "\u2013 \udcff \ud800") == b"\xe2\x80\x93 \xff ?"


def test_stream_terminal_is_still_a_terminal(installed: Installed) -> None:
    main, terminal = pty.openpty()
    os.set_blocking(main, False)
    stream = installed(os.fdopen(terminal, "w", buffering=1))
    stream.write("a\n")
    assert os.read(main, 100) == b"a\r\n", "a line is written at its end"
    assert stream.isatty() and stream.fileno() == terminal
    os.close(main)
    stream.write(LONG + "\n")  # the window was closed


def test_stream_unbuffered_stays_unbuffered(installed: Installed, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(reader, False)
    raw = os.fdopen(writer, "wb", buffering=0, closefd=False)
    stream = installed(io.TextIOWrapper(raw, write_through=True))
    stream.write("a")
    assert os.read(reader, 100) == b"a"


def test_stream_that_does_not_block_loses_nothing(installed: Installed, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    stream = installed(os.fdopen(writer, "w", closefd=False))
    parts: list[bytes] = []

    def read() -> None:
        while sum(map(len, parts)) < len(LONG):
            parts.append(os.read(reader, 1000))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    stream.write(LONG)
    stream.flush()
    thread.join(timeout=10)
    assert b"".join(parts) == LONG.encode()


def test_stream_of_a_test_stays_as_it_is(installed: Installed) -> None:
    stream = io.StringIO()
    assert installed(stream) is stream


def test_stream_that_is_missing_takes_anything(installed: Installed) -> None:
    installed(None).write("a \u2013 \udcff\n")


@pytest.mark.parametrize("redirect", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>&-"])
def test_process_with_closed_descriptors_ends_well_and_its_files_keep_their_content(
    redirect: str, tmp_path: Path
) -> None:
    """A file that is opened gets none of the numbers of standard streams, to which others may write."""
    file = tmp_path / "result.txt"
    code = PRINT.format(f"f = open({str(file)!r}, 'w')", "import os; os.write(2, b'noise'); f.write('result')")
    ended = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" {redirect}', sys.executable, code], capture_output=True, check=False, timeout=60
    )
    assert ended.returncode == 0
    assert file.read_text() == "result"


def test_process_whose_reader_left_ends_well_and_in_silence() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = PRINT.format("pass", "sys.stdout.write('x' * 200_000)")
    ended = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
def test_process_in_an_ascii_environment_prints_question_marks(environment: dict[str, str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PRINT.format("pass", "pass")],
        env=os.environ | environment,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (0, b"a ? b\n")
