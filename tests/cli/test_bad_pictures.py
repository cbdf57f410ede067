"""Pictures and folders of them that cannot be read: named, and the good ones done."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


def huge_png() -> bytes:
    """A PNG whose header promises 60,000 x 60,000 pixels."""

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
def pictures(tmp_path: Path) -> Path:
    """A folder with a picture of every kind: `good-` ones that can be read, `bad-` ones that cannot."""
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
def test_bad_pictures_are_left_out_and_good_ones_done(
    run: Callable[..., Any], request: pytest.FixtureRequest, pictures: Path, tmp_path: Path, artifact: str
) -> None:
    ended = run("perturb", request.getfixturevalue(artifact), pictures, "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    good = sorted(path.stem for path in pictures.glob("good-*"))
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert sorted(Path(row["picture"]).stem for row in rows) == good
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.png") if "side" not in path.name) == good
    left_out = [line for line in ended.warnings if "left out" in line]
    for bad in pictures.glob("bad-*"):
        assert sum(bad.name in line for line in left_out) == 1
    assert len(left_out) == 4
    assert [line for line in ended.warnings if "left out" not in line] == [
        f"gap: {pictures / 'good-frames.gif'} has 2 frames; only the first is used"
    ]


def test_no_picture_that_can_be_read(run: Callable[..., Any], per_image: Path, pictures: Path, tmp_path: Path) -> None:
    ended = run("perturb", per_image, pictures / "bad-text.png", "--out", tmp_path / "out")
    assert ended.code == 2 and "Traceback" not in ended.err
    assert "could be read" in ended.err.splitlines()[-1]
    assert not (tmp_path / "out" / "table.json").exists()


@pytest.mark.parametrize("verb", ["perturb", "evaluate", "train"])
def test_an_empty_folder(run: Callable[..., Any], classifier: Path, per_image: Path, tmp_path: Path, verb: str) -> None:
    (tmp_path / "empty").mkdir()
    data = ["--classifier", classifier, "--data", f"folder:{tmp_path / 'empty'}"]
    given = {
        "perturb": [per_image, tmp_path / "empty"],
        "evaluate": [per_image, *data],
        "train": [*data, "--budget=linf:0.1"],
    }[verb]
    ended = run(verb, *given, "--out", tmp_path / "out")
    assert str(tmp_path / "empty") in ended.complaint and "holds no pictures" in ended.complaint
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_picture_that_is_not_there(run: Callable[..., Any], per_image: Path, tmp_path: Path) -> None:
    ended = run("perturb", per_image, tmp_path / "nowhere.png", "--out", tmp_path / "out")
    assert "nowhere.png" in ended.complaint


def test_a_damaged_picture_in_a_data_set(
    run: Callable[..., Any], classifier: Path, per_image: Path, pictures: Path
) -> None:
    (pictures / "bad-huge.png").unlink()
    ended = run("evaluate", per_image, "--classifier", classifier, "--data", f"folder:{pictures}")
    assert ended.code == 2 and "Traceback" not in ended.err
    assert "bad-" in ended.err.splitlines()[-1]
