"""Adversarial losses: their values, their signs, and gradients where cross-entropy has none."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gap.attacks.losses import (
    CROSS_ENTROPY_CAP,
    LOG_FLOOR,
    LOSSES,
    Criterion,
    capped_cross_entropy,
    find_loss,
    log_cross_entropy,
    margin,
    relativistic,
)
from gap.attacks.options import CONFIDENCE
from gap.core.errors import GapError

ALL = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
TARGETED = pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])


def random_case(seed, images=6, classes=5, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(images, classes, generator=generator)
    return logits, scale * torch.randn(images, classes, generator=generator), torch.arange(images) % classes


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 9))
def test_cross_entropy_losses_random_logits_equal_those_of_torch(seed, classes):
    logits, clean, labels = random_case(seed, classes=classes)
    expected = F.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(capped_cross_entropy(logits, clean, Criterion(labels, True)), expected, atol=1e-5)
    assert torch.allclose(
        capped_cross_entropy(logits, clean, Criterion(labels)), -expected.clamp_max(CROSS_ENTROPY_CAP), atol=1e-5
    )
    floored = expected.clamp_min(LOG_FLOOR).log()
    assert torch.allclose(log_cross_entropy(logits, clean, Criterion(labels, True)), floored, atol=1e-4)
    assert torch.allclose(log_cross_entropy(logits, clean, Criterion(labels)), -floored, atol=1e-4)
    change = F.cross_entropy(logits - clean, labels, reduction="none")
    assert torch.allclose(relativistic(logits, clean, Criterion(labels, True)), change, atol=1e-5)


def test_margin_of_logits_is_own_minus_best_other():
    logits = torch.tensor([[3.0, 1.0, 2.5], [0.0, 2.5, 4.0]])
    labels = torch.tensor([0, 1])
    assert margin(logits, logits, Criterion(labels)).tolist() == [0.5, -1.5]
    assert margin(logits, logits, Criterion(labels, True)).tolist() == [-0.5, 1.5]


@ALL
@TARGETED
def test_loss_logit_margin_of_40_has_a_gradient(loss, targeted):
    """Catches: a loss that saturates far from success: the label leads by 40, or the target trails by 40."""
    logits = torch.tensor([[-20.0 if targeted else 20.0, 20.0 if targeted else -20.0, -25.0]], requires_grad=True)
    loss(logits, torch.zeros(1, 3), Criterion(torch.tensor([0]), targeted)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 0] != 0


@ALL
@TARGETED
def test_loss_gradient_of_own_logit_has_the_sign_of_the_criterion(loss, targeted):
    """Catches: a wrong sign. Descent must lower the logit of the label, or raise that of the target."""
    logits, clean, labels = random_case(1, scale=0.3)
    logits.requires_grad_()
    loss(logits, clean, Criterion(labels, targeted)).sum().backward()
    own = logits.grad.gather(1, labels[:, None])
    assert bool((own < 0).all() if targeted else (own > 0).all())


@ALL
@TARGETED
def test_loss_extreme_logits_give_one_finite_value_per_image(loss, targeted):
    extremes = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 0.0], [3e38, -3e38, 0.0]])
    for dtype in (torch.float32, torch.bfloat16):
        logits = extremes.to(dtype, copy=True).requires_grad_()
        value = loss(logits, torch.zeros(4, 3), Criterion(torch.zeros(4, dtype=torch.long), targeted))
        assert value.shape == (4,)
        assert value.dtype == torch.float32
        assert value[:3].isfinite().all()
        assert not value.isnan().any()
        value[:3].sum().backward()
        assert logits.grad.isfinite().all()


def test_loss_beyond_floor_or_cap_is_constant_without_gradient():
    logits = torch.tensor([[-30.0, 30.0]], requires_grad=True)
    criterion = Criterion(torch.tensor([0]))
    assert margin(logits, logits, criterion).item() == -CONFIDENCE
    assert capped_cross_entropy(logits, logits, criterion).item() == -CROSS_ENTROPY_CAP
    assert relativistic(logits, torch.zeros(1, 2), criterion).item() == -CROSS_ENTROPY_CAP
    for loss in (margin, capped_cross_entropy):
        (gradient,) = torch.autograd.grad(loss(logits, logits, criterion).sum(), logits)
        assert gradient.abs().max() == 0


def test_log_cross_entropy_zero_cross_entropy_is_finite():
    logits = torch.tensor([[1e4, -1e4]])
    value = log_cross_entropy(logits, logits, Criterion(torch.tensor([0]), True)).item()
    assert math.isfinite(value)
    assert value <= math.log(LOG_FLOOR) + 1e-3


def test_relativistic_common_shift_changes_nothing_and_clean_logits_get_no_gradient():
    logits, clean, labels = random_case(2)
    clean.requires_grad_()
    logits.requires_grad_()
    shifted = relativistic(logits + 3, clean + 3, Criterion(labels))
    assert torch.allclose(shifted, relativistic(logits, clean, Criterion(labels)), atol=1e-5)
    shifted.sum().backward()
    assert clean.grad is None


@TARGETED
def test_criterion_is_adversarial_depends_on_the_predicted_class(targeted):
    logits = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    assert Criterion(torch.tensor([0, 0]), targeted).is_adversarial(logits).tolist() == (
        [True, False] if targeted else [False, True]
    )


@pytest.mark.parametrize("confidence", [0.0, 2.0, 7.5])
def test_margin_confidence_is_the_floor_of_the_loss(confidence):
    logits = torch.tensor([[-20.0, 0.0, 0.0], [0.0, 1.0, 0.0], [3.0, 1.0, 0.0]])
    values = find_loss("margin", confidence)(logits, None, Criterion(torch.zeros(3, dtype=torch.int64)))
    assert values.tolist() == [-confidence, max(-1.0, -confidence), 2.0]


def test_find_loss_unknown_name_raises_with_a_suggestion():
    assert find_loss("relativistic") is relativistic
    with pytest.raises(GapError, match="did you mean margin"):
        find_loss("margins")
