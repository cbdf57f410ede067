"""Noise and Checkerboard: baselines without access to the model, which use the whole budget."""

import pytest
import torch
from torch import nn

from gap.attacks.noise import Checkerboard, Noise
from gap.core.errors import GapError
from gap.threat import Budget

BUDGETS = pytest.mark.parametrize("budget", [Budget("linf", 0.1), Budget("l2", 0.7)], ids=str)
GRAY = torch.full((3, 2, 6, 5), 0.5)
LABELS = torch.zeros(3, dtype=torch.long)


@BUDGETS
@pytest.mark.parametrize("attack", [Noise, Checkerboard])
def test_noise_and_checkerboard_gray_images_use_the_whole_budget(attack, budget):
    change = attack(budget)(nn.Identity(), GRAY, LABELS) - GRAY
    assert budget.norm_of(change).tolist() == pytest.approx([budget.epsilon] * 3, rel=1e-5)


@BUDGETS
def test_noise_differs_between_images_and_calls(budget):
    torch.manual_seed(0)
    first, second = (Noise(budget)(nn.Identity(), GRAY, LABELS) for _ in range(2))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


def test_noise_linf_budget_consists_of_signs():
    change = Noise(Budget("linf", 0.1))(nn.Identity(), GRAY, LABELS) - GRAY
    assert torch.allclose(change.abs(), torch.tensor(0.1))
    assert -0.05 < change.mean() < 0.05


@BUDGETS
def test_checkerboard_side_2_has_squares_of_2_pixels(budget):
    change = Checkerboard(budget, side=2)(nn.Identity(), GRAY, LABELS) - GRAY
    expected = torch.tensor([[1, 1, -1, -1, 1], [1, 1, -1, -1, 1], [-1, -1, 1, 1, -1]])
    assert torch.equal(change[0, 0, :3].sign().int(), expected.int())
    assert torch.equal(change[0, 0], change[2, 1])


def test_checkerboard_side_below_one_raises_gap_error():
    with pytest.raises(GapError, match="side"):
        Checkerboard(Budget("linf", 0.1), side=0)
