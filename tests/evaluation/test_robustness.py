"""Classifiers that mask their gradients are detected, and one that does not passes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from gap.attacks.gradient import PGD
from gap.attacks.noise import Noise
from gap.classifiers.classifier import Classifier, ClassifierSpec
from gap.core.frozen import frozen
from gap.data.dataset import InMemorySplit
from gap.evaluation import autoattack
from gap.evaluation.autoattack import AutoAttackResult, auto_attack, supports_square
from gap.evaluation.masking_checks import (
    CheckResult,
    EvaluationBatch,
    SurrogatePGD,
    check_epsilon_curve,
    check_gradient_fidelity,
    check_more_steps,
    exceeds_tolerance,
    run_masking_checks,
)
from gap.evaluation.robustness import (
    RobustnessReport,
    _run_square,
    check_autoattack_warnings,
    check_black_box,
    evaluate_robustness,
)
from gap.threat import Budget

BUDGETS = [Budget("linf", 0.045), Budget("l2", 0.45)]


@pytest.fixture(autouse=True)
def _short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer queries of the black-box check: these networks are small."""
    monkeypatch.setattr("gap.evaluation.robustness.FEW_QUERIES", 250)


class Masked(nn.Module):
    def __init__(self, net: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.net(self.before(images)))


def identity(values: Tensor) -> Tensor:
    return values


