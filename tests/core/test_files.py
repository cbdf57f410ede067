import os
import stat
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gap.core.errors import GapError
from gap.core.files import atomic_write, check_writable, descriptor, stale_temp_files, write_bytes


def test_makes_the_folder_and_replaces_the_file(tmp_path):
    path = tmp_path / "new" / "file.bin"
    write_bytes(path, b"old")
    assert write_bytes(str(path), b"new") == path
    assert path.read_bytes() == b"new"
    assert [file.name for file in path.parent.iterdir()] == ["file.bin"]


def test_others_may_read_what_was_written_as_the_user_has_it(tmp_path):
    """Weights too, which safetensors writes for their owner alone."""
    before = os.umask(0o022)
    try:
        path = tmp_path / "model.safetensors"
        with atomic_write(path) as part:
            save_file({"weight": torch.zeros(1)}, part)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def full_disk(source, target):
        assert os.path.dirname(source) == os.path.dirname(target)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(GapError, match=r"file\.bin cannot be written: No space left on device"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.bin"]


def test_a_folder_in_the_way_is_one_clear_line(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(GapError, match=r"taken.* cannot be written"):
        write_bytes(tmp_path / "taken", b"x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(GapError, match="cannot be written"):
        write_bytes(tmp_path / "file" / "under", b"x")


def test_leftovers_are_those_of_the_names_asked_for(tmp_path):
    ours = [".card.yaml.1.part", ".card.yaml.23456.part"]
    for name in [*ours, "card.yaml", ".card.yaml.x.part", ".card_yaml.1.part", ".other.1.part", "card.yaml.1.part"]:
        (tmp_path / name).write_bytes(b"")
    assert sorted(path.name for path in stale_temp_files(tmp_path, ["card.yaml", "model.safetensors"])) == ours


def make_node(path, kind, *numbers):
    """A device node of our own, so that no test writes to one of the machine's."""
    try:
        os.mknod(path, 0o666 | kind, os.makedev(*numbers))
        os.close(os.open(path, os.O_WRONLY))
    except OSError:
        pytest.skip("device nodes may not be made here")
    return path


def read_in_background(path):
    """The content that a reader of a pipe gets, once it is joined."""
    parts = []
    thread = threading.Thread(target=lambda: parts.append(path.read_bytes()), daemon=True)
    thread.start()
    return thread, parts


def test_write_to_a_pipe_reaches_its_reader_and_keeps_the_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader, parts = read_in_background(pipe)
    write_bytes(pipe, b"content")
    reader.join(timeout=10)
    assert parts == [b"content"]
    assert pipe.is_fifo() and os.listdir(tmp_path) == ["pipe"]


def test_write_to_a_device_keeps_the_device(tmp_path):
    node = make_node(tmp_path / "null", stat.S_IFCHR, 1, 3)
    write_bytes(node, b"content")
    assert node.is_char_device() and os.listdir(tmp_path) == ["null"]


def test_write_to_a_full_device_says_so(tmp_path):
    node = make_node(tmp_path / "full", stat.S_IFCHR, 1, 7)
    with pytest.raises(GapError, match="full cannot be written: No space left on device"):
        write_bytes(node, b"content")
    assert node.is_char_device()


def test_write_to_a_link_replaces_its_target_and_keeps_the_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_bytes(b"old")
    (tmp_path / "second").symlink_to("there/file")
    link = tmp_path / "first"
    link.symlink_to("second")
    write_bytes(link, b"new")
    assert link.readlink() == Path("second") and (tmp_path / "second").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path / "there") == ["file"]


def test_write_to_a_link_without_target_makes_the_target(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("new/file")
    write_bytes(link, b"content")
    assert link.is_symlink() and (tmp_path / "new" / "file").read_bytes() == b"content"


def test_write_to_a_link_to_a_device_keeps_both(tmp_path):
    node = make_node(tmp_path / "null", stat.S_IFCHR, 1, 3)
    (tmp_path / "link").symlink_to(node)
    write_bytes(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink() and node.is_char_device()


@pytest.mark.parametrize("write", [check_writable, lambda path: write_bytes(path, b"content")])
def test_write_to_links_in_a_ring_says_so(tmp_path, write):
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to("first")
    with pytest.raises(GapError, match=r"first is a link that leads back to itself; remove it"):
        write(tmp_path / "first")


def test_write_to_an_open_file_adds_to_it_where_its_descriptor_stands(tmp_path):
    """As a shell has it that redirects to a file: a rename would leave the shell with the old one."""
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"before\n")
        write_bytes(f"/dev/fd/{file.fileno()}", b"content\n")
        file.write(b"after\n")
    assert (tmp_path / "file").read_bytes() == b"before\ncontent\nafter\n"


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors of processes have no names here")
def test_write_to_the_open_file_of_another_process_keeps_the_file(tmp_path):
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"before\n")
        with subprocess.Popen(["sleep", "60"], stdout=file) as process:
            write_bytes(f"/proc/{process.pid}/fd/1", b"content\n")
            process.kill()
        assert (tmp_path / "file").stat().st_ino == os.fstat(file.fileno()).st_ino
    assert (tmp_path / "file").read_bytes() == b"before\ncontent\n"


def test_write_to_a_reader_that_left_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    write_bytes(f"/dev/fd/{writer}", b"x" * 100_000)
    os.close(writer)


@pytest.mark.parametrize("write", [check_writable, lambda path: write_bytes(path, b"content")])
def test_write_to_a_closed_descriptor_says_so(write):
    with pytest.raises(GapError, match="/dev/fd/987 cannot be written: Bad file descriptor"):
        write("/dev/fd/987")


def test_write_that_fails_sends_nothing_to_a_pipe():
    reader, writer = os.pipe()
    with suppress(GapError), atomic_write(f"/dev/fd/{writer}") as part:
        part.write_bytes(b"half")
        raise GapError("no")
    os.close(writer)
    assert os.read(reader, 10) == b""
    os.close(reader)


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_replaced_file_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/dev/stdout", 1),
        ("/dev/fd/7", 7),
        ("/proc/self/fd/1", 1),
        ("/proc/self/fd/one", None),
        ("/proc/1/fd/1", 1 if os.getpid() == 1 else None),
        ("stdout", None),
        ("-", None),
    ],
)
def test_descriptor_is_known_by_its_path(path, number):
    if path.startswith("/proc") and not os.path.isdir("/proc/self/fd"):
        pytest.skip("descriptors of processes have no names here")
    assert descriptor(path) == number


def test_descriptor_is_known_through_links(tmp_path):
    (tmp_path / "link").symlink_to("/dev/stdout")
    assert descriptor(tmp_path / "link") == 1


def test_check_makes_the_folder_and_leaves_the_file_as_it_is(tmp_path):
    path = tmp_path / "new" / "file"
    check_writable(path)
    assert os.listdir(path.parent) == []
    path.write_bytes(b"old")
    check_writable(path)
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == ["file"]


def test_check_of_a_folder_or_under_a_file_says_so(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path, tmp_path / "file" / "under"):
        with pytest.raises(GapError, match="cannot be written"):
            check_writable(path)


def test_check_of_a_pipe_waits_for_no_reader(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    check_writable(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
