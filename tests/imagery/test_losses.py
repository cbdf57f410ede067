"""Objectives on layers, compared with plain numpy or torch."""

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch

from gap.core.errors import GapError
from gap.imagery.losses import (
    MASKED_STYLE_LOSSES,
    STYLE_LOSSES,
    Channel,
    ColorGramLoss,
    ContentLoss,
    Direction,
    Diversity,
    Neuron,
    SlicedWassersteinLoss,
    StyleLoss,
    gram_matrix,
)
from gap.imagery.objectives import Activations, Objective
from gap.imagery.options import StyleLossName, StyleOptions

# A function of a layer and its output for the target image.
MakeLoss = Callable[[str, torch.Tensor], Objective]


def unmasked(loss: StyleLoss) -> MakeLoss:
    return lambda layer, target: loss(layer, target, None, 0)


STYLES: dict[str, MakeLoss] = {name: unmasked(loss) for name, loss in STYLE_LOSSES.items()}
DISTANCES: dict[str, MakeLoss] = {"content": ContentLoss, **STYLES}


def layer_output(seed: int, count: int = 2, size: tuple[int, int] = (6, 5)) -> torch.Tensor:
    return torch.randn(count, 4, *size, generator=torch.Generator().manual_seed(seed))


def activations_of(layer: torch.Tensor) -> Activations:
    return Activations(torch.zeros(len(layer), 3, 8, 8), {"a": layer})


@pytest.mark.parametrize("kind", DISTANCES.values(), ids=DISTANCES)
def test_loss_is_zero_at_its_target_and_positive_elsewhere(kind: MakeLoss) -> None:
    target = layer_output(0, 1)
    distance = kind("a", target)
    values = distance(activations_of(torch.cat([target, layer_output(1, 1), 2 * target])))
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert (values[1:] > 0.02).all()


@pytest.mark.parametrize("kind", DISTANCES.values(), ids=DISTANCES)
def test_loss_does_not_depend_on_the_scale_of_the_layer(kind: MakeLoss) -> None:
    target, other = layer_output(0, 1), layer_output(1, 1)
    plain, large = kind("a", target)(activations_of(other)), kind("a", 1000 * target)(activations_of(1000 * other))
    torch.testing.assert_close(plain, large, rtol=1e-4, atol=1e-5)


def test_style_loss_names_without_torch_equal_the_registry() -> None:
    """Catches: a style loss that the options do not take or do not describe."""
    assert set(get_args(StyleLossName)) == set(STYLE_LOSSES) >= set(MASKED_STYLE_LOSSES)
    description = StyleOptions.model_fields["style_loss"].description or ""
    assert all(f"{name} (" in description for name in STYLE_LOSSES)


@pytest.mark.parametrize("name", STYLE_LOSSES)
def test_style_loss_does_not_depend_on_positions_or_size(name: str) -> None:
    kind = STYLES[name]
    target = layer_output(0, 1)
    mixed = target.flatten(2)[:, :, torch.randperm(30)].view_as(target)
    assert kind("a", target)(activations_of(mixed)).item() == pytest.approx(0, abs=1e-6)
    doubled = target.repeat(1, 1, 2, 2)
    assert kind("a", target)(activations_of(doubled)).item() == pytest.approx(0, abs=2e-2 if name == "sliced" else 1e-6)


def test_gram_matrix_equals_that_of_numpy() -> None:
    layer = layer_output(0)
    for matrix, maps in zip(gram_matrix(layer), layer.numpy(), strict=True):
        points = maps.reshape(4, -1)
        np.testing.assert_allclose(matrix, points @ points.T / points.shape[1], rtol=1e-5, atol=1e-6)


def test_gram_matrix_with_mask_equals_that_of_the_region() -> None:
    layer, mask = layer_output(0, 1, (6, 6)), torch.zeros(1, 1, 12, 12)
    mask[..., :6] = 1
    torch.testing.assert_close(gram_matrix(layer, mask), gram_matrix(layer[..., :3]))


def test_gram_matrix_half_precision_does_not_overflow() -> None:
    layer = (300 * layer_output(0)).half()
    assert gram_matrix(layer).isfinite().all() and gram_matrix(layer).dtype == torch.float32


