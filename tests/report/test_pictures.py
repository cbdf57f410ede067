import io

import numpy as np
import pytest
import torch
from PIL import Image

from gap.core.errors import GapError
from gap.report.pictures import (
    ContactRow,
    amplify,
    contact_sheet,
    save_image,
    side_by_side,
    to_image,
)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize(
    ("largest", "factor"), [(0.1, 5), (0.2, 2), (8 / 255, 15), (0.5, 1), (0.9, 1), (1 / 255, 127), (0.0, 1), (1e-9, 1)]
)
def test_amplify_factor_is_the_whole_number_that_fills_the_range(largest, factor):
    perturbation = torch.tensor([0.0, largest, -largest, largest / 2]).view(1, 1, 2, 2)
    image, actual = amplify(perturbation)
    assert actual == factor
    torch.testing.assert_close(image, (0.5 + factor * perturbation).clamp(0, 1))
    assert image.min() >= 0
    assert image.max() <= 1


def test_amplify_batch_has_one_factor_or_the_given_one():
    perturbation = torch.stack([torch.full((3, 2, 2), 0.01), torch.full((3, 2, 2), -0.25)])
    image, factor = amplify(perturbation)
    assert factor == 2
    assert image[0, 0, 0, 0].item() == pytest.approx(0.52)
    assert image[1, 0, 0, 0].item() == 0
    image, factor = amplify(perturbation, 10.5)
    assert factor == 10.5
    assert image[0, 0, 0, 0].item() == pytest.approx(0.605)


def test_amplify_nan_becomes_gray_and_uint8_is_refused():
    image, factor = amplify(torch.tensor([float("nan"), 0.1]))
    assert factor == 5
    assert image.tolist() == pytest.approx([0.5, 1.0])
    with pytest.raises(GapError, match="signed floats"):
        amplify(torch.zeros(1, 2, 2, dtype=torch.uint8))


def test_to_image_keeps_every_8_bit_level():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    for tensor in (levels, levels.float() / 255, (levels.float() / 255).unsqueeze(0)):
        image = to_image(tensor)
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), levels[0].numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_to_image_any_float_dtype_is_converted(dtype):
    assert np.asarray(to_image(torch.ones(1, 3, 5, dtype=dtype))).tolist() == [[255] * 5] * 3


def test_to_image_four_channels_give_rgb_and_two_give_their_mean():
    planes = torch.stack([torch.full((2, 3), value) for value in (0.2, 0.4, 0.6, 0.8)])
    assert to_image(planes[:3]).getpixel((0, 0)) == (51, 102, 153)
    assert to_image(planes).getpixel((0, 0)) == (51, 102, 153)
    assert to_image(planes[:2]).getpixel((0, 0)) == round(0.3 * 255)
    assert to_image(planes[:3]).size == (3, 2)


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(4, 4), torch.zeros(2, 1, 4, 4), torch.zeros(1, 0, 4), torch.zeros(1, 4, 4, dtype=torch.int64)],
)
def test_to_image_invalid_tensor_is_refused(tensor):
    with pytest.raises(GapError):
        to_image(tensor)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 230, 300), (1, 1, 1), (3, 10, 200), (1, 1, 28, 28)])
