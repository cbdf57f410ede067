"""Images and folders of images that cannot be read are named, and the readable images are processed."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


def huge_png() -> bytes:
    """A small PNG file whose header claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder with an image of every kind: names with `good-` can be read, names with `bad-` cannot."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = Image.effect_noise((40, 30), 80)
    color = Image.merge("RGB", [noise, noise.rotate(180), noise])
    noise.save(folder / "good-gray.png")
    color.save(folder / "good-color.png")
    color.convert("CMYK").save(folder / "good-cmyk.jpg")
    color.convert("RGBA").save(folder / "good-alpha.png")
    color.convert("P").save(folder / "good-palette.png")
    noise.convert("1").save(folder / "good-bits.png")
    noise.convert("I;16").save(folder / "good-16-bit.png")
    noise.crop((0, 0, 1, 1)).save(folder / "good-pixel.png")
    noise.save(folder / "good-frames.gif", save_all=True, append_images=[noise.rotate(90)])
    whole = (folder / "good-color.png").read_bytes()
    (folder / "bad-truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "bad-huge.png").write_bytes(huge_png())
    (folder / "bad-text.png").write_text("this is no picture")
    (folder / "bad-empty.jpg").touch()
    return folder


@pytest.mark.parametrize("artifact", ["per_image", "universal", "direct"])
def test_perturb_unreadable_images_are_skipped_with_a_warning(
    run: Callable[..., Any], request: pytest.FixtureRequest, image_folder: Path, tmp_path: Path, artifact: str
) -> None:
    result = run("perturb", request.getfixturevalue(artifact), image_folder, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    good = sorted(path.stem for path in image_folder.glob("good-*"))
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert sorted(Path(row["picture"]).stem for row in rows) == good
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.png") if "side" not in path.name) == good
    left_out = [line for line in result.warnings if "left out" in line]
    for bad in image_folder.glob("bad-*"):
        assert sum(bad.name in line for line in left_out) == 1
    assert len(left_out) == 4
    assert [line for line in result.warnings if "left out" not in line] == [
        f"gap: {image_folder / 'good-frames.gif'} has 2 frames; only the first is used"
    ]


def test_perturb_only_unreadable_images_exits_with_error(
    run: Callable[..., Any], per_image: Path, image_folder: Path, tmp_path: Path
) -> None:
    result = run("perturb", per_image, image_folder / "bad-text.png", "--out", tmp_path / "out")
    assert result.code == 2 and "Traceback" not in result.err
    assert "could be read" in result.err.splitlines()[-1]
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("verb", ["perturb", "evaluate", "train"])
def test_commands_empty_image_folder_exits_with_its_path(
    run: Callable[..., Any], classifier: Path, per_image: Path, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "empty").mkdir()
    data = ["--classifier", classifier, "--data", f"folder:{tmp_path / 'empty'}"]
    arguments = {
        "perturb": [per_image, tmp_path / "empty"],
        "evaluate": [per_image, *data],
        "train": [*data, "--budget=linf:0.1"],
    }[verb]
    result = run(verb, *arguments, "--out", tmp_path / "out")
    assert str(tmp_path / "empty") in result.error_line and "holds no pictures" in result.error_line
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_perturb_missing_image_exits_with_its_name(run: Callable[..., Any], per_image: Path, tmp_path: Path) -> None:
    result = run("perturb", per_image, tmp_path / "nowhere.png", "--out", tmp_path / "out")
    assert "nowhere.png" in result.error_line


def test_evaluate_damaged_image_in_the_data_exits_with_its_name(
    run: Callable[..., Any], classifier: Path, per_image: Path, image_folder: Path
) -> None:
    (image_folder / "bad-huge.png").unlink()
    result = run("evaluate", per_image, "--classifier", classifier, "--data", f"folder:{image_folder}")
    assert result.code == 2 and "Traceback" not in result.err
    assert "bad-" in result.err.splitlines()[-1]
