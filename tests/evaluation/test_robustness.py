"""Classifiers that only hide their gradients are caught, and an honest one passes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

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
from gap.evaluation.robustness import _run_square, check_autoattack_warnings, check_black_box, evaluate_robustness
from gap.threat import Budget

BUDGETS = [Budget("linf", 0.045), Budget("l2", 0.45)]


class Masked(nn.Module):
    def __init__(self, net: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.net(self.before(images)))


def same(values: Tensor) -> Tensor:
    return values


def with_gradient(images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The images, whose gradient is changed on its way back."""
    images = images.clone()
    if images.requires_grad:
        images.register_hook(change)
    return images


CORNER = torch.arange(144).view(12, 12) == 0
MASKS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "gradients killed by rounding": (lambda images: (images * 16).round() / 16, same),
    "a saturated softmax": (same, lambda logits: (logits * 1000).softmax(dim=1)),
    "noise": (lambda images: images + 0.1 * torch.randn_like(images), same),
    "gradients of the wrong sign": (same, lambda logits: 2 * logits.detach() - logits),
    "gradients of one pixel": (lambda images: torch.where(CORNER, images, images.detach()), same),
    "gradients at random": (lambda images: with_gradient(images, torch.randn_like), same),
    "gradients of other pixels": (lambda images: with_gradient(images, lambda given: given.flip(2, 3)), same),
    "no gradient at all": (lambda images: images.detach(), same),
}


REPEATS, FLAT = "the same logits each time", "losses are not flat"
NOTHING_LEFT, BLACK_BOX = "accuracy falls to nothing as epsilon grows", "black-box attacks do not beat white-box ones"
BEATEN, FLAGS = "no other attack beats AutoAttack", "AutoAttack raises no other flag"
TRUE = "gradients tell how the margin changes"


def failed(found: dict[str, Any]) -> set[str]:
    return {check.name for check in found.checks if not check.passed}


def classifier(net: nn.Module) -> Classifier:
    return Classifier(net, ClassifierSpec(1, (12, 12), 4), name="net", architecture="net").eval()


@pytest.fixture
def split(pictures) -> InMemorySplit:
    return InMemorySplit((pictures.images * 255).round().to(torch.uint8), pictures.labels)


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_an_honest_classifier_holds(pictures, split: InMemorySplit, budget: Budget) -> None:
    found = evaluate_robustness(
        classifier(pictures.net), split, budget, images=100, fast=True, surrogate=classifier(pictures.net)
    )
    assert found.verdict == "holds", found.checks
    assert found.clean_accuracy > 0.9
    assert 0.3 < found.robust_accuracy < found.clean_accuracy - 0.05
    assert found.interval[0] < found.robust_accuracy < found.interval[1]
    assert list(found.attacks) == ["apgd-ce", "apgd-t", "pgd", "pgd on net"]


# The signs that each mask gives, and no others.
SIGNS = {
    "gradients killed by rounding": {FLAT, NOTHING_LEFT, FLAGS},
    "a saturated softmax": {FLAT, NOTHING_LEFT, FLAGS},
    "noise": {REPEATS, BEATEN, FLAGS},
    "gradients of the wrong sign": {NOTHING_LEFT, TRUE},
    "gradients at random": {TRUE},
    "gradients of other pixels": {TRUE},
}


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("mask", SIGNS)
def test_a_masked_classifier_is_caught_by_its_signs(pictures, split: InMemorySplit, mask: str, budget: Budget) -> None:
    found = evaluate_robustness(classifier(Masked(pictures.net, *MASKS[mask])), split, budget, images=60, fast=True)
    signs = failed(found) & SIGNS[mask] if mask == "noise" else failed(found)  # noise may drown any other, too
    assert found.verdict == "masked" and signs == SIGNS[mask]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_gradients_that_pass_by_rounding_to_8_bits_are_true(pictures, budget: Budget) -> None:
    """Within less than one level the margin stands still or jumps."""

    def levels(images: Tensor) -> Tensor:
        return images + ((images * 255).round() / 255 - images).detach()

    batch = EvaluationBatch(classifier(Masked(pictures.net, levels, same)), pictures.images, pictures.labels, budget)
    honest = replace(batch, classifier=classifier(pictures.net))
    for each in (batch, honest):
        with frozen(each.classifier):
            assert check_gradient_fidelity(each).passed, check_gradient_fidelity(each).details


