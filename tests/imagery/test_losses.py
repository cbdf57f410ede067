"""Objectives on layers, beside plain numpy or torch."""

import numpy as np
import pytest
import torch

from gap.core.errors import GapError
from gap.imagery.losses import (
    Channel,
    ColorGramLoss,
    ContentLoss,
    Direction,
    Diversity,
    GramLoss,
    MomentLoss,
    Neuron,
    SlicedWassersteinLoss,
    gram_matrix,
)
from gap.imagery.objectives import Activations


def output(seed: int, count: int = 2, size: tuple[int, int] = (6, 5)) -> torch.Tensor:
    return torch.randn(count, 4, *size, generator=torch.Generator().manual_seed(seed))


def seen(layer: torch.Tensor) -> Activations:
    return Activations(torch.zeros(len(layer), 3, 8, 8), {"a": layer})


@pytest.mark.parametrize("kind", [ContentLoss, GramLoss, MomentLoss, SlicedWassersteinLoss])
def test_nothing_is_far_from_itself_and_something_from_another(kind: type) -> None:
    target = output(0, 1)
    distance = kind("a", target)
    values = distance(seen(torch.cat([target, output(1, 1), 2 * target])))
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert (values[1:] > 0.02).all()


@pytest.mark.parametrize("kind", [ContentLoss, GramLoss, MomentLoss, SlicedWassersteinLoss])
def test_distances_are_shares_whatever_the_scale_of_a_network(kind: type) -> None:
    target, other = output(0, 1), output(1, 1)
    plain, large = kind("a", target)(seen(other)), kind("a", 1000 * target)(seen(1000 * other))
    torch.testing.assert_close(plain, large, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [GramLoss, MomentLoss, SlicedWassersteinLoss])
def test_style_has_no_places_and_no_size(kind: type) -> None:
    target = output(0, 1)
    mixed = target.flatten(2)[:, :, torch.randperm(30)].view_as(target)
    assert kind("a", target)(seen(mixed)).item() == pytest.approx(0, abs=1e-6)
    doubled = target.repeat(1, 1, 2, 2)
    assert kind("a", target)(seen(doubled)).item() == pytest.approx(
        0, abs=2e-2 if kind is SlicedWassersteinLoss else 1e-6
    )


def test_the_gram_matrix() -> None:
    layer = output(0)
    for found, each in zip(gram_matrix(layer), layer.numpy(), strict=True):
        points = each.reshape(4, -1)
        np.testing.assert_allclose(found, points @ points.T / points.shape[1], rtol=1e-5, atol=1e-6)


def test_a_masked_gram_matrix_is_that_of_the_region() -> None:
    layer, mask = output(0, 1, (6, 6)), torch.zeros(1, 1, 12, 12)
    mask[..., :6] = 1
    torch.testing.assert_close(gram_matrix(layer, mask), gram_matrix(layer[..., :3]))


def test_half_precision_does_not_overflow() -> None:
    layer = (300 * output(0)).half()
    assert gram_matrix(layer).isfinite().all() and gram_matrix(layer).dtype == torch.float32


def test_sliced_wasserstein_is_the_distance_of_sorted_projections() -> None:
    target, other = output(0, 1), output(1, 1)
    distance = SlicedWassersteinLoss("a", target)
    axes = distance.axes.numpy()
    for basis in axes.reshape(-1, 4, 4):
        np.testing.assert_allclose(basis @ basis.T, np.eye(4), atol=1e-5)
    projected = [np.sort(axes @ each.flatten(2)[0].numpy(), axis=1) for each in (target, other)]
    expected = np.mean((projected[0] - projected[1]) ** 2) / projected[0].var(ddof=1)
    assert distance(seen(other)).item() == pytest.approx(expected, rel=1e-4)


def test_no_direction_goes_unseen() -> None:
    """Of 64 channels, any one that moves is noticed."""
    layer = torch.randn(1, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    distance = SlicedWassersteinLoss("a", layer)
    for channel in range(0, 64, 9):
        moved = layer.clone()
        moved[:, channel] += 3
        assert distance(seen(moved)).item() > 1e-2


def test_what_channels_do_together_is_seen() -> None:
    """Points whose coordinates in the first basis are alike one by one, and go together in one and not the other."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(400, generator=generator).sort().values
    together = values.expand(8, 400)
    apart = torch.stack([values[torch.randperm(400, generator=generator)] for _ in range(8)])
    basis = SlicedWassersteinLoss("a", torch.zeros(1, 8, 1, 1)).axes[:8]
    one, other = ((basis.T @ points).view(1, 8, 20, 20) for points in (together, apart))
    again = (basis.T @ apart[:, torch.randperm(400, generator=generator)]).view(1, 8, 20, 20)
    distance = SlicedWassersteinLoss("a", other)
    assert distance(seen(one)).item() > 0.1 > 100 * distance(seen(again)).item()


def test_what_excites() -> None:
    layer, channels = output(0), torch.tensor([1, 3])
    assert torch.allclose(Channel("a", channels)(seen(layer)), -layer.mean(dim=(2, 3))[[0, 1], channels])
    assert torch.equal(Neuron("a", channels)(seen(layer)), -layer[[0, 1], channels, 3, 2])
    along = Direction("a", torch.tensor([0.0, 2.0, 0.0, 0.0]))
    assert torch.allclose(along(seen(layer)), -layer[:, 1].mean(dim=(1, 2)))


def test_diversity_is_low_where_pictures_differ() -> None:
    one = output(0, 1).abs()
    same, different = one.repeat(3, 1, 1, 1), torch.cat([one, output(1, 1).abs(), output(2, 1)])
    assert torch.allclose(Diversity("a")(seen(same)), torch.ones(3), atol=1e-5)
    assert (Diversity("a")(seen(different)) < 0.95).all()


def test_values_are_maps_of_one_pixel_and_tokens_are_none() -> None:
    values = torch.randn(2, 4)
    assert torch.equal(Channel("a", torch.tensor([1, 3]))(seen(values)), -values[[0, 1], [1, 3]])
    with pytest.raises(GapError, match="layer a gives 2 x 7 x 4 values, not maps"):
        Channel("a", torch.tensor([1, 3]))(seen(torch.randn(2, 7, 4)))


def test_colors_are_the_same_wherever_they_stand_and_no_others() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, 6, 5, generator=generator)
    shuffled = picture.flatten(2)[:, :, torch.randperm(30, generator=generator)].view(1, 3, 5, 6)
    colors = ColorGramLoss(picture)
    assert colors(Activations(shuffled, {})).item() == pytest.approx(0, abs=1e-9)
    assert colors(Activations(picture.flip(1), {})).item() > 1e-4
    ones = np.concatenate([picture[0].flatten(1).numpy(), np.ones((1, 30))])
    other = np.concatenate([picture[0].flatten(1).numpy() / 2, np.ones((1, 30))])
    gram_matrix, found = (each @ each.T / 30 for each in (ones, other))
    expected = ((found - gram_matrix) ** 2).sum() / (gram_matrix**2).sum()
    assert colors(Activations(picture / 2, {})).item() == pytest.approx(expected, rel=1e-4)