def test_side_by_side_has_three_panels_of_at_least_224_pixels(shape):
    image = side_by_side(torch.zeros(shape), torch.zeros(shape), "7 · 99.1%", "3 · 87.0%")
    times = max(1, -(-224 // max(shape[-2:])))
    assert image.width >= 3 * max(224, times * shape[-1])
    assert image.height >= times * shape[-2] + 30
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_side_by_side_order_is_clean_perturbation_adversarial():
    clean = torch.zeros(3, 28, 28)
    adversarial = clean.clone()
    adversarial[0] = 0.2
    image = pixels(side_by_side(clean, adversarial, "a", "b"))
    middles = [image[110, image.shape[1] * part // 6] for part in (1, 3, 5)]
    assert middles[0].tolist() == [0, 0, 0]
    assert middles[1].tolist() == [230, 128, 128]
    assert middles[2].tolist() == [51, 0, 0]


def test_side_by_side_small_image_is_enlarged_without_interpolation():
    clean = torch.zeros(1, 28, 28)
    clean[0, 3, 5] = 1
    image = pixels(side_by_side(clean, clean, "", ""))
    white = image[: 14 + 226, 14 + 1 : 14 + 225, 0]
    rows, columns = np.nonzero(white[15:-1] == 255)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (8, 8)
    assert (columns.min(), rows.min()) == (5 * 8, 3 * 8)


def test_side_by_side_long_captions_are_wrapped_and_not_clipped():
    clean = torch.zeros(1, 28, 28)
    short, long = (side_by_side(clean, clean, text, "") for text in ("ferret", "black-footed ferret, " * 6))
    assert long.width == short.width
    assert long.height > short.height
    unbroken = side_by_side(clean, clean, "x" * 200, "")
    assert unbroken.width == short.width
    assert unbroken.height > short.height
    third = pixels(unbroken)[-60:, :, 0]
    assert (third[:, :13] == 255).all()
    assert not np.array_equal(pixels(short), pixels(side_by_side(clean, clean, "weasel", "")))


def test_side_by_side_images_of_two_shapes_are_refused():
    with pytest.raises(GapError, match="differ in shape"):
        side_by_side(torch.zeros(1, 28, 28), torch.zeros(1, 32, 32), "", "")


def test_side_by_side_uint8_images_give_the_same_as_floats():
    torch.manual_seed(0)
    clean, adversarial = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    from_levels = side_by_side(clean, adversarial, "a", "b")
    from_floats = side_by_side(clean / 255, adversarial / 255, "a", "b")
    assert np.array_equal(pixels(from_levels), pixels(from_floats))


def sheet_row(count: int, size: int = 28, title: str = "pgd") -> ContactRow:
    clean = torch.linspace(0, 0.5, count).view(-1, 1, 1, 1).expand(count, 1, size, size)
    return ContactRow(title, clean, clean + 0.1, [f"{k} → {k + 1}" for k in range(count)])


def test_contact_sheet_size_grows_with_images_and_rows():
    small, wide, tall = (
        contact_sheet(rows) for rows in ([sheet_row(3)], [sheet_row(5)], [sheet_row(3), sheet_row(3, title="noise")])
    )
    assert wide.width - small.width == 2 * (86 + 8)
    assert wide.height == small.height >= 3 * 86
    assert tall.width == small.width
    assert tall.height > 2 * small.height - 40


def test_contact_sheet_shows_clean_perturbation_and_adversarial():
    image = pixels(contact_sheet([sheet_row(3)]))
    colors, counts = np.unique(image.reshape(-1, 3)[:, 0], return_counts=True)
    count_of = dict(zip(colors.tolist(), counts.tolist(), strict=True))
    for level in (0, 64, 128, 26, 89, 153):
        assert count_of[level] >= 84 * 84, level


def test_contact_sheet_large_images_are_reduced():
    image = contact_sheet([sheet_row(2), sheet_row(2, size=500, title="a very long title " * 12)])
    assert image.width < 2 * 260 + 200


def test_contact_sheet_rows_that_do_not_match_are_refused():
    with pytest.raises(GapError, match="at least one row"):
        contact_sheet([])
    row = sheet_row(3)
    with pytest.raises(GapError, match="3 pictures but 2 captions"):
        contact_sheet([ContactRow("pgd", row.clean, row.adversarial, ["a", "b"])])
    with pytest.raises(GapError, match="differ in shape"):
        contact_sheet([ContactRow("pgd", row.clean, row.adversarial[:2], row.captions)])


def test_save_image_writes_a_complete_png_file(tmp_path):
    image = to_image(torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0)))
    path = save_image(image, tmp_path / "deep" / "picture.png")
    with Image.open(io.BytesIO(path.read_bytes())) as loaded:
        assert loaded.format == "PNG"
        assert np.array_equal(pixels(loaded), pixels(image))
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]
