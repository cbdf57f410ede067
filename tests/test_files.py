import os

import pytest
import torch
from safetensors.torch import save_file

from gap.errors import GapError
from gap.files import leftovers, whole, write_bytes


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
        with whole(path) as part:
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
    assert sorted(path.name for path in leftovers(tmp_path, ["card.yaml", "model.safetensors"])) == ours
