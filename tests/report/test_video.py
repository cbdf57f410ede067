"""Videos hold the frames they were given, and walks are drawn with their probabilities."""

from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from gap.core.errors import GapError
from gap.report.traversal_frames import TraversalFrames, key_frames, traversal_frames
from gap.report.video import save_video

COLORS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]


@pytest.mark.parametrize("size", [(64, 48), (33, 21)])
def test_mp4(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = [Image.new("RGB", size, color) for color in COLORS for _ in range(2)]
    save_video(frames, tmp_path / "walk.mp4", fps=10)
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "walk.mp4"))
    told = next(reader)
    width, height = told["size"]
    assert told["fps"] == 10 and (width, height) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    seen = [
        np.frombuffer(frame, dtype=np.uint8).reshape(height, width, 3)[:20, :20].mean(axis=(0, 1)) for frame in reader
    ]
    assert len(seen) == 6
    assert np.abs(np.stack(seen) - np.repeat(COLORS, 2, axis=0)).max() < 25
    assert [path.name for path in tmp_path.iterdir()] == ["walk.mp4"]


def test_gif(tmp_path: Path) -> None:
    save_video([Image.new("RGB", (30, 20), color) for color in COLORS], tmp_path / "walk.gif", fps=20)
    with Image.open(tmp_path / "walk.gif") as gif:
        assert gif.n_frames == 3 and gif.info["duration"] == 50 and gif.info["loop"] == 0
        gif.seek(2)
        assert np.abs(np.array(gif.convert("RGB"))[10, 10].astype(int) - COLORS[2]).max() < 10


def test_another_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(GapError, match=r"walk.avi says no kind of video; end it in .mp4 or .gif"):
        save_video([Image.new("RGB", (8, 8))], tmp_path / "walk.avi")
    assert not list(tmp_path.iterdir())


def walk(classes: int = 3, moments: int = 5) -> TraversalFrames:
    shares = torch.eye(classes)[torch.arange(moments) % classes].view(moments, 1, classes).repeat(1, 2, 1)
    return TraversalFrames("net", torch.linspace(0, 1, moments).view(-1, 1, 1, 1, 1).expand(-1, 2, 1, 8, 8), shares)


def test_bars_follow_the_probabilities() -> None:
    frames = traversal_frames([walk(), walk()], ["zero", "one", "two"])
    assert len(frames) == 5 and len({frame.size for frame in frames}) == 1
    pixels = [np.array(frame).astype(int) for frame in frames]
    blue = [np.argwhere((each[..., 2] - each[..., 0]) > 100)[:, 0].min() for each in pixels[:3]]
    assert blue[0] < blue[1] < blue[2], "the bar of the likeliest class goes down the list"


def test_of_many_classes_the_likeliest_have_bars() -> None:
    few, many = (
        traversal_frames([walk(10)], [*"abcdefghij"]),
        traversal_frames([walk(30)], [str(index) for index in range(30)]),
    )
    assert few[0].height == many[0].height


def test_key_frames_begin_and_end_with_the_walk() -> None:
    """Of red, black, green, black, blue, three key frames show red, green and blue, from left to right."""
    colors = torch.tensor([(1.0, 0, 0), (0, 0, 0), (0, 1, 0), (0, 0, 0), (0, 0, 1)])
    walked = TraversalFrames("net", colors.view(5, 1, 3, 1, 1).expand(-1, 1, 3, 8, 8), torch.full((5, 1, 3), 1 / 3))
    sheet = np.array(key_frames([walked], ["zero", "one", "two"], moments=3)).astype(int)
    places = [np.argwhere((sheet == channel).all(axis=2))[:, 1] for channel in 255 * np.eye(3, dtype=int)]
    assert all(len(place) > 1000 for place in places)
    assert places[0].max() < places[1].min() and places[1].max() < places[2].min()
    assert (sheet.max(axis=2) == 0).sum() < 1000


def test_walks_of_two_lengths_do_not_stand_side_by_side() -> None:
    with pytest.raises(GapError, match="one length"):
        traversal_frames([walk(), walk(moments=4)], ["zero", "one", "two"])
