"""Objectives are added and scaled like numbers, and summarize their parts."""

import pytest
import torch

from gap.imagery.losses import Logit
from gap.imagery.objectives import Activations, PixelDistance, TotalVariation


def activations() -> Activations:
    torch.manual_seed(0)
    return Activations(torch.rand(3, 1, 4, 4), {"logits": torch.randn(3, 5)})


def test_logit_is_the_negative_logit_of_the_class_of_each_image() -> None:
    inputs, classes = activations(), torch.tensor([4, 0, 2])
    assert torch.equal(Logit(classes)(inputs), -inputs.layers["logits"][[0, 1, 2], classes])


def test_pixel_distance_is_the_squared_l2_distance() -> None:
    inputs = activations()
    distance = (inputs.images - 0.5).flatten(1).norm(dim=1)
    assert torch.allclose(PixelDistance(torch.full((3, 1, 4, 4), 0.5))(inputs), distance**2)


def test_total_variation_of_a_ramp_and_of_a_constant_image() -> None:
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4) / 4
    images = torch.cat([ramp, torch.full((1, 1, 4, 4), 0.3)])
    assert torch.allclose(TotalVariation()(Activations(images, {})), torch.tensor([1 / 16, 0.0]))


@pytest.mark.parametrize(("size", "value"), [((1, 4), 1 / 16), ((4, 1), 1 / 16), ((1, 1), 0.0)])
def test_total_variation_single_row_or_column_has_a_finite_gradient(size: tuple[int, int], value: float) -> None:
    images = (torch.arange(4.0) / 4)[: size[0] * size[1]].view(1, 1, *size).requires_grad_()
    variation = TotalVariation()(Activations(images, {}))
    variation.sum().backward()
    assert variation.tolist() == [value]
    assert images.grad is not None and images.grad.isfinite().all()


def test_objective_sum_and_product_give_values_and_a_summary() -> None:
    inputs, logit, distance = activations(), Logit(torch.tensor([0, 1, 2])), PixelDistance(torch.zeros(3, 1, 4, 4))
    both = 2 * logit + distance * 0.5
    assert torch.allclose(both(inputs), 2 * logit(inputs) + 0.5 * distance(inputs))
    lines = both.summary(inputs).splitlines()
    value = logit(inputs).mean().item()
    assert [line.partition(":")[0] for line in lines] == ["sum", "  class logit", "  pixel distance"]
    assert lines[1] == f"  class logit: {value:.4g}, times 2: {2 * value:.4g}"
    assert lines[0] == f"sum: {both(inputs).mean().item():.4g}"


def test_objective_nested_sums_are_flattened_and_have_the_layers_of_their_parts() -> None:
    logit, distance = Logit(torch.tensor([0, 1, 2])), PixelDistance(torch.zeros(3, 1, 4, 4))
    three = distance + logit + TotalVariation()
    assert len(three.parts) == 3 and three.layers == ("logits",)