def test_a_fast_judgment_searches_without_gradients_too(pictures, split: InMemorySplit) -> None:
    """Where gradients are of one pixel, only a search that does not follow them finds the others."""
    narrow = classifier(Masked(pictures.net, *MASKS["gradients of one pixel"]))
    found = evaluate_robustness(narrow, split, Budget("linf", 0.1), images=60, fast=True)
    assert BLACK_BOX in failed(found) and found.autoattack == ["apgd-ce", "apgd-t"]
    assert found.attacks["apgd-t"] > 0.9


def test_what_a_long_pgd_breaks_too_did_not_fall_to_search_alone(pictures) -> None:
    """Nor does what it breaks get searched."""
    batch = EvaluationBatch(classifier(pictures.net), pictures.images[:100], pictures.labels[:100], BUDGETS[0])
    fell, left = torch.arange(100) < 10, torch.arange(100) >= 10
    found = AutoAttackResult(~fell, broken={"square": fell})
    assert not check_black_box(found, torch.ones(100, dtype=torch.bool), batch, 0).passed
    assert check_black_box(found, left, batch, 0).passed
    assert _run_square(torch.zeros(100, dtype=torch.bool), batch, 0) == 0


@pytest.mark.parametrize("surely", [1.0, 20.0])
def test_two_classes_are_judged_alike_however_sure(surely: float) -> None:
    """The same decisions: cross-entropy sees no gradient where the logits are twenty times as large."""
    torch.manual_seed(0)
    images = (0.5 + 0.1 * torch.randn(80, 1, 6, 6)).clamp(0, 1)
    labels = (images.mean(dim=(1, 2, 3)) > 0.5).long()
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    net[1].weight.data = surely * torch.tensor([[-10.0], [10.0]]).expand(2, 36).contiguous()
    net[1].bias.data = surely * torch.tensor([180.0, -180.0])
    two = Classifier(net, ClassifierSpec(1, (6, 6), 2), name="two", architecture="two").eval()
    split = InMemorySplit((images * 255).round().to(torch.uint8), labels)
    found = evaluate_robustness(two, split, Budget("linf", 0.01), fast=True, surrogate=two)
    assert found.autoattack == ["apgd-ce", "fab-t"] and "four classes" in found.not_evaluated[0]
    assert found.verdict == "holds", found.checks
    assert found.robust_accuracy == pytest.approx(0.5, abs=0.15)


def test_where_search_is_left_out_the_judgment_says_so(pictures, split: InMemorySplit) -> None:
    """12 x 12 pixels are a size that Square's tiles do not cover in L2."""
    net = classifier(pictures.net)
    unchecked = [evaluate_robustness(net, split, budget, images=20, fast=True).not_evaluated for budget in BUDGETS]
    assert [len(each) for each in unchecked] == [2, 3] and "Square" in unchecked[1][1]
    assert all("surrogate" in each[0] and "adaptive" in each[-1] for each in unchecked)
    told = evaluate_robustness(
        net, split, BUDGETS[0], images=20, fast=True, surrogate=net, adaptive=[Noise(BUDGETS[0])]
    )
    assert told.not_evaluated == []
    told = evaluate_robustness(net, split, BUDGETS[0], images=20, fast=True, surrogate=net, others=[Noise(BUDGETS[0])])
    assert len(told.not_evaluated) == 1 and "adaptive" in told.not_evaluated[0]


def test_the_published_judgment_is_all_of_autoattack(pictures, split: InMemorySplit) -> None:
    found = evaluate_robustness(classifier(pictures.net), split, BUDGETS[0], images=10)
    assert found.autoattack == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert [name for name in found.attacks if name != "pgd"] == found.autoattack


def test_what_autoattack_doubts_is_told_by_the_check_that_weighs_it(pictures) -> None:
    batch = EvaluationBatch(classifier(pictures.net), pictures.images[:100], pictures.labels[:100], BUDGETS[0])
    fell = torch.arange(100) < 2
    found = AutoAttackResult(~fell, broken={"square": fell}, flags=["zero gradients"])
    weighed = check_black_box(found, torch.ones(100, dtype=torch.bool), batch, 0)
    assert weighed.passed and "AutoAttack's own flag: square lowers the accuracy by 2.0%" in weighed.details
    assert check_autoattack_warnings(found) == CheckResult(FLAGS, False, "zero gradients")
    assert check_autoattack_warnings(AutoAttackResult(~fell)).passed


class Tiring(nn.Module):
    """Passes gradients for so many looks at its images, and none from then on."""

    def __init__(self, net: nn.Module, looks: int) -> None:
        super().__init__()
        self.net, self.looks = net, looks

    def forward(self, images: Tensor) -> Tensor:
        self.looks -= 1
        logits = self.net(images)
        return logits if self.looks > 0 else logits.detach() + 0 * logits


