import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gap.core.errors import GapError
from gap.data.images import find_pictures, load_image
from gap.report.pictures import save_image

RAMP = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def gray_levels(path: Path, channels: int = 1) -> list[list[int]]:
    return load_image(path, channels)[0].tolist()


def random_image(size: tuple[int, int] = (6, 4), seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_load_image_rgb_file_is_returned_unchanged(tmp_path: Path) -> None:
    image = random_image()
    opened = load_image(save(tmp_path / "a.png", image), 3)
    assert opened.dtype == torch.uint8 and opened.shape == (3, 4, 6) and opened.is_contiguous()
    assert opened.permute(1, 2, 0).tolist() == np.asarray(image).tolist()


def test_load_image_gray_and_rgb_are_converted_into_each_other(tmp_path: Path) -> None:
    path = save(tmp_path / "gray.png", Image.fromarray(RAMP))
    assert load_image(path, 3).tolist() == [RAMP.tolist()] * 3
    red = save(tmp_path / "red.png", Image.new("RGB", (2, 1), (255, 0, 0)))
    assert gray_levels(red) == [[76, 76]]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_load_image_16_bit_gray_is_scaled_and_not_clipped(tmp_path: Path, dtype: type) -> None:
    deep = np.array([[0, 257, 128 * 257, 65535, 400]], dtype=dtype)
    assert gray_levels(save(tmp_path / "deep.tif", Image.fromarray(deep))) == [[0, 1, 128, 255, 2]]
    if dtype is np.uint16:
        assert gray_levels(save(tmp_path / "deep.png", Image.fromarray(deep))) == [[0, 1, 128, 255, 2]]


def test_load_image_32_bit_integers_are_scaled_by_their_full_range(tmp_path: Path) -> None:
    deep = np.array([[0, 2**30, 2**31 - 1]], dtype=np.int32)
    assert gray_levels(save(tmp_path / "deep.tif", Image.fromarray(deep))) == [[0, 128, 255]]


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_load_image_float_white_level_is_the_smallest_that_fits(tmp_path: Path, white: float) -> None:
    values = np.array([[0.0, 0.2, 1.0]], dtype=np.float32) * np.float32(white)
    assert gray_levels(save(tmp_path / "float.tif", Image.fromarray(values))) == [[0, 51, 255]]


@pytest.mark.parametrize("strange", [-1.0, float("nan"), 1e9])
def test_load_image_float_of_unknown_scale_is_refused(tmp_path: Path, strange: float) -> None:
    path = save(tmp_path / "float.tif", Image.fromarray(np.array([[0.5, strange]], dtype=np.float32)))
    with pytest.raises(GapError, match=r"float\.tif.*no known scale"):
        load_image(path, 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_load_image_transparent_pixels_are_blended_over_white(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (3, 1), (0,) * len(mode))
    image.putalpha(Image.fromarray(np.array([[0, 255, 102]], dtype=np.uint8)))
    assert load_image(save(tmp_path / "clear.png", image), 3).tolist() == [[[255, 0, 153]]] * 3
    assert gray_levels(tmp_path / "clear.png") == [[255, 0, 153]]


def test_load_image_palette_image_gives_its_colors_with_transparency_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    opaque = save(tmp_path / "opaque.png", image)
    assert load_image(opaque, 3).flatten().tolist() == [10, 40, 20, 50, 30, 60]
    clear = save(tmp_path / "clear.png", image, transparency=0)
    assert load_image(clear, 3).flatten().tolist() == [255, 40, 255, 50, 255, 60]


def test_load_image_cmyk_and_1_bit_images_are_converted(tmp_path: Path) -> None:
    cyan = save(tmp_path / "cmyk.tif", Image.new("CMYK", (2, 2), (255, 0, 0, 0)))
    assert load_image(cyan, 3)[:, 0, 0].tolist() == [0, 255, 255]
    two_tone = save(tmp_path / "two.png", Image.fromarray(np.array([[True, False]])))
    assert gray_levels(two_tone) == [[255, 0]]


def test_load_image_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "turned.png", Image.fromarray(RAMP), exif=exif)
    assert gray_levels(path) == np.rot90(RAMP, -1).tolist()


def test_load_image_animated_file_gives_its_first_frame_with_a_warning(tmp_path: Path) -> None:
    frames = [Image.new("L", (3, 3), value) for value in (10, 200)]
    path = save(tmp_path / "two.gif", frames[0], save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=r"two\.gif has 2 frames"):
        assert gray_levels(path) == [[10] * 3] * 3


def test_load_image_other_aspect_ratio_is_resized_and_center_cropped(tmp_path: Path) -> None:
    stripes = np.repeat(np.array([[0] * 4 + [100] * 8 + [255] * 4], dtype=np.uint8), 8, axis=0)
    path = save(tmp_path / "wide.png", Image.fromarray(stripes))
    assert load_image(path, 1, (8, 8)).unique().tolist() == [100]
    assert load_image(path, 1, (4, 8)).shape == (1, 4, 8)


def test_load_image_downscaling_is_antialiased(tmp_path: Path) -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255
    path = save(tmp_path / "board.png", Image.fromarray(board.astype(np.uint8)))
    assert (load_image(path, 1, (8, 8)).float() - 127.5).abs().max() < 4


def test_load_image_one_pixel_is_loaded_and_resized(tmp_path: Path) -> None:
    path = save(tmp_path / "dot.png", Image.new("RGB", (1, 1), (1, 2, 3)))
    assert load_image(path, 3).flatten().tolist() == [1, 2, 3]
    assert load_image(path, 3, (2, 5)).shape == (3, 2, 5)


def png_header_of_size(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 40_000])
def test_load_image_header_with_huge_size_is_refused(tmp_path: Path, side: int) -> None:
    """Catches: a decompression bomb that is decoded before its size is checked."""
    path = tmp_path / "huge.png"
    path.write_bytes(png_header_of_size(side, side))
    with pytest.raises(GapError, match=r"huge\.png has more pixels than is safe"):
        load_image(path, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_load_image_truncated_file_raises_with_its_name(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"cut.{suffix}", random_image((64, 64)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(GapError, match=rf"cut\.{suffix} is (a damaged|not a) picture") as error:
        load_image(path, 3)
    assert "\n" not in str(error.value)


def test_load_image_path_of_no_image_raises_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    messages = {
        "text": "is not a picture",
        "empty": "is an empty file",
        "folder": "is a folder",
        "lost": "does not exist",
    }
    for name, message in messages.items():
        with pytest.raises(GapError, match=rf"{name}\.png {message}"):
            load_image(tmp_path / f"{name}.png", 3)


def test_load_image_two_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GapError, match="1 or 3 channels here, not 2"):
        load_image(save(tmp_path / "a.png", random_image()), 2)


def test_find_pictures_are_found_at_any_depth_by_suffix_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "b" / ".hidden").mkdir(parents=True)
    names = ["c.JPG", "b/z.png", "a.webp", "note.txt", "._a.png", "b/.hidden/x.png", "d.pgm"]
    for name in names:
        (tmp_path / name).touch()
    assert find_pictures(tmp_path) == [tmp_path / name for name in ["a.webp", "b/z.png", "c.JPG", "d.pgm"]]
    assert find_pictures(tmp_path / "note.txt") == [tmp_path / "note.txt"]


def test_find_pictures_system_folders_are_ignored(tmp_path: Path) -> None:
    for name in ("a.png", "__MACOSX/a.png", "b/@eaDir/a.png", "$Recycle.Bin/a.png", "lost+found/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_pictures(tmp_path) == [tmp_path / "a.png"]


def test_find_pictures_empty_or_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(GapError, match="holds no pictures"):
        find_pictures(tmp_path)
    with pytest.raises(GapError, match="lost does not exist"):
        find_pictures(tmp_path / "lost")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_save_image_then_load_image_gives_the_same_levels(tmp_path: Path, channels: int, dtype: torch.dtype) -> None:
    levels = torch.arange(256, dtype=torch.uint8).repeat(channels, 2, 1)
    save_image(levels if dtype == torch.uint8 else levels.to(dtype) / 255, tmp_path / "new" / "a.png")
    assert torch.equal(load_image(tmp_path / "new" / "a.png", channels), levels)
    assert os.listdir(tmp_path / "new") == ["a.png"]


def test_save_image_floats_are_rounded_to_the_nearest_level(tmp_path: Path) -> None:
    save_image(torch.tensor([[[0.4, 0.6, 254.6, 99.4]]]) / 255, tmp_path / "a.png")
    assert gray_levels(tmp_path / "a.png") == [[0, 1, 255, 99]]


def test_save_image_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RAMP))

    def write_half(self: Image.Image, file: Path, format: str) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", write_half)
    with pytest.raises(GapError, match=r"a\.png cannot be written: No space left"):
        save_image(torch.zeros(1, 4, 6), path)
    assert gray_levels(path) == RAMP.tolist() and os.listdir(tmp_path) == ["a.png"]


def test_save_image_below_a_file_raises(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GapError, match="cannot be written"):
        save_image(torch.zeros(1, 2, 2), tmp_path / "file" / "a.png")
