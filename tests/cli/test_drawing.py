"""Drawing through the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gap.data.named import load_data
from gap.report.pictures import save_image, to_image


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    test = load_data("mnist-5k").test
    images, _ = next(test.batches([torch.tensor([3])]))
    return save_image(to_image(images), tmp_path / "digit.png")


def test_traverse(run: Callable[..., Any], classifier: Path, digit: Path, tmp_path: Path) -> None:
    out = tmp_path / "walk.gif"
    ended = run("traverse", classifier, digit, "--beside", "mnist-cnn", "--to=0", "--steps=8", "--out", out)
    assert ended.code == 0, ended.err
    assert "digit.png" in ended.out and "-> 0" in ended.out and "within l2:7" in ended.out
    assert ended.out.splitlines()[-1] == str(out)
    with Image.open(out) as walk, Image.open(tmp_path / "walk.png") as sheet:
        assert walk.n_frames >= 5 and sheet.width > 300


def test_a_network_of_one_s_own_walks_beside_at_the_first_one_s_size(
    run: Callable[..., Any], classifier: Path, digit: Path, networks: Path, tmp_path: Path
) -> None:
    own = f"{networks}:mean"
    ended = run("traverse", classifier, digit, "--beside", own, "--to=0", "--steps=2", "--out", tmp_path / "walk.gif")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to=11", "--out=walk.gif"), "knows the classes 0 to 9, not 11"),
        (("--to=zero", "--out=walk.gif"), "unknown class 'zero'"),
        (("--to=0", "--out=walk.avi"), "end it in .mp4 or .gif"),
        (("--to=0", "--out=walk.gif", "--budget=l2:40"), "allows every picture"),
        (("--to=0", "--out=walk.gif", "--beside=efficientnet-lite0"), "differ in channels or classes"),
    ],
)
def test_mistakes(
    run: Callable[..., Any], classifier: Path, digit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    ended = run("traverse", classifier, digit, *arguments)
    assert ended.code == 2 and message in ended.complaint
    assert not list(tmp_path.glob("walk*"))