def test_steps_that_do_not_help_are_a_sign(pictures) -> None:
    for looks, passed in ((8, False), (10**6, True)):
        batch = EvaluationBatch(
            classifier(Tiring(pictures.net, looks)), pictures.images, pictures.labels, Budget("linf", 0.1)
        )
        with frozen(batch.classifier):
            assert check_more_steps(batch).passed == passed


def test_one_image_alone_is_no_sign() -> None:
    assert [exceeds_tolerance(count, 20) for count in (0, 1, 2)] == [False, False, True]
    assert [exceeds_tolerance(count, 1000) for count in (20, 21)] == [False, True]


def test_one_survivor_of_few_is_no_sign_either() -> None:
    """A network that always says one class keeps the one image of that class, whatever the budget."""

    class Stubborn(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(1, 2, 3))[:, None] * 0 + torch.tensor([1.0, 0.0])

    stubborn = Classifier(Stubborn(), ClassifierSpec(1, (4, 4), 2), name="stubborn", architecture="stubborn").eval()
    for survivors, passed in ((1, True), (2, False)):
        batch = EvaluationBatch(stubborn, torch.rand(10, 1, 4, 4), (torch.arange(10) >= survivors).long(), BUDGETS[0])
        assert check_epsilon_curve(batch).passed == passed


