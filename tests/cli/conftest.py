"""The command line in this process, and small artefacts that it made."""

import io
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest
import torch

from gap.cli.main import main

# A network that learns something in a second.
SMALL = (
    "--batch-size=64",
    "--set=generator.decoder=[16,16]",
    "--set=generator.encoder=strided-32",
    "--set=generator.fold=4",
)


class Ended(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line of an error; fails where the command did not end with one line and exit status 2."""
        assert self.code == 2, self
        assert "Traceback" not in self.err
        *before, last = self.err.splitlines()
        assert last.startswith("gap: ")
        assert not [line for line in before if line.startswith("gap: ")], self.err
        return last.removeprefix("gap: ")

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("gap: ")]


Run = Callable[..., Ended]


@pytest.fixture(scope="session")
def run() -> Run:
    """Run `gap` with these arguments, as its console script would."""

    def call(*arguments: str | os.PathLike[str]) -> Ended:
        out, err = io.StringIO(), io.StringIO()
        given = ["gap", *map(os.fspath, arguments)]
        with patch.object(sys, "argv", given), redirect_stdout(out), redirect_stderr(err):
            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code or 0
        return Ended(code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Options of `gap train` for a network that learns something in a second."""
    return SMALL


@pytest.fixture(scope="session")
def made(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes an artefact, or fails saying why."""

    def make(name: str, *arguments: str | os.PathLike[str]) -> Path:
        folder = tmp_path_factory.mktemp("artefacts") / name
        ended = run(*arguments, "--out", folder)
        assert ended.code == 0, ended.err
        return folder

    return make


@pytest.fixture(scope="session")
def classifier(made: Callable[..., Path]) -> Path:
    return made("classifier", "pretrain", "--epochs=3", "--batch-size=64")


@pytest.fixture(scope="session")
def per_image(made: Callable[..., Path], classifier: Path) -> Path:
    return made("per-image", "train", "--classifier", classifier, "--budget=l2:3", "--epochs=1", *SMALL)


@pytest.fixture(scope="session")
def universal(made: Callable[..., Path], classifier: Path) -> Path:
    return made(
        "universal", "train", "--classifier", classifier, "--budget=linf:0.2", "--universal", "--epochs=0.3", *SMALL
    )


@pytest.fixture(scope="session")
def direct(made: Callable[..., Path], classifier: Path) -> Path:
    return made("direct", "train", "--classifier", classifier, "--direct", "--magnitude=l2:3", "--epochs=0.3", *SMALL)
