"""Paths as users write them: what stands there, and names of nothing."""

import errno
import os
from pathlib import Path

import pytest

from gap.core.errors import GapError
from gap.core.paths import exists, expanded, is_file, is_folder


def test_a_file_a_folder_and_nothing_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = [(exists(path), is_file(path), is_folder(path)) for path in (tmp_path / "file", tmp_path, tmp_path / "no")]
    assert found == [(True, True, False), (True, False, True), (False, False, False)]


@pytest.mark.parametrize("name", ["", "q" * 5000, "a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_one_of_nothing(name: str) -> None:
    assert not exists(name) and not is_file(name) and not is_folder(name)


def test_a_path_that_may_not_be_looked_at_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(GapError, match=r"^cannot look at closed/w\.pt: Permission denied; change"):
        exists("closed/w.pt")


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "~\0"])
def test_a_home_folder_that_nobody_has_is_refused(name: str) -> None:
    with pytest.raises(GapError, match="there is no home folder for"):
        expanded(name)