def test_the_bench_takes_so_many_at_a_time(pictures) -> None:
    """What a batch holds changes nothing but the memory it takes."""
    seen: list[int] = []

    class Counting(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return pictures.net(images)

    batch = EvaluationBatch(classifier(Counting()), pictures.images, pictures.labels, BUDGETS[0], batch_size=30)
    checks = run_masking_checks(batch)
    assert max(seen) == 30 and all(check.passed for check in checks), checks


def test_a_transfer_does_not_stop_where_the_surrogate_is_fooled(pictures) -> None:
    """A network with features of its own falls to what goes past the surrogate's boundary, hardly to what stops."""
    torch.manual_seed(1)
    hidden, output = nn.Linear(144, 256), nn.Linear(256, 4)
    hidden.weight.data = torch.randn(256, 144) / 2
    hidden.bias.data = -hidden.weight.data.sum(dim=1) / 2
    features = torch.tanh(hidden(pictures.images.flatten(1))).detach()
    ridge = features.T @ features + 5 * torch.eye(256)
    output.weight.data = torch.linalg.solve(ridge, features.T @ (8 * torch.eye(4)[pictures.labels] - 2)).T.contiguous()
    output.bias.data = torch.zeros(4)
    other = classifier(nn.Sequential(nn.Flatten(), hidden, nn.Tanh(), output))
    budget, surrogate = Budget("linf", 0.1), classifier(pictures.net)
    batch = EvaluationBatch(other, pictures.images, pictures.labels, budget)
    stopping = other(PGD(budget)(surrogate, pictures.images, pictures.labels)).argmax(dim=1) == pictures.labels
    assert batch.num_correct(SurrogatePGD(surrogate, budget)) < stopping.sum() - 0.3 * len(stopping)


def test_transfer_tells_too(pictures, split: InMemorySplit) -> None:
    """The image moved only in the direction that keeps no gradient: what the surrogate gives away breaks it."""
    rounding = classifier(Masked(pictures.net, *MASKS["gradients killed by rounding"]))
    found = evaluate_robustness(
        rounding, split, Budget("linf", 0.1), images=60, fast=True, surrogate=classifier(pictures.net)
    )
    assert "transfer does not beat white-box attacks" in failed(found)


def test_other_attacks_count(pictures, split: InMemorySplit) -> None:
    """An attack that breaks what AutoAttack cannot is a sign of masking; one that breaks no more is not."""
    net, budget = classifier(pictures.net), Budget("linf", 0.045)
    weak, strong = Noise(budget), PGD(budget, steps=100, restarts=3, name="strong")
    honest = evaluate_robustness(net, split, budget, images=100, fast=True, others=[weak, strong])
    assert honest.verdict == "holds"
    assert honest.attacks["noise"] > honest.attacks["strong"] >= honest.robust_accuracy
    assert honest.attacks["pgd"] >= honest.robust_accuracy
    rounding = classifier(Masked(pictures.net, *MASKS["gradients killed by rounding"]))
    masked = evaluate_robustness(rounding, split, budget, images=100, fast=True, others=[SurrogatePGD(net, budget)])
    assert BEATEN in failed(masked)
    assert masked.robust_accuracy <= masked.attacks["pgd on net"] < masked.attacks["apgd-t"]


def test_a_name_of_autoattacks_own_hides_nothing(pictures, split: InMemorySplit) -> None:
    net = classifier(pictures.net)
    others = [Noise(BUDGETS[0], name=name) for name in ("clean", "apgd-t", "square", "pgd")]
    found = evaluate_robustness(net, split, BUDGETS[0], images=100, fast=True, others=others)
    plain = evaluate_robustness(net, split, BUDGETS[0], images=100, fast=True)
    assert found.verdict == "holds" and found.clean_accuracy == plain.clean_accuracy
    assert list(found.attacks) == [
        "apgd-ce",
        "apgd-t",
        "pgd",
        "clean (given)",
        "apgd-t (given)",
        "square",
        "pgd (given)",
    ]
    assert found.attacks["apgd-t"] == plain.attacks["apgd-t"]


def test_evaluate_robustness_of_attacks_of_one_name_keeps_each(pictures, split: InMemorySplit) -> None:
    """Catches: a second attack whose accuracy takes the place of the first one's."""
    others = [Noise(Budget(BUDGETS[0].norm, epsilon), name="mine") for epsilon in (0.001, 0.3, 0.002)]
    found = evaluate_robustness(classifier(pictures.net), split, BUDGETS[0], images=60, fast=True, others=others)
    assert list(found.attacks)[-3:] == ["mine", "mine (2)", "mine (3)"]
    first, second, third = list(found.attacks.values())[-3:]
    assert first == third > second >= found.robust_accuracy


def test_without_gradient_the_judgment_stands(pictures, split: InMemorySplit) -> None:
    net = classifier(Masked(pictures.net, *MASKS["no gradient at all"]))
    found = evaluate_robustness(
        net, split, BUDGETS[0], images=60, fast=True, others=[PGD(BUDGETS[0]), Noise(BUDGETS[0])]
    )
    assert found.verdict == "masked" and list(found.attacks) == ["square", "noise"]


def test_too_few_right_images_to_tell(pictures, split: InMemorySplit) -> None:
    found = evaluate_robustness(classifier(pictures.net), split, BUDGETS[0], images=30, fast=True)
    assert found.verdict == "inconclusive"


def test_autoattack_agrees_with_what_it_left(pictures) -> None:
    net, told = classifier(pictures.net), []
    images, labels = pictures.images[:40], pictures.labels[:40]
    found = auto_attack(
        net, images, labels, BUDGETS[0], attacks=("apgd-ce", "square"), tell=lambda *each: told.append(each)
    )
    assert [name for name, _ in told] == ["clean", "apgd-ce", "square"]
    shares = [share for _, share in told]
    assert shares == sorted(shares, reverse=True) and shares[-1] == found.right.double().mean().item()
    broken = [found.broken[name].double().mean().item() for name in ("apgd-ce", "square")]
    assert broken == pytest.approx([shares[0] - shares[1], shares[1] - shares[2]])
    assert found.doubt is None
    assert "by 0.3%" in AutoAttackResult(found.right, broken={"square": torch.arange(1000) < 3}).doubt


def test_what_the_fused_copy_misreads_is_broken(pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacks stop at such an image, so that nobody knows whether the classifier would withstand them."""

    class Fused(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return pictures.net(images).roll(1, dims=1)

    monkeypatch.setattr(autoattack, "fuse_conv_bn", lambda *_: Fused())
    found = auto_attack(
        classifier(pictures.net), pictures.images[:40], pictures.labels[:40], BUDGETS[0], attacks=("apgd-ce",)
    )
    assert found.accuracy["clean"] > 0.9 and not found.right.any()


@pytest.mark.parametrize(
    ("height", "width"), [(4, 4), (7, 9), (12, 12), (13, 13), (14, 14), (28, 28), (32, 24), (32, 36)]
)
def test_square_is_known_to_run_or_not(height: int, width: int) -> None:
    """Against pyautoattack itself, which ends in an error where its tiles do not fit."""
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
def test_color_classifiers_in_channels_last_are_judged(norm: str) -> None:
    """As every verb lays them out: in L2 pyautoattack views gradients as rows."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, 5))
    classifier = Classifier(network, ClassifierSpec(3, (16, 16), 5), name="color", architecture="color").eval()
    classifier = classifier.to(memory_format=torch.channels_last)
    images = torch.rand(12, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    labels = classifier(images).argmax(dim=1)
    found = auto_attack(classifier, images, labels, Budget.parse(norm), attacks=("apgd-ce", "apgd-t", "fab-t"))
    assert found.accuracy["clean"] == 1.0 and found.accuracy["fab-t"] < 1.0
