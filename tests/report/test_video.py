"""Videos hold the given frames, and traversals are drawn with their probabilities."""

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
def test_save_video_mp4_has_the_given_frames_and_rate(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = [Image.new("RGB", size, color) for color in COLORS for _ in range(2)]
    save_video(frames, tmp_path / "walk.mp4", fps=10)
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "walk.mp4"))
    metadata = next(reader)
    width, height = metadata["size"]
    assert metadata["fps"] == 10 and (width, height) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    colors = [
        np.frombuffer(frame, dtype=np.uint8).reshape(height, width, 3)[:20, :20].mean(axis=(0, 1)) for frame in reader
    ]
    assert len(colors) == 6
    assert np.abs(np.stack(colors) - np.repeat(COLORS, 2, axis=0)).max() < 25
    assert [path.name for path in tmp_path.iterdir()] == ["walk.mp4"]


def test_save_video_gif_has_the_given_frames_and_rate(tmp_path: Path) -> None:
    save_video([Image.new("RGB", (30, 20), color) for color in COLORS], tmp_path / "walk.gif", fps=20)
    with Image.open(tmp_path / "walk.gif") as gif:
        assert gif.n_frames == 3 and gif.info["duration"] == 50 and gif.info["loop"] == 0
        gif.seek(2)
        assert np.abs(np.array(gif.convert("RGB"))[10, 10].astype(int) - COLORS[2]).max() < 10


def test_save_video_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GapError, match=r"walk.avi says no kind of video; end it in .mp4 or .gif"):
        save_video([Image.new("RGB", (8, 8))], tmp_path / "walk.avi")
    assert not list(tmp_path.iterdir())


def make_traversal(classes: int = 3, moments: int = 5) -> TraversalFrames:
    probabilities = torch.eye(classes)[torch.arange(moments) % classes].view(moments, 1, classes).repeat(1, 2, 1)
    return TraversalFrames(
        "net", torch.linspace(0, 1, moments).view(-1, 1, 1, 1, 1).expand(-1, 2, 1, 8, 8), probabilities
    )


def test_traversal_frames_longest_bar_is_that_of_the_likeliest_class() -> None:
    frames = traversal_frames([make_traversal(), make_traversal()], ["zero", "one", "two"])
    assert len(frames) == 5 and len({frame.size for frame in frames}) == 1
    pixels = [np.array(frame).astype(int) for frame in frames]
    blue = [np.argwhere((array[..., 2] - array[..., 0]) > 100)[:, 0].min() for array in pixels[:3]]
    assert blue[0] < blue[1] < blue[2], "the longest bar is that of the likeliest class"


def test_traversal_frames_many_classes_show_bars_of_the_likeliest_alone() -> None:
    few, many = (
        traversal_frames([make_traversal(10)], [*"abcdefghij"]),
        traversal_frames([make_traversal(30)], [str(index) for index in range(30)]),
    )
    assert few[0].height == many[0].height


def test_key_frames_include_the_first_and_the_last_frame() -> None:
    """Of red, black, green, black, blue, three key frames show red, green and blue, from left to right."""
    colors = torch.tensor([(1.0, 0, 0), (0, 0, 0), (0, 1, 0), (0, 0, 0), (0, 0, 1)])
    traversal = TraversalFrames("net", colors.view(5, 1, 3, 1, 1).expand(-1, 1, 3, 8, 8), torch.full((5, 1, 3), 1 / 3))
    sheet = np.array(key_frames([traversal], ["zero", "one", "two"], moments=3)).astype(int)
    columns = [np.argwhere((sheet == channel).all(axis=2))[:, 1] for channel in 255 * np.eye(3, dtype=int)]
    assert all(len(column) > 1000 for column in columns)
    assert columns[0].max() < columns[1].min() and columns[1].max() < columns[2].min()
    assert (sheet.max(axis=2) == 0).sum() < 1000


def test_traversal_frames_of_two_lengths_are_refused() -> None:
    with pytest.raises(GapError, match="one length"):
        traversal_frames([make_traversal(), make_traversal(moments=4)], ["zero", "one", "two"])
