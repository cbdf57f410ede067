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


def test_write_bytes_missing_folder_is_made_and_file_is_replaced(tmp_path):
    path = tmp_path / "new" / "file.bin"
    write_bytes(path, b"old")
    assert write_bytes(str(path), b"new") == path
    assert path.read_bytes() == b"new"
    assert [file.name for file in path.parent.iterdir()] == ["file.bin"]


def test_atomic_write_new_file_has_the_permissions_of_the_umask(tmp_path):
    """Catches: the mode 0600 of temporary files, which safetensors also gives to weights."""
    before = os.umask(0o022)
    try:
        path = tmp_path / "model.safetensors"
        with atomic_write(path) as part:
            save_file({"weight": torch.zeros(1)}, part)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_write_bytes_full_disk_keeps_the_old_file_and_no_temporary_file(tmp_path, monkeypatch):
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


def test_write_bytes_onto_a_folder_or_below_a_file_raises(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(GapError, match=r"taken.* cannot be written"):
        write_bytes(tmp_path / "taken", b"x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(GapError, match="cannot be written"):
        write_bytes(tmp_path / "file" / "under", b"x")


def test_stale_temp_files_lists_those_of_the_given_names(tmp_path):
    expected = [".card.yaml.1.part", ".card.yaml.23456.part"]
    for name in [*expected, "card.yaml", ".card.yaml.x.part", ".card_yaml.1.part", ".other.1.part", "card.yaml.1.part"]:
        (tmp_path / name).write_bytes(b"")
    assert sorted(path.name for path in stale_temp_files(tmp_path, ["card.yaml", "model.safetensors"])) == expected


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


def test_write_bytes_pipe_gets_the_content_and_stays_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader, parts = read_in_background(pipe)
    write_bytes(pipe, b"content")
    reader.join(timeout=10)
    assert parts == [b"content"]
    assert pipe.is_fifo() and os.listdir(tmp_path) == ["pipe"]


def test_write_bytes_device_stays_a_device(tmp_path):
    node = make_node(tmp_path / "null", stat.S_IFCHR, 1, 3)
    write_bytes(node, b"content")
    assert node.is_char_device() and os.listdir(tmp_path) == ["null"]


def test_write_bytes_full_device_raises_with_the_reason(tmp_path):
    node = make_node(tmp_path / "full", stat.S_IFCHR, 1, 7)
    with pytest.raises(GapError, match="full cannot be written: No space left on device"):
        write_bytes(node, b"content")
    assert node.is_char_device()


def test_write_bytes_link_keeps_the_link_and_replaces_its_target(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_bytes(b"old")
    (tmp_path / "second").symlink_to("there/file")
    link = tmp_path / "first"
    link.symlink_to("second")
    write_bytes(link, b"new")
    assert link.readlink() == Path("second") and (tmp_path / "second").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path / "there") == ["file"]


def test_write_bytes_link_without_target_makes_the_target(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("new/file")
    write_bytes(link, b"content")
    assert link.is_symlink() and (tmp_path / "new" / "file").read_bytes() == b"content"


def test_write_bytes_link_to_a_device_keeps_both(tmp_path):
    node = make_node(tmp_path / "null", stat.S_IFCHR, 1, 3)
    (tmp_path / "link").symlink_to(node)
    write_bytes(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink() and node.is_char_device()


@pytest.mark.parametrize("write", [check_writable, lambda path: write_bytes(path, b"content")])
def test_write_circular_links_raises_with_the_link(tmp_path, write):
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to("first")
    with pytest.raises(GapError, match=r"first is a link that leads back to itself; remove it"):
        write(tmp_path / "first")


def test_write_bytes_descriptor_of_an_open_file_writes_at_its_position(tmp_path):
    """Catches: a rename, after which a shell that redirects to the file writes on to the old one."""
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"before\n")
        write_bytes(f"/dev/fd/{file.fileno()}", b"content\n")
        file.write(b"after\n")
    assert (tmp_path / "file").read_bytes() == b"before\ncontent\nafter\n"


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors of processes have no names here")
def test_write_bytes_descriptor_of_another_process_keeps_the_file(tmp_path):
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"before\n")
        with subprocess.Popen(["sleep", "60"], stdout=file) as process:
            write_bytes(f"/proc/{process.pid}/fd/1", b"content\n")
            process.kill()
        assert (tmp_path / "file").stat().st_ino == os.fstat(file.fileno()).st_ino
    assert (tmp_path / "file").read_bytes() == b"before\ncontent\n"


def test_write_bytes_pipe_closed_by_its_reader_does_not_raise():
    reader, writer = os.pipe()
    os.close(reader)
    write_bytes(f"/dev/fd/{writer}", b"x" * 100_000)
    os.close(writer)


@pytest.mark.parametrize("write", [check_writable, lambda path: write_bytes(path, b"content")])
def test_write_closed_descriptor_raises_with_its_path(write):
    with pytest.raises(GapError, match="/dev/fd/987 cannot be written: Bad file descriptor"):
        write("/dev/fd/987")


def test_atomic_write_error_while_writing_sends_nothing_to_a_pipe():
    reader, writer = os.pipe()
    with suppress(GapError), atomic_write(f"/dev/fd/{writer}") as part:
        part.write_bytes(b"half")
        raise GapError("no")
    os.close(writer)
    assert os.read(reader, 10) == b""
    os.close(reader)


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_write_bytes_replaced_file_keeps_its_permissions(tmp_path, mode):
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
def test_descriptor_path_of_a_descriptor_gives_its_number(path, number):
    if path.startswith("/proc") and not os.path.isdir("/proc/self/fd"):
        pytest.skip("descriptors of processes have no names here")
    assert descriptor(path) == number


def test_descriptor_link_to_a_descriptor_gives_its_number(tmp_path):
    (tmp_path / "link").symlink_to("/dev/stdout")
    assert descriptor(tmp_path / "link") == 1


def test_check_writable_makes_the_folder_and_keeps_the_file(tmp_path):
    path = tmp_path / "new" / "file"
    check_writable(path)
    assert os.listdir(path.parent) == []
    path.write_bytes(b"old")
    check_writable(path)
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == ["file"]


def test_check_writable_folder_or_path_below_a_file_raises(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path, tmp_path / "file" / "under"):
        with pytest.raises(GapError, match="cannot be written"):
            check_writable(path)


def test_check_writable_pipe_without_reader_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    check_writable(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
