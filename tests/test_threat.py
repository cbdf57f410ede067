"""Properties of budgets: results stay within them, all of a budget can be used, and 8-bit images stay inside."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gap.core.errors import GapError
from gap.threat import L1, L2, NORMS, Budget, quantize_towards, to_8bit

shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 12), st.integers(1, 12))
budgets = st.one_of(
    st.builds(Budget, st.just("linf"), st.floats(1e-4, 1.0)),
    st.builds(Budget, st.just("linf"), st.integers(1, 255).map(lambda levels: levels / 255)),
    st.builds(Budget, st.just("l2"), st.floats(1e-3, 50.0)),
    st.builds(Budget, st.just("l1"), st.floats(1e-3, 200.0)),
)
dtypes = st.sampled_from([torch.float32, torch.float64])
seeds = st.integers(0, 10_000)
scales = st.sampled_from([1e-3, 0.1, 1.0, 30.0, 1e4])
quickly = settings(max_examples=60, deadline=None, derandomize=True)


def noise(shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_images(shape, seed, dtype=torch.float32):
    """Random images with many pixels at 0 and 1."""
    return (noise(shape, seed, dtype) + 0.5).clamp(0, 1)


def is_inside(budget, perturbation):
    return bool((budget.norm_of(perturbation) <= budget.epsilon * (1 + 1e-6) + 1e-7).all())


# ------------------------------------------------------------------ reading and writing


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("linf:8/255", Budget("linf", 8 / 255)),
        (" Linf : 8 / 255 ", Budget("linf", 8 / 255)),
        ("l2:2.4", Budget("l2", 2.4)),
        ("L2:.5", Budget("l2", 0.5)),
        ("l2:1e-1", Budget("l2", 0.1)),
        ("linf:1", Budget("linf", 1.0)),
        ("l1:12", Budget("l1", 12.0)),
    ],
)
def test_budget_parse_other_spelling_gives_the_budget(text, budget):
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["linf:8/255", "linf:0.1", "linf:1", "l2:2.4", "l2:0.333333", "l1:12"])
def test_budget_str_gives_the_parsed_text(text):
    assert str(Budget.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linf:8", r"was linf:8/255 meant"),
        ("linf:1.5", r"\[0, 1\]"),
        ("linf:0", "positive"),
        ("l2:-1", "positive"),
        ("l2:1e999", "finite"),
        ("l2:1/0", "zero"),
        ("l7:3", "unknown norm 'l7'; did you mean l"),
        ("l2", "cannot read"),
        ("", "cannot read"),
        ("l2:2.4.1", "cannot read"),
        ("l2:two", "cannot read"),
        ("linf:__import__('os')", "cannot read"),
    ],
)
def test_budget_parse_invalid_text_is_refused_in_one_line(text, message):
    with pytest.raises(GapError, match=message) as error:
        Budget.parse(text)
    assert "\n" not in str(error.value)


@quickly
@given(budget=budgets)
def test_budget_str_parsed_again_gives_the_same_budget(budget):
    parsed = Budget.parse(str(budget))
    assert parsed.norm == budget.norm
    assert parsed.epsilon == pytest.approx(budget.epsilon, rel=1e-5)


def test_budget_check_epsilon_that_allows_every_image_is_refused():
    Budget("l2", 2.4).check(1, 28, 28)
    Budget("linf", 1.0).check(1, 28, 28)
    with pytest.raises(GapError, match=r"allows every picture of 1x28x28"):
        Budget("l2", 28.0).check(1, 28, 28)


# ------------------------------------------------------------------ bound, apply, project, norm_of


@quickly
@given(shape=shapes, budget=budgets, dtype=dtypes, seed=seeds, scale=scales)
def test_bound_any_input_stays_within_the_budget(shape, budget, dtype, seed, scale):
    bounded = budget.bound(scale * noise(shape, seed, dtype))
    assert bounded.shape == shape
    assert bounded.dtype == dtype
    assert is_inside(budget, bounded)


@quickly
@given(shape=shapes, budget=budgets, seed=seeds)
def test_bound_large_input_uses_all_of_the_budget(shape, budget, seed):
    raw = 6 * noise(shape, seed).sign()
    assert (budget.norm_of(budget.bound(raw)) > 0.999 * budget.epsilon).all()


@quickly
@given(shape=shapes, budget=budgets, seed=seeds, scale=st.sampled_from([0.0, 1e-6, 0.1, 1.0, 1e4]))
def test_bound_gradient_is_finite_everywhere(shape, budget, seed, scale):
    raw = (scale * noise(shape, seed)).requires_grad_()
    budget.bound(raw).sum().backward()
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("norm", NORMS)
def test_bound_gradient_is_positive_at_zero_and_outside_the_budget(norm):
    """Catches: hard clipping, without a gradient outside the budget, and a norm, without one at 0."""
    for value in (0.0, 2.0):
        raw = torch.full((1, 1, 4, 4), value).requires_grad_()
        Budget(norm, 0.1).bound(raw).sum().backward()
        assert (raw.grad > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("budget", [Budget("linf", 8 / 255), Budget("l2", 2.4)], ids=str)
def test_bound_half_precision_is_computed_in_float32(dtype, budget):
    bounded = budget.bound((300 * noise((2, 3, 32, 32), 0)).to(dtype))
    assert bounded.dtype == torch.float32
    assert is_inside(budget, bounded)
    assert (budget.norm_of(bounded) > 0.999 * budget.epsilon).all()


@quickly
@given(shape=shapes, budget=budgets, seed=seeds, scale=scales)
def test_apply_stays_within_the_budget_and_the_range_of_pixels(shape, budget, seed, scale):
    images = random_images(shape, seed)
    adversarial = budget.apply(images, scale * noise(shape, seed + 1))
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert is_inside(budget, adversarial - images)


@quickly
@given(shape=shapes, budget=budgets, dtype=dtypes, seed=seeds, scale=scales)
def test_project_is_idempotent_and_keeps_perturbations_within_the_budget(shape, budget, dtype, seed, scale):
    perturbation = scale * noise(shape, seed, dtype)
    projected = budget.project(perturbation)
    assert is_inside(budget, projected)
    assert torch.allclose(budget.project(projected), projected, rtol=1e-6)
    within = budget.norm_of(perturbation) <= budget.epsilon
    assert torch.equal(projected[within], perturbation[within])
    assert (budget.norm_of(projected)[~within] > 0.9999 * budget.epsilon).all()


@quickly
@given(shape=shapes, budget=budgets, seed=seeds)
def test_project_gives_the_nearest_perturbation_of_the_ball(shape, budget, seed):
    """No other point of the ball is nearer in L2; five random points are tried."""
    outside = 3 * noise(shape, seed)
    distance = L2.length(outside - budget.project(outside))
    for other in range(5):
        candidate = budget.project(outside + 0.3 * noise(shape, seed + 1 + other))
        assert (distance <= L2.length(outside - candidate) * (1 + 1e-5) + 1e-6).all()


@quickly
@given(shape=shapes, budget=budgets, seed=seeds)
def test_bound_project_and_quantize_treat_each_image_separately(shape, budget, seed):
    batch = noise(shape, seed)
    clean = random_images(shape, seed + 1)
    for index in range(shape[0]):
        single = batch[index : index + 1]
        assert torch.allclose(budget.bound(batch)[index], budget.bound(single)[0], rtol=1e-5)
        assert torch.allclose(budget.project(batch)[index], budget.project(single)[0], rtol=1e-5)
        quantized = budget.quantize(clean, clean + batch)[index]
        assert torch.equal(quantized, budget.quantize(clean[index : index + 1], clean[index : index + 1] + single)[0])


def test_norm_of_gives_the_norm_of_each_image():
    perturbation = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.5]]]])
    assert Budget("l2", 1).norm_of(perturbation).tolist() == [5.0, 0.5]
    assert Budget("linf", 1).norm_of(perturbation).tolist() == [4.0, 0.5]
    assert Budget("l1", 1).norm_of(perturbation).tolist() == [7.0, 0.5]


# ------------------------------------------------------------------ norms


@quickly
@given(shape=shapes, norm=st.sampled_from(list(NORMS.values())), seed=seeds)
def test_steepest_has_norm_one_and_rises_by_the_slope(shape, norm, seed):
    gradient = noise(shape, seed)
    direction = norm.steepest(gradient)
    assert norm.length(direction).tolist() == pytest.approx([1.0] * shape[0], rel=1e-5)
    rise = (gradient * direction).flatten(1).sum(dim=1)
    assert rise.tolist() == pytest.approx(norm.slope(gradient.flatten(1)).tolist(), rel=1e-4)
    # No other direction of norm 1 rises faster, except in L1, where a change of one value alone does.
    other = norm.project(noise(shape, seed + 1), 1.0)
    if norm is not L1:
        assert (rise >= (gradient * other).flatten(1).sum(dim=1) - 1e-5).all()


@pytest.mark.parametrize("norm", NORMS.values(), ids=str)
def test_diameter_and_covering_radius_bound_distances_between_images_and_to_gray(norm):
    black, white, gray = torch.zeros(1, 1, 3, 4), torch.ones(1, 1, 3, 4), torch.full((1, 1, 3, 4), 0.5)
    assert norm.length(white - black).item() == pytest.approx(norm.diameter(12))
    assert norm.length(gray - black).item() <= norm.covering_radius(12) * (1 + 1e-6)


@pytest.mark.parametrize(("norm", "epsilon", "expected"), [("linf", 0.5, 1.0), ("l2", 0.5, 0.5), ("l1", 2.5, 1.5)])
def test_longest_l2_is_the_largest_l2_norm_within_epsilon(norm, epsilon, expected):
    # In L1: two values change by 1 and one by a half.
    assert NORMS[norm].longest_l2(epsilon, 4) == pytest.approx(expected)


def test_l1_project_reduces_every_value_by_the_same_amount():
    perturbation = torch.tensor([[[[3.0, -2.0, 0.5]]]])
    assert L1.project(perturbation, 3.0).flatten().tolist() == pytest.approx([2.0, -1.0, 0.0])


# ------------------------------------------------------------------ 8-bit


@quickly
@given(shape=shapes, budget=budgets, dtype=dtypes, seed=seeds, scale=scales)
def test_quantize_is_8_bit_within_the_budget_and_never_farther(shape, budget, dtype, seed, scale):
    clean = to_8bit(random_images(shape, seed, dtype))
    adversarial = (clean + budget.project(scale * noise(shape, seed + 1, dtype))).clamp(0, 1)
    quantized = budget.quantize(clean, adversarial)
    levels = quantized * 255
    assert quantized.dtype == dtype
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert quantized.min() >= 0
    assert quantized.max() <= 1
    assert is_inside(budget, quantized - clean)
    change, quantized_change = adversarial - clean, quantized - clean
    assert (quantized_change.abs() <= change.abs() + 1e-6).all(), "farther than the adversarial image"
    assert (quantized_change.abs() > change.abs() - 1 / 255 - 1e-6).all(), "more than a level lost"
    assert (quantized_change * change >= 0).all(), "on the other side of the clean image"


@quickly
@given(shape=shapes, budget=budgets, dtype=dtypes, seed=seeds, scale=scales)
def test_quantize_is_idempotent(shape, budget, dtype, seed, scale):
    clean = to_8bit(random_images(shape, seed, dtype))
    once = budget.quantize(clean, clean + scale * noise(shape, seed + 1, dtype))
    assert torch.equal(budget.quantize(clean, once), once)


@pytest.mark.parametrize("levels", [1, 2, 3, 8, 16, 100])
def test_quantize_budget_of_whole_levels_is_fully_used(levels):
    """Catches: a last level that is lost because floats do not represent k / 255 exactly."""
    budget = Budget("linf", levels / 255)
    clean = torch.arange(256).view(1, 1, 16, 16) / 255
    for sign in (-1, 1):
        quantized = budget.quantize(clean, (clean + sign * budget.epsilon).clamp(0, 1))
        expected = (torch.arange(256) + sign * levels).clamp(0, 255)
        assert torch.equal((quantized * 255).round().long().flatten(), expected)


def test_quantize_level_just_beyond_the_budget_is_not_used():
    budget = Budget("linf", (8 - 5e-5) / 255)
    clean = torch.arange(200).view(1, 1, 10, 20) / 255
    quantized = budget.quantize(clean, clean + budget.epsilon)
    assert ((quantized - clean) * 255).round().unique().tolist() == [7]


@quickly
@given(shape=shapes, seed=seeds, scale=scales)
def test_quantize_towards_gives_8_bit_images_no_farther_than_the_input(shape, seed, scale):
    clean = to_8bit(random_images(shape, seed))
    adversarial = (clean + scale * noise(shape, seed + 1)).clamp(0, 1)
    quantized = quantize_towards(clean, adversarial)
    assert torch.equal(to_8bit(quantized), quantized)
    assert ((quantized - clean).abs() <= (adversarial - clean).abs() + 1e-6).all()


def test_to_8bit_rounds_to_the_nearest_level():
    images = torch.tensor([[[[-0.5, 0.0, 0.4999 / 255, 0.5001 / 255, 100.4 / 255, 2.0]]]])
    assert (to_8bit(images) * 255).round().flatten().tolist() == [0, 0, 0, 1, 100, 255]
    assert math.isclose(images.min().item(), -0.5), "the input was changed"
