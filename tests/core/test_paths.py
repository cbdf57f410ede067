"""Paths that users write: what exists there, and names that no file can have."""

import errno
import os
from pathlib import Path

import pytest

from gap.core.errors import GapError
from gap.core.paths import exists, expanded, is_file, is_folder


def test_exists_is_file_is_folder_give_what_the_path_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    results = [
        (exists(path), is_file(path), is_folder(path)) for path in (tmp_path / "file", tmp_path, tmp_path / "no")
    ]
    assert results == [(True, True, False), (True, False, True), (False, False, False)]


@pytest.mark.parametrize("name", ["", "q" * 5000, "a\0b", "\ud800"])
def test_exists_impossible_name_is_false(name: str) -> None:
    """Catches: a `ValueError` or `OSError` of the system where the answer is that nothing exists."""
    assert not exists(name) and not is_file(name) and not is_folder(name)


def test_exists_permission_denied_raises_with_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(GapError, match=r"^cannot look at closed/w\.pt: Permission denied; change"):
        exists("closed/w.pt")


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "~\0"])
def test_expanded_home_folder_of_unknown_user_is_refused(name: str) -> None:
    with pytest.raises(GapError, match="there is no home folder for"):
        expanded(name)
