from typing import Any

import pytest
import torch

from gap.training.augmentation import make_augmentation


@pytest.mark.parametrize("size", [(28, 28), (5, 9), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"shift": 2}, {"rotate": 30.0}, {"scale": 0.3}, {"shift": 2, "rotate": 10.0, "flip": True, "crop": 0.5},
        {"flip": True}, {"crop": 0.3},
    ],
)  # fmt: skip
def test_augmentation_any_options_keep_shape_and_range(
    size: tuple[int, int], channels: int, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    images = torch.rand(6, channels, *size)
    augmented = make_augmentation(size, **options)(images)
    assert augmented.shape == images.shape
    assert augmented.min() >= 0
    assert augmented.max() <= 1


@pytest.mark.parametrize("options", [{"shift": 2}, {"rotate": 10.0, "scale": 0.1}, {"crop": 0.8}])
def test_augmentation_under_autocast_gives_the_same_images(options: dict[str, Any]) -> None:
    images, augmented = torch.rand(20, 1, 64, 64, generator=torch.Generator().manual_seed(0)), []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            augmented.append(make_augmentation((64, 64), **options)(images))
    assert torch.equal(*augmented)


def test_augmentation_without_options_changes_nothing() -> None:
    images = torch.rand(6, 1, 8, 8)
    assert torch.equal(make_augmentation((8, 8))(images), images)


def test_augmentation_shift_stays_within_its_limit() -> None:
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 21, 31)
    image[..., 10, 15] = 1
    moved = make_augmentation((21, 31), shift=3)(image.expand(200, -1, -1, -1))
    assert moved.sum(dim=(1, 2, 3)).sub(1).abs().max() < 1e-3
    rows = (moved.sum(dim=(1, 3)) @ torch.arange(21.0)) - 10
    columns = (moved.sum(dim=(1, 2)) @ torch.arange(31.0)) - 15
    for offsets in (rows, columns):
        assert 2.5 < offsets.abs().max() <= 3 + 1e-3
        assert offsets.min() < 0 < offsets.max()


def test_augmentation_rotate_stays_within_its_limit() -> None:
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 41, 41)
    image[..., 20, 20:38] = 1
    rotated = make_augmentation((41, 41), rotate=20.0)(image.expand(300, -1, -1, -1))
    coordinates = torch.arange(41.0) - 20
    weights = rotated.sum(dim=(1, 2, 3))
    across, down = (
        (rotated.sum(dim=2) @ coordinates)[:, 0] / weights,
        (rotated.sum(dim=3) @ coordinates)[:, 0] / weights,
    )
    degrees = torch.rad2deg(torch.atan2(down, across))
    assert 18 < degrees.abs().max() <= 20.5 and degrees.min() < -15 and degrees.max() > 15


def test_augmentation_scale_stays_within_its_limit() -> None:
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 41, 41)
    image[..., 10:31, 10:31] = 1
    scaled = make_augmentation((41, 41), scale=0.2)(image.expand(300, -1, -1, -1))
    sides = scaled.sum(dim=(1, 2, 3)).sqrt() / 21
    assert 0.79 < sides.min() < 0.83 and 1.17 < sides.max() < 1.21


def test_augmentation_flip_mirrors_about_half_of_the_images() -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 1, 4, 6).expand(200, -1, -1, -1)
    flipped = make_augmentation((4, 6), flip=True)(images)
    mirrored = (flipped == images.flip(3)).flatten(1).all(dim=1)
    unchanged = (flipped == images).flatten(1).all(dim=1)
    assert torch.equal(mirrored, ~unchanged)
    assert 60 < mirrored.sum() < 140


@pytest.mark.parametrize("crop", [0.5, 0.9])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 64), (64, 32)])
def test_augmentation_crop_keeps_at_least_its_fraction(height: int, width: int, crop: float) -> None:
    # A ramp in each direction: the range of the values of a crop is the fraction that it keeps.
    ramps = [
        torch.linspace(0, 1, width).expand(300, 1, height, width),
        torch.linspace(0, 1, height)[:, None].expand(300, 1, height, width),
    ]
    for ramp in ramps:
        torch.manual_seed(0)
        cropped = make_augmentation((height, width), crop=crop)(ramp)
        fractions = cropped.amax(dim=(1, 2, 3)) - cropped.amin(dim=(1, 2, 3))
        assert crop - 0.05 < fractions.min() < crop + 0.1
        assert fractions.max() > 0.9
        starts = cropped.amin(dim=(1, 2, 3))
        assert starts.min() < 0.1 and starts.max() > 0.7 * (1 - crop)


def test_augmentation_shift_does_not_interpolate() -> None:
    torch.manual_seed(0)
    images = torch.rand(20, 1, 12, 12)
    moved = make_augmentation((12, 12), shift=3)(images)
    assert all(bool(torch.isin(after, before).all()) for after, before in zip(moved, images, strict=True))
    assert not torch.equal(moved, images)
