"""The command line in this process, and small artifacts that it wrote."""

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

# Options of a generator that is trained in a second.
SMALL = (
    "--batch-size=64",
    "--set=generator.decoder=[16,16]",
    "--set=generator.encoder=strided-32",
    "--set=generator.pixel_unshuffle=4",
)

NETWORKS = """
from torch import nn


class Net(nn.Module):
    # An untrained network for gray or color images of any size.

    def __init__(self, transform=lambda logits: logits):
        super().__init__()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(49, 10))
        nn.init.zeros_(self.body[2].weight)
        self.transform = transform

    def forward(self, images):
        return self.transform(self.body(images.mean(dim=1, keepdim=True)))


def nan():
    return Net(lambda logits: logits / 0 * 0)


def pair():
    return Net(lambda logits: (logits, logits))


def spatial():
    return Net(lambda logits: logits[:, :, None, None])


def softmax():
    return Net(lambda logits: (logits * 10).softmax(dim=1))


def needs_argument(size):
    return Net()


def number():
    return 3


class Mean(nn.Module):
    # The logit of class 0 is the mean pixel; those of the nine other classes are 0.

    def forward(self, images):
        return nn.functional.pad(images.mean(dim=(1, 2, 3))[:, None], (0, 9))


def mean():
    return Mean()


def color():
    return nn.Sequential(nn.Conv2d(3, 10, 28), nn.Flatten())
"""


class CommandResult(NamedTuple):
    """The exit status of a command, and its output."""

    code: int
    out: str
    err: str

    @property
    def error_line(self) -> str:
        """The line of the error; fails unless the command printed exactly one such line and exited with status 2."""
        assert self.code == 2, self
        assert "Traceback" not in self.err
        *before, last = self.err.splitlines()
        assert last.startswith("gap: ")
        assert not [line for line in before if line.startswith("gap: ")], self.err
        return last.removeprefix("gap: ")

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("gap: ")]


Run = Callable[..., CommandResult]


@pytest.fixture(scope="session")
def run() -> Run:
    """Run `gap` with these arguments, as its console script would."""

    def call(*arguments: str | os.PathLike[str]) -> CommandResult:
        out, err = io.StringIO(), io.StringIO()
        argv = ["gap", *map(os.fspath, arguments)]
        with patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code or 0
        return CommandResult(code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="session")
def small_generator() -> tuple[str, ...]:
    """Options of `gap train` for a generator that is trained in a second."""
    return SMALL


@pytest.fixture(scope="session")
def make_artifact(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs a command with `--out` set to a new folder, and returns the folder; fails if the command does."""

    def make(name: str, *arguments: str | os.PathLike[str]) -> Path:
        folder = tmp_path_factory.mktemp("artifacts") / name
        result = run(*arguments, "--out", folder)
        assert result.code == 0, result.err
        return folder

    return make


@pytest.fixture(scope="session")
def classifier(make_artifact: Callable[..., Path]) -> Path:
    return make_artifact("classifier", "pretrain", "--epochs=3", "--batch-size=64")


@pytest.fixture(scope="session")
def per_image(make_artifact: Callable[..., Path], classifier: Path) -> Path:
    return make_artifact("per-image", "train", "--classifier", classifier, "--budget=l2:3", "--epochs=1", *SMALL)


@pytest.fixture(scope="session")
def universal(make_artifact: Callable[..., Path], classifier: Path) -> Path:
    return make_artifact(
        "universal", "train", "--classifier", classifier, "--budget=linf:0.2", "--universal", "--epochs=0.3", *SMALL
    )


@pytest.fixture(scope="session")
def direct(make_artifact: Callable[..., Path], classifier: Path) -> Path:
    return make_artifact(
        "direct", "train", "--classifier", classifier, "--unbounded", "--target-norm=l2:3", "--epochs=0.3", *SMALL
    )


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    """A Python file with classifiers of the user, most of them broken in some way."""
    (tmp_path / "networks.py").write_text(NETWORKS)
    return tmp_path / "networks.py"


class PickledCode:
    """An object whose pickle creates a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.fspath(self.folder),)


@pytest.fixture
def pickled_code(tmp_path: Path) -> PickledCode:
    """An object whose pickle creates the folder `ran` when it is loaded."""
    return PickledCode(tmp_path / "ran")