def test_sliced_wasserstein_loss_equals_the_distance_of_sorted_projections() -> None:
    target, other = layer_output(0, 1), layer_output(1, 1)
    distance = SlicedWassersteinLoss("a", target)
    axes = distance.axes.numpy()
    for basis in axes.reshape(-1, 4, 4):
        np.testing.assert_allclose(basis @ basis.T, np.eye(4), atol=1e-5)
    projected = [np.sort(axes @ layer.flatten(2)[0].numpy(), axis=1) for layer in (target, other)]
    expected = np.mean((projected[0] - projected[1]) ** 2) / projected[0].var(ddof=1)
    assert distance(activations_of(other)).item() == pytest.approx(expected, rel=1e-4)


def test_sliced_wasserstein_loss_changes_when_any_channel_moves() -> None:
    """Catches: too few projection axes for a layer of 64 channels."""
    layer = torch.randn(1, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    distance = SlicedWassersteinLoss("a", layer)
    for channel in range(0, 64, 9):
        moved = layer.clone()
        moved[:, channel] += 3
        assert distance(activations_of(moved)).item() > 1e-2


def test_sliced_wasserstein_loss_depends_on_correlations_of_channels() -> None:
    """The points have equal distributions along each axis of the first basis, with and without correlation."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(400, generator=generator).sort().values
    correlated = values.expand(8, 400)
    independent = torch.stack([values[torch.randperm(400, generator=generator)] for _ in range(8)])
    basis = SlicedWassersteinLoss("a", torch.zeros(1, 8, 1, 1)).axes[:8]
    correlated_layer, independent_layer = (
        (basis.T @ points).view(1, 8, 20, 20) for points in (correlated, independent)
    )
    shuffled_layer = (basis.T @ independent[:, torch.randperm(400, generator=generator)]).view(1, 8, 20, 20)
    distance = SlicedWassersteinLoss("a", independent_layer)
    assert (
        distance(activations_of(correlated_layer)).item() > 0.1 > 100 * distance(activations_of(shuffled_layer)).item()
    )


def test_channel_neuron_and_direction_are_the_negative_activations() -> None:
    layer, channels = layer_output(0), torch.tensor([1, 3])
    assert torch.allclose(Channel("a", channels)(activations_of(layer)), -layer.mean(dim=(2, 3))[[0, 1], channels])
    assert torch.equal(Neuron("a", channels)(activations_of(layer)), -layer[[0, 1], channels, 3, 2])
    direction = Direction("a", torch.tensor([0.0, 2.0, 0.0, 0.0]))
    assert torch.allclose(direction(activations_of(layer)), -layer[:, 1].mean(dim=(1, 2)))


def test_diversity_is_lower_for_images_that_differ() -> None:
    first = layer_output(0, 1).abs()
    same, different = first.repeat(3, 1, 1, 1), torch.cat([first, layer_output(1, 1).abs(), layer_output(2, 1)])
    assert torch.allclose(Diversity("a")(activations_of(same)), torch.ones(3), atol=1e-5)
    assert (Diversity("a")(activations_of(different)) < 0.95).all()


def test_channel_accepts_vectors_and_refuses_tokens() -> None:
    values = torch.randn(2, 4)
    assert torch.equal(Channel("a", torch.tensor([1, 3]))(activations_of(values)), -values[[0, 1], [1, 3]])
    with pytest.raises(GapError, match="layer a gives 2 x 7 x 4 values, not maps"):
        Channel("a", torch.tensor([1, 3]))(activations_of(torch.randn(2, 7, 4)))


def test_color_gram_loss_depends_on_colors_and_not_on_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 6, 5, generator=generator)
    shuffled = image.flatten(2)[:, :, torch.randperm(30, generator=generator)].view(1, 3, 5, 6)
    colors = ColorGramLoss(image)
    assert colors(Activations(shuffled, {})).item() == pytest.approx(0, abs=1e-9)
    assert colors(Activations(image.flip(1), {})).item() > 1e-4
    points = np.concatenate([image[0].flatten(1).numpy(), np.ones((1, 30))])
    darker_points = np.concatenate([image[0].flatten(1).numpy() / 2, np.ones((1, 30))])
    expected_gram, gram = (values @ values.T / 30 for values in (points, darker_points))
    expected = ((gram - expected_gram) ** 2).sum() / (expected_gram**2).sum()
    assert colors(Activations(image / 2, {})).item() == pytest.approx(expected, rel=1e-4)