def with_gradient(images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The images, whose gradient is changed on its way back."""
    images = images.clone()
    if images.requires_grad:
        images.register_hook(change)
    return images


CORNER = torch.arange(144).view(12, 12) == 0
MASKS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "gradients killed by rounding": (lambda images: (images * 16).round() / 16, identity),
    "a saturated softmax": (identity, lambda logits: (logits * 1000).softmax(dim=1)),
    "noise": (lambda images: images + 0.1 * torch.randn_like(images), identity),
    "gradients of the wrong sign": (identity, lambda logits: 2 * logits.detach() - logits),
    "gradients of one pixel": (lambda images: torch.where(CORNER, images, images.detach()), identity),
    "gradients at random": (lambda images: with_gradient(images, torch.randn_like), identity),
    "gradients of other pixels": (lambda images: with_gradient(images, lambda gradient: gradient.flip(2, 3)), identity),
    "no gradient at all": (lambda images: images.detach(), identity),
}


REPEATS, NONZERO_GRADIENT = "the same logits each time", "losses are not flat"
EPSILON_CURVE, BLACK_BOX = "accuracy falls to nothing as epsilon grows", "black-box attacks do not beat white-box ones"
BEATEN, FLAGS = "no other attack beats AutoAttack", "AutoAttack raises no other flag"
FIDELITY = "gradients tell how the margin changes"


def failed_checks(report: RobustnessReport) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


def make_classifier(net: nn.Module) -> Classifier:
    return Classifier(net, ClassifierSpec(1, (12, 12), 4), name="net", architecture="net").eval()


@pytest.fixture
def split(pictures) -> InMemorySplit:
    return InMemorySplit((pictures.images * 255).round().to(torch.uint8), pictures.labels)


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_evaluate_robustness_classifier_without_masking_holds(pictures, split: InMemorySplit, budget: Budget) -> None:
    report = evaluate_robustness(
        make_classifier(pictures.net), split, budget, images=100, fast=True, surrogate=make_classifier(pictures.net)
    )
    assert report.verdict == "holds", report.checks
    assert report.clean_accuracy > 0.9
    assert 0.3 < report.robust_accuracy < report.clean_accuracy - 0.05
    assert report.interval[0] < report.robust_accuracy < report.interval[1]
    assert list(report.attacks) == ["apgd-ce", "apgd-t", "pgd", "pgd on net"]


# The checks that each mask fails, and no others.
FAILED_CHECKS = {
    "gradients killed by rounding": {NONZERO_GRADIENT, EPSILON_CURVE, FLAGS},
    "a saturated softmax": {NONZERO_GRADIENT, EPSILON_CURVE, FLAGS},
    "noise": {REPEATS, BEATEN, FLAGS},
    "gradients of the wrong sign": {EPSILON_CURVE, FIDELITY},
    "gradients at random": {FIDELITY},
    "gradients of other pixels": {FIDELITY},
}


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("mask", FAILED_CHECKS)
def test_evaluate_robustness_masked_classifier_fails_the_checks_of_its_mask(
    pictures, split: InMemorySplit, mask: str, budget: Budget
) -> None:
    report = evaluate_robustness(
        make_classifier(Masked(pictures.net, *MASKS[mask])), split, budget, images=60, fast=True
    )
    # Noise may also fail any other check.
    checks = failed_checks(report) & FAILED_CHECKS[mask] if mask == "noise" else failed_checks(report)
    assert report.verdict == "masked" and checks == FAILED_CHECKS[mask]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_check_gradient_fidelity_straight_through_rounding_passes(pictures, budget: Budget) -> None:
    """Catches: a check at steps below one level, where the margin of rounded images stays equal or jumps."""

    def round_to_levels(images: Tensor) -> Tensor:
        return images + ((images * 255).round() / 255 - images).detach()

    batch = EvaluationBatch(
        make_classifier(Masked(pictures.net, round_to_levels, identity)), pictures.images, pictures.labels, budget
    )
    unmasked = replace(batch, classifier=make_classifier(pictures.net))
    for evaluated in (batch, unmasked):
        with frozen(evaluated.classifier):
            assert check_gradient_fidelity(evaluated).passed, check_gradient_fidelity(evaluated).details


def test_evaluate_robustness_fast_suite_runs_a_black_box_attack(pictures, split: InMemorySplit) -> None:
    """Where gradients are of one pixel, only an attack without gradients finds the others."""
    one_pixel = make_classifier(Masked(pictures.net, *MASKS["gradients of one pixel"]))
    report = evaluate_robustness(one_pixel, split, Budget("linf", 0.1), images=60, fast=True)
    assert BLACK_BOX in failed_checks(report) and report.autoattack == ["apgd-ce", "apgd-t"]
    assert report.attacks["apgd-t"] > 0.9


def test_check_black_box_images_that_pgd_also_breaks_do_not_count(pictures) -> None:
    """Catches: a flag for images that PGD breaks too, and a search of those images."""
    batch = EvaluationBatch(make_classifier(pictures.net), pictures.images[:100], pictures.labels[:100], BUDGETS[0])
    broken, robust_to_pgd = torch.arange(100) < 10, torch.arange(100) >= 10
    result = AutoAttackResult(~broken, broken={"square": broken})
    assert not check_black_box(result, torch.ones(100, dtype=torch.bool), batch, 0).passed
    assert check_black_box(result, robust_to_pgd, batch, 0).passed
    assert _run_square(torch.zeros(100, dtype=torch.bool), batch, 0) == 0


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_evaluate_robustness_two_classes_logit_scale_does_not_change_the_result(scale: float) -> None:
    """Catches: cross-entropy without a gradient where the logits are twenty times as large."""
    torch.manual_seed(0)
    images = (0.5 + 0.1 * torch.randn(80, 1, 6, 6)).clamp(0, 1)
    labels = (images.mean(dim=(1, 2, 3)) > 0.5).long()
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    net[1].weight.data = scale * torch.tensor([[-10.0], [10.0]]).expand(2, 36).contiguous()
    net[1].bias.data = scale * torch.tensor([180.0, -180.0])
    binary = Classifier(net, ClassifierSpec(1, (6, 6), 2), name="two", architecture="two").eval()
    split = InMemorySplit((images * 255).round().to(torch.uint8), labels)
    report = evaluate_robustness(binary, split, Budget("linf", 0.01), fast=True, surrogate=binary)
    assert report.autoattack == ["apgd-ce", "fab-t"] and "four classes" in report.not_evaluated[0]
    assert report.verdict == "holds", report.checks
    assert report.robust_accuracy == pytest.approx(0.5, abs=0.15)


def test_evaluate_robustness_what_did_not_run_is_listed_as_not_evaluated(pictures, split: InMemorySplit) -> None:
    """In L2, Square cannot tile images of 12 x 12 pixels."""
    net = make_classifier(pictures.net)
    not_evaluated = [evaluate_robustness(net, split, budget, images=20, fast=True).not_evaluated for budget in BUDGETS]
    assert [len(entries) for entries in not_evaluated] == [2, 3] and "Square" in not_evaluated[1][1]
    assert all("surrogate" in entries[0] and "adaptive" in entries[-1] for entries in not_evaluated)
    report = evaluate_robustness(
        net, split, BUDGETS[0], images=20, fast=True, surrogate=net, adaptive=[Noise(BUDGETS[0])]
    )
    assert report.not_evaluated == []
    report = evaluate_robustness(
        net, split, BUDGETS[0], images=20, fast=True, surrogate=net, others=[Noise(BUDGETS[0])]
    )
    assert len(report.not_evaluated) == 1 and "adaptive" in report.not_evaluated[0]


def test_evaluate_robustness_full_suite_runs_all_of_autoattack(pictures, split: InMemorySplit) -> None:
    report = evaluate_robustness(make_classifier(pictures.net), split, BUDGETS[0], images=10)
    assert report.autoattack == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert [name for name in report.attacks if name != "pgd"] == report.autoattack


def test_check_black_box_shows_the_flag_of_autoattack_on_square(pictures) -> None:
    batch = EvaluationBatch(make_classifier(pictures.net), pictures.images[:100], pictures.labels[:100], BUDGETS[0])
    broken = torch.arange(100) < 2
    result = AutoAttackResult(~broken, broken={"square": broken}, flags=["zero gradients"])
    check = check_black_box(result, torch.ones(100, dtype=torch.bool), batch, 0)
    assert check.passed and "AutoAttack's own flag: square lowers the accuracy by 2.0%" in check.details
    assert check_autoattack_warnings(result) == CheckResult(FLAGS, False, "zero gradients")
    assert check_autoattack_warnings(AutoAttackResult(~broken)).passed


class GradientStops(nn.Module):
    """Passes gradients for the given number of forward passes, and none from then on."""

    def __init__(self, net: nn.Module, passes: int) -> None:
        super().__init__()
        self.net, self.passes = net, passes

    def forward(self, images: Tensor) -> Tensor:
        self.passes -= 1
        logits = self.net(images)
        return logits if self.passes > 0 else logits.detach() + 0 * logits


def test_check_more_steps_steps_without_effect_fail(pictures) -> None:
    for passes, passed in ((8, False), (10**6, True)):
        batch = EvaluationBatch(
            make_classifier(GradientStops(pictures.net, passes)), pictures.images, pictures.labels, Budget("linf", 0.1)
        )
        with frozen(batch.classifier):
            assert check_more_steps(batch).passed == passed


def test_exceeds_tolerance_one_image_is_tolerated() -> None:
    assert [exceeds_tolerance(count, 20) for count in (0, 1, 2)] == [False, False, True]
    assert [exceeds_tolerance(count, 1000) for count in (20, 21)] == [False, True]


def test_check_epsilon_curve_one_robust_image_of_few_passes() -> None:
    """A constant classifier stays correct on the one image of its class, whatever the budget."""

    class ConstantClassifier(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(1, 2, 3))[:, None] * 0 + torch.tensor([1.0, 0.0])

    constant = Classifier(
        ConstantClassifier(), ClassifierSpec(1, (4, 4), 2), name="constant", architecture="constant"
    ).eval()
    for num_robust, passed in ((1, True), (2, False)):
        batch = EvaluationBatch(constant, torch.rand(10, 1, 4, 4), (torch.arange(10) >= num_robust).long(), BUDGETS[0])
        assert check_epsilon_curve(batch).passed == passed


def test_run_masking_checks_uses_batches_of_the_given_size(pictures) -> None:
    """Catches: checks that run all images at once, and exceed the memory that the batch size allows."""
    batch_sizes: list[int] = []

    class Counting(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            batch_sizes.append(len(images))
            return pictures.net(images)

    batch = EvaluationBatch(make_classifier(Counting()), pictures.images, pictures.labels, BUDGETS[0], batch_size=30)
    checks = run_masking_checks(batch)
    assert max(batch_sizes) == 30 and all(check.passed for check in checks), checks


def test_surrogate_pgd_transfers_better_than_pgd_that_stops_at_the_boundary(pictures) -> None:
    """A network with other features is fooled by images beyond the boundary of the surrogate, hardly by those on it."""
    torch.manual_seed(1)
    hidden, output = nn.Linear(144, 256), nn.Linear(256, 4)
    hidden.weight.data = torch.randn(256, 144) / 2
    hidden.bias.data = -hidden.weight.data.sum(dim=1) / 2
    features = torch.tanh(hidden(pictures.images.flatten(1))).detach()
    ridge = features.T @ features + 5 * torch.eye(256)
    output.weight.data = torch.linalg.solve(ridge, features.T @ (8 * torch.eye(4)[pictures.labels] - 2)).T.contiguous()
    output.bias.data = torch.zeros(4)
    target = make_classifier(nn.Sequential(nn.Flatten(), hidden, nn.Tanh(), output))
    budget, surrogate = Budget("linf", 0.1), make_classifier(pictures.net)
    batch = EvaluationBatch(target, pictures.images, pictures.labels, budget)
    stopping = target(PGD(budget)(surrogate, pictures.images, pictures.labels)).argmax(dim=1) == pictures.labels
    assert batch.num_correct(SurrogatePGD(surrogate, budget)) < stopping.sum() - 0.3 * len(stopping)


def test_evaluate_robustness_surrogate_detects_gradients_that_rounding_removes(pictures, split: InMemorySplit) -> None:
    """Without gradients AutoAttack fails; attacks on the surrogate do not."""
    rounding = make_classifier(Masked(pictures.net, *MASKS["gradients killed by rounding"]))
    report = evaluate_robustness(
        rounding, split, Budget("linf", 0.1), images=60, fast=True, surrogate=make_classifier(pictures.net)
    )
    assert "transfer does not beat white-box attacks" in failed_checks(report)


def test_evaluate_robustness_other_attack_that_beats_autoattack_means_masking(pictures, split: InMemorySplit) -> None:
    """An attack that breaks what AutoAttack cannot is a sign of masking; one that breaks no more is not."""
    net, budget = make_classifier(pictures.net), Budget("linf", 0.045)
    weak, strong = Noise(budget), PGD(budget, steps=100, restarts=3, name="strong")
    unmasked = evaluate_robustness(net, split, budget, images=100, fast=True, others=[weak, strong])
    assert unmasked.verdict == "holds"
    assert unmasked.attacks["noise"] > unmasked.attacks["strong"] >= unmasked.robust_accuracy
    assert unmasked.attacks["pgd"] >= unmasked.robust_accuracy
    rounding = make_classifier(Masked(pictures.net, *MASKS["gradients killed by rounding"]))
    masked = evaluate_robustness(rounding, split, budget, images=100, fast=True, others=[SurrogatePGD(net, budget)])
    assert BEATEN in failed_checks(masked)
    assert masked.robust_accuracy <= masked.attacks["pgd on net"] < masked.attacks["apgd-t"]


def test_evaluate_robustness_other_attack_named_as_one_of_autoattack_keeps_both(pictures, split: InMemorySplit) -> None:
    net = make_classifier(pictures.net)
    others = [Noise(BUDGETS[0], name=name) for name in ("clean", "apgd-t", "square", "pgd")]
    report = evaluate_robustness(net, split, BUDGETS[0], images=100, fast=True, others=others)
    plain = evaluate_robustness(net, split, BUDGETS[0], images=100, fast=True)
    assert report.verdict == "holds" and report.clean_accuracy == plain.clean_accuracy
    assert list(report.attacks) == [
        "apgd-ce",
        "apgd-t",
        "pgd",
        "clean (given)",
        "apgd-t (given)",
        "square",
        "pgd (given)",
    ]
    assert report.attacks["apgd-t"] == plain.attacks["apgd-t"]


def test_evaluate_robustness_other_attacks_of_one_name_are_numbered(pictures, split: InMemorySplit) -> None:
    """Catches: a second attack whose accuracy replaces that of the first."""
    others = [Noise(Budget(BUDGETS[0].norm, epsilon), name="mine") for epsilon in (0.001, 0.3, 0.002)]
    report = evaluate_robustness(make_classifier(pictures.net), split, BUDGETS[0], images=60, fast=True, others=others)
    assert list(report.attacks)[-3:] == ["mine", "mine (2)", "mine (3)"]
    first, second, third = list(report.attacks.values())[-3:]
    assert first == third > second >= report.robust_accuracy


def test_evaluate_robustness_classifier_without_gradient_is_masked(pictures, split: InMemorySplit) -> None:
    net = make_classifier(Masked(pictures.net, *MASKS["no gradient at all"]))
    report = evaluate_robustness(
        net, split, BUDGETS[0], images=60, fast=True, others=[PGD(BUDGETS[0]), Noise(BUDGETS[0])]
    )
    assert report.verdict == "masked" and list(report.attacks) == ["square", "noise"]


def test_evaluate_robustness_few_correct_images_are_inconclusive(pictures, split: InMemorySplit) -> None:
    report = evaluate_robustness(make_classifier(pictures.net), split, BUDGETS[0], images=30, fast=True)
    assert report.verdict == "inconclusive"


def test_auto_attack_reported_accuracies_equal_its_result(pictures) -> None:
    net, reports = make_classifier(pictures.net), []
    images, labels = pictures.images[:40], pictures.labels[:40]
    result = auto_attack(
        net, images, labels, BUDGETS[0], attacks=("apgd-ce", "square"), tell=lambda *report: reports.append(report)
    )
    assert [name for name, _ in reports] == ["clean", "apgd-ce", "square"]
    accuracies = [accuracy for _, accuracy in reports]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[-1] == result.right.double().mean().item()
    broken = [result.broken[name].double().mean().item() for name in ("apgd-ce", "square")]
    assert broken == pytest.approx([accuracies[0] - accuracies[1], accuracies[1] - accuracies[2]])
    assert result.doubt is None
    assert "by 0.3%" in AutoAttackResult(result.right, broken={"square": torch.arange(1000) < 3}).doubt


def test_auto_attack_image_that_the_fused_copy_misclassifies_is_broken(
    pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: an image counted as robust that was never attacked, because the attacks stop at such an image."""

    class Fused(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return pictures.net(images).roll(1, dims=1)

    monkeypatch.setattr(autoattack, "fuse_conv_bn", lambda *_: Fused())
    result = auto_attack(
        make_classifier(pictures.net), pictures.images[:40], pictures.labels[:40], BUDGETS[0], attacks=("apgd-ce",)
    )
    assert result.accuracy["clean"] > 0.9 and not result.right.any()


@pytest.mark.parametrize(
    ("height", "width"), [(4, 4), (7, 9), (12, 12), (13, 13), (14, 14), (28, 28), (32, 24), (32, 36)]
)
def test_supports_square_agrees_with_pyautoattack(height: int, width: int) -> None:
    """pyautoattack itself raises an error where its tiles do not fit."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(height * width, 4))
    square = SquareAttack(net, norm="L2", eps=0.01, n_queries=2, seed=0, device="cpu")
    images = torch.rand(2, 1, height, width)
    try:
        square.perturb(images, net(images).argmax(dim=1))
        runs = True
    except (RuntimeError, ZeroDivisionError):
        runs = False
    assert supports_square(Budget("l2", 0.01), height, width) == runs and supports_square(
        Budget("linf", 0.01), height, width
    )


@pytest.mark.parametrize("norm", ["l2:0.5", "linf:0.05"])
def test_auto_attack_channels_last_classifier_does_not_raise(norm: str) -> None:
    """Catches: the `view` of gradients as rows in pyautoattack, which fails in L2 with channels last."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, 5))
    color_classifier = Classifier(network, ClassifierSpec(3, (16, 16), 5), name="color", architecture="color").eval()
    color_classifier = color_classifier.to(memory_format=torch.channels_last)
    images = torch.rand(12, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    labels = color_classifier(images).argmax(dim=1)
    result = auto_attack(color_classifier, images, labels, Budget.parse(norm), attacks=("apgd-ce", "apgd-t", "fab-t"))
    assert result.accuracy["clean"] == 1.0 and result.accuracy["fab-t"] < 1.0
