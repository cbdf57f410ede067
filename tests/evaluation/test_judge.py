"""Classifiers that only hide their gradients are caught, and an honest one passes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gap.attacks.controls import Noise
from gap.attacks.gradient import PGD
from gap.budget import Budget
from gap.classifier import Classifier, Facts
from gap.data.splits import MemorySplit
from gap.evaluation.autoattack import auto_attack
from gap.evaluation.judge import FromTwin, judge

BUDGETS = [Budget("linf", 0.045), Budget("l2", 0.45)]


class Masked(nn.Module):
    def __init__(self, net: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.net(self.before(images)))


def same(values: Tensor) -> Tensor:
    return values


MASKS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "gradients killed by rounding": (lambda images: (images * 16).round() / 16, same),
    "a saturated softmax": (same, lambda logits: (logits * 1000).softmax(dim=1)),
    "noise": (lambda images: images + 0.1 * torch.randn_like(images), same),
    "no gradient at all": (lambda images: images.detach(), same),
}


def classifier(net: nn.Module) -> Classifier:
    return Classifier(net, Facts(1, (12, 12), 4), name="net", architecture="net").eval()


@pytest.fixture
def split(pictures) -> MemorySplit:
    return MemorySplit((pictures.images * 255).round().to(torch.uint8), pictures.labels)


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_an_honest_classifier_holds(pictures, split: MemorySplit, budget: Budget) -> None:
    found = judge(classifier(pictures.net), split, budget, images=100, fast=True, twin=classifier(pictures.net))
    assert found["verdict"] == "holds", found["gate"]
    assert found["clean_accuracy"] > 0.9
    assert 0.3 < found["robust_accuracy"] < found["clean_accuracy"] - 0.05
    assert found["interval"][0] < found["robust_accuracy"] < found["interval"][1]
    assert list(found["attacks"]) == ["apgd-ce", "apgd-t", "pgd", "pgd on net"]


@pytest.mark.parametrize("mask", MASKS)
def test_a_masked_classifier_is_caught(pictures, split: MemorySplit, mask: str) -> None:
    before, after = MASKS[mask]
    found = judge(classifier(Masked(pictures.net, before, after)), split, BUDGETS[0], images=60, fast=True)
    assert found["verdict"] == "masked", found["gate"]


def test_transfer_tells_too(pictures, split: MemorySplit) -> None:
    """The image moved only in the direction that keeps no gradient: what the twin gives away breaks it."""
    rounding = classifier(Masked(pictures.net, *MASKS["gradients killed by rounding"]))
    found = judge(rounding, split, Budget("linf", 0.1), images=60, fast=True, twin=classifier(pictures.net))
    failed = {check["check"] for check in found["gate"] if not check["passed"]}
    assert "transfer does not beat white-box attacks" in failed


def test_other_attacks_count(pictures, split: MemorySplit) -> None:
    """An attack that breaks what AutoAttack cannot is a sign of masking; one that breaks no more is not."""
    net, budget = classifier(pictures.net), Budget("linf", 0.045)
    weak, strong = Noise(budget), PGD(budget, steps=100, restarts=3, name="strong")
    honest = judge(net, split, budget, images=100, fast=True, others=[weak, strong])
    assert honest["verdict"] == "holds"
    assert honest["attacks"]["noise"] > honest["attacks"]["strong"] >= honest["robust_accuracy"]
    assert honest["attacks"]["pgd"] >= honest["robust_accuracy"]
    rounding = classifier(Masked(pictures.net, *MASKS["gradients killed by rounding"]))
    masked = judge(rounding, split, budget, images=100, fast=True, others=[FromTwin(net, strong)])
    failed = {check["check"] for check in masked["gate"] if not check["passed"]}
    assert "no other attack beats AutoAttack" in failed
    assert masked["robust_accuracy"] <= masked["attacks"]["strong on net"] < masked["attacks"]["apgd-t"]


def test_a_name_of_autoattacks_own_hides_nothing(pictures, split: MemorySplit) -> None:
    net = classifier(pictures.net)
    others = [Noise(BUDGETS[0], name=name) for name in ("clean", "apgd-t", "square")]
    found = judge(net, split, BUDGETS[0], images=100, fast=True, others=others)
    plain = judge(net, split, BUDGETS[0], images=100, fast=True)
    assert found["verdict"] == "holds" and found["clean_accuracy"] == plain["clean_accuracy"]
    assert list(found["attacks"]) == ["apgd-ce", "apgd-t", "pgd", "clean (given)", "apgd-t (given)", "square"]
    assert found["attacks"]["apgd-t"] == plain["attacks"]["apgd-t"]


def test_without_gradient_the_judgement_stands(pictures, split: MemorySplit) -> None:
    net = classifier(Masked(pictures.net, *MASKS["no gradient at all"]))
    found = judge(net, split, BUDGETS[0], images=60, fast=True, others=[PGD(BUDGETS[0]), Noise(BUDGETS[0])])
    assert found["verdict"] == "masked" and list(found["attacks"]) == ["square", "noise"]


def test_too_few_right_images_to_tell(pictures, split: MemorySplit) -> None:
    found = judge(classifier(pictures.net), split, BUDGETS[0], images=30, fast=True)
    assert found["verdict"] == "inconclusive"


def test_autoattack_agrees_with_what_it_left(pictures) -> None:
    net, told = classifier(pictures.net), []
    images, labels = pictures.images[:40], pictures.labels[:40]
    found = auto_attack(
        net, images, labels, BUDGETS[0], attacks=("apgd-ce", "square"), tell=lambda *each: told.append(each)
    )
    assert [name for name, _ in told] == ["clean", "apgd-ce", "square"]
    shares = [share for _, share in told]
    assert shares == sorted(shares, reverse=True) and shares[-1] == found.right.double().mean().item()
    assert found.newly_broken("square") == pytest.approx(shares[1] - shares[2])


@pytest.mark.parametrize("norm", ["l2:0.5", "linf:0.05"])
def test_colour_classifiers_in_channels_last_are_judged(norm: str) -> None:
    """As every verb lays them out: in L2 pyautoattack views gradients as rows."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, 5))
    classifier = Classifier(network, Facts(3, (16, 16), 5), name="colour", architecture="colour").eval()
    classifier = classifier.to(memory_format=torch.channels_last)
    images = torch.rand(12, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    labels = classifier(images).argmax(dim=1)
    found = auto_attack(classifier, images, labels, Budget.parse(norm), attacks=("apgd-ce", "apgd-t", "fab-t"))
    assert found.accuracy["clean"] == 1.0 and found.accuracy["fab-t"] < 1.0
