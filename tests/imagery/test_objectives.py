"""Objectives add and scale like numbers, and say what they are made of."""

import pytest
import torch

from gap.imagery.losses import Logit
from gap.imagery.objectives import Activations, PixelDistance, TotalVariation


def activations() -> Activations:
    torch.manual_seed(0)
    return Activations(torch.rand(3, 1, 4, 4), {"logits": torch.randn(3, 5)})


def test_the_logit_of_each_image_s_class() -> None:
    seen, classes = activations(), torch.tensor([4, 0, 2])
    assert torch.equal(Logit(classes)(seen), -seen.layers["logits"][[0, 1, 2], classes])


def test_the_distance_is_a_squared_distance() -> None:
    seen = activations()
    distance = (seen.images - 0.5).flatten(1).norm(dim=1)
    assert torch.allclose(PixelDistance(torch.full((3, 1, 4, 4), 0.5))(seen), distance**2)


def test_total_variation_of_a_ramp_and_of_nothing() -> None:
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4) / 4
    images = torch.cat([ramp, torch.full((1, 1, 4, 4), 0.3)])
    assert torch.allclose(TotalVariation()(Activations(images, {})), torch.tensor([1 / 16, 0.0]))


@pytest.mark.parametrize(("size", "value"), [((1, 4), 1 / 16), ((4, 1), 1 / 16), ((1, 1), 0.0)])
def test_variation_of_one_row_or_column_counts_the_other_direction(size: tuple[int, int], value: float) -> None:
    images = (torch.arange(4.0) / 4)[: size[0] * size[1]].view(1, 1, *size).requires_grad_()
    variation = TotalVariation()(Activations(images, {}))
    variation.sum().backward()
    assert variation.tolist() == [value]
    assert images.grad is not None and images.grad.isfinite().all()


def test_they_add_and_scale() -> None:
    seen, logit, distance = activations(), Logit(torch.tensor([0, 1, 2])), PixelDistance(torch.zeros(3, 1, 4, 4))
    both = 2 * logit + distance * 0.5
    assert torch.allclose(both(seen), 2 * logit(seen) + 0.5 * distance(seen))
    lines = both.summary(seen).splitlines()
    value = logit(seen).mean().item()
    assert [line.partition(":")[0] for line in lines] == ["sum", "  class logit", "  pixel distance"]
    assert lines[1] == f"  class logit: {value:.4g}, times 2: {2 * value:.4g}"
    assert lines[0] == f"sum: {both(seen).mean().item():.4g}"


def test_a_sum_of_sums_is_one_sum_and_knows_its_layers() -> None:
    logit, distance = Logit(torch.tensor([0, 1, 2])), PixelDistance(torch.zeros(3, 1, 4, 4))
    three = distance + logit + TotalVariation()
    assert len(three.parts) == 3 and three.layers == ("logits",)
