"""Videos as MP4 and GIF files, written atomically."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from gap.core.errors import GapError
from gap.core.files import atomic_write

SUFFIXES = (".mp4", ".gif")


def check_video(path: Path) -> None:
    """Raise GapError where the suffix is not a supported format."""
    if path.suffix not in SUFFIXES:
        raise GapError(f"{path} says no kind of video; end it in {' or '.join(SUFFIXES)}")


def save_video(frames: Sequence[Image.Image], path: Path, *, fps: int = 20) -> Path:
    """Write RGB frames of one size as H.264 (`.mp4`) or as a looping GIF; raises GapError for another suffix."""
    check_video(path)
    with atomic_write(path) as part:
        if path.suffix == ".gif":
            first, *others = frames
            first.save(part, format="GIF", save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
        else:
            _write_mp4(frames, part, fps)
    return path


def _write_mp4(frames: Sequence[Image.Image], part: Path, fps: int) -> None:
    import imageio_ffmpeg

    width, height = (side + side % 2 for side in frames[0].size)  # H.264 halves the resolution of color
    writer = imageio_ffmpeg.write_frames(
        str(part),
        (width, height),
        fps=fps,
        macro_block_size=2,
        output_params=["-f", "mp4", "-movflags", "+faststart"],
    )
    writer.send(None)
    for frame in frames:
        padded = Image.new("RGB", (width, height), "white")
        padded.paste(frame)
        writer.send(padded.tobytes())
    writer.close()
