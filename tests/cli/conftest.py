"""The command line in this process, and small artifacts that it made."""

import io
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from gap.cli.app import main

# A network that learns something in a second.
SMALL = (
    "--batch-size=64",
    "--set=generator.decoder=[16,16]",
    "--set=generator.encoder=strided-32",
    "--set=generator.pixel_unshuffle=4",
)

NETWORKS = """
from torch import nn


class Net(nn.Module):
    # Takes gray or color pictures of any size, and has learned nothing.

    def __init__(self, say=lambda logits: logits):
        super().__init__()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(49, 10))
        nn.init.zeros_(self.body[2].weight)
        self.say = say

    def forward(self, images):
        return self.say(self.body(images.mean(dim=1, keepdim=True)))


def nan():
    return Net(lambda logits: logits / 0 * 0)


def pair():
    return Net(lambda logits: (logits, logits))


def spatial():
    return Net(lambda logits: logits[:, :, None, None])


def softmax():
    return Net(lambda logits: (logits * 10).softmax(dim=1))


def needy(size):
    return Net()


def number():
    return 3


class Mean(nn.Module):
    # Class 0 by the mean pixel, and nine others that are always 0.

    def forward(self, images):
        return nn.functional.pad(images.mean(dim=(1, 2, 3))[:, None], (0, 9))


def mean():
    return Mean()


def color():
    return nn.Sequential(nn.Conv2d(3, 10, 28), nn.Flatten())
"""


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


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Options of `gap train` for a network that learns something in a second."""
    return SMALL


@pytest.fixture(scope="session")
def made(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes an artifact, or fails saying why."""

    def make(name: str, *arguments: str | os.PathLike[str]) -> Path:
        folder = tmp_path_factory.mktemp("artifacts") / name
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
    return made(
        "direct", "train", "--classifier", classifier, "--unbounded", "--target-norm=l2:3", "--epochs=0.3", *SMALL
    )


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    """A Python file with classifiers of a user's own, each with something wrong."""
    (tmp_path / "networks.py").write_text(NETWORKS)
    return tmp_path / "networks.py"


class Evil:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.fspath(self.witness),)


@pytest.fixture
def evil(tmp_path: Path) -> Evil:
    """Something whose pickle makes the folder `ran` when it is loaded."""
    return Evil(tmp_path / "ran")
