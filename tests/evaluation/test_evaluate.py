import math
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from gap.attacks.criteria import find_criterion
from gap.classifiers.classifier import Classifier, ClassifierSpec
from gap.core.errors import GapError
from gap.data.dataset import InMemorySplit
from gap.evaluation.evaluate import evaluate_attack
from gap.evaluation.interval import wilson
from gap.threat import Budget

LEVELS = torch.tensor([10, 10, 100, 100, 100, 200, 200])
LABELS = torch.tensor([0, 1, 1, 1, 2, 2, 0])


class Bands(nn.Module):
    """Class 0 for dark images, 2 for bright ones, 1 between: by the mean, with edges at levels 50 and 150."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean(dim=(1, 2, 3)) * 255
        self.inputs = images
        return torch.stack([50 - mean, 50 - (mean - 100).abs(), mean - 150], dim=1)


@dataclass
class Stub:
    """Adds a fixed number of levels to each image, whatever the classifier."""

    levels: Tensor
    budget: Budget | None = None
    name: str = "stub"

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        self.classifier, self.labels, self.images = classifier, labels, images
        self.training = classifier.training
        return images + self.levels[: len(images)].view(-1, 1, 1, 1) / 255


def classifier(name: str = "bands", size: tuple[int, int] = (4, 4)) -> Classifier:
    return Classifier(Bands(), ClassifierSpec(1, size, 3), name=name, architecture="bands")


def split(levels: Tensor = LEVELS, labels: Tensor = LABELS, size: int = 4) -> InMemorySplit:
    return InMemorySplit(levels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, size, size).contiguous(), labels)


# predicted, clean:       0  0  1  1  1  2  2      labels 0 1 1 1 2 2 0
ADDED = torch.tensor([60, 60, 0, 70, 70, 0, 0])
# predicted, adversarial: 1  1  1  2  2  2  2


def test_evaluate_attack_accuracies_and_rates_are_the_counted_ones() -> None:
    row = evaluate_attack(Stub(ADDED), classifier(), split(), data="levels").row
    expected = {
        "clean_accuracy": (4, 7),  # 0, 2, 3, 5
        "accuracy_under_attack": (4, 7),  # 1, 2, 4, 5
        "fooling_rate": (4, 7),  # 0, 1, 3, 4
        "attack_success_rate": (2, 4),  # 0, 3 of 0, 2, 3, 5
    }
    for name, (hits, trials) in expected.items():
        assert row[name] == hits / trials
        assert row[f"{name}_interval"] == list(wilson(hits, trials))
    assert "target_success_rate" not in row
    names = {key: row[key] for key in ("attack", "classifier", "source", "data", "budget", "images")}
    assert names == {
        "attack": "stub",
        "classifier": "bands",
        "source": "bands",
        "data": "levels",
        "budget": None,
        "images": 7,
    }
    assert row["seconds_per_image"] > 0


def test_evaluate_attack_norms_are_of_quantized_images() -> None:
    row = evaluate_attack(Stub(ADDED), classifier(), split()).row
    assert row["linf_mean"] == pytest.approx(260 / 7 / 255)
    assert row["linf_max"] == pytest.approx(70 / 255)
    assert row["l2_mean"] == pytest.approx(4 * 260 / 7 / 255)  # 16 pixels alike: 4 times one of them
    assert row["l2_max"] == pytest.approx(4 * 70 / 255)
    part = evaluate_attack(Stub(torch.full((7,), 3.7), Budget.parse("linf:4/255")), classifier(), split()).row
    assert part["linf_max"] == pytest.approx(3 / 255)
    assert part["budget"] == "linf:4/255"


def test_evaluate_attack_batch_size_does_not_change_the_results() -> None:
    even = torch.full((7,), 60)
    whole, parts = (evaluate_attack(Stub(even), classifier(), split(), batch_size=size).row for size in (250, 3))
    del whole["seconds_per_image"], parts["seconds_per_image"]
    for name, value in whole.items():
        assert parts[name] == (pytest.approx(value) if isinstance(value, float) else value)


def test_evaluate_attack_target_success_excludes_images_labeled_as_the_target() -> None:
    """Two of seven images are labeled 2 already; of the other five, two are classified as 2 under the attack."""
    row = evaluate_attack(Stub(ADDED), classifier(), split(), criterion=find_criterion("target:2", 3)).row
    assert row["target_success_rate"] == 2 / 5
    assert row["target_success_rate_interval"] == list(wilson(2, 5))
    untargeted = evaluate_attack(Stub(ADDED), classifier(), split(), criterion=find_criterion("untargeted", 3)).row
    assert "target_success_rate" not in untargeted


def test_evaluate_attack_least_likely_class_is_that_of_the_clean_image() -> None:
    """The least likely class of level 10 is 2, of level 200 it is 0; one of two images not labeled so reaches it."""
    levels, labels = torch.tensor([10, 10, 200, 200]), torch.tensor([0, 2, 2, 0])
    stub = Stub(torch.tensor([190, 190, -100, -190]))
    row = evaluate_attack(stub, classifier(), split(levels, labels), criterion=find_criterion("least-likely", 3)).row
    assert row["target_success_rate"] == 1 / 2


def test_evaluate_attack_ssim_equals_that_of_wang_et_al() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(60, 190, (2, 1, 24, 20), generator=generator)
    change = torch.randint(-40, 40, clean.shape, generator=generator)

    class Change(Stub):
        def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            return images + change / 255

    data = InMemorySplit(clean.byte(), torch.zeros(2, dtype=torch.int64))
    row = evaluate_attack(Change(ADDED), classifier(size=(24, 20)), data).row
    expected = np.mean([ssim(a, a + b) for a, b in zip(clean[:, 0].numpy(), change[:, 0].numpy(), strict=True)])
    assert row["ssim"] == pytest.approx(expected, abs=1e-4)
    assert 0.3 < row["ssim"] < 0.95


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Wang et al. (2004), with their Gaussian window of 11 pixels and sigma 1.5; borders are mirrored."""

    def mean(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, 1.5, truncate=3.5, mode="mirror")

    x, y = first / 255, second / 255
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    score = (2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4))
    return float(score.mean())


def test_evaluate_attack_ssim_of_unchanged_images_is_one_and_of_small_images_none() -> None:
    no_attack = Stub(torch.zeros(7))
    assert evaluate_attack(no_attack, classifier(size=(12, 12)), split(size=12)).row["ssim"] == pytest.approx(1)
    assert evaluate_attack(no_attack, classifier(), split()).row["ssim"] is None


def test_evaluate_attack_warm_up_is_not_timed_and_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """The patched clock advances by a second at each call of the attack, and by ten at the first."""
    ticks: list[int] = []

    class Slow(Stub):
        def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            ticks.append(1 if ticks else 10)
            random_numbers.append(torch.rand(()).item())
            return super().__call__(classifier, images, labels)

    random_numbers: list[float] = []
    monkeypatch.setattr("gap.evaluation.evaluate.time.perf_counter", lambda: float(sum(ticks)))
    row = evaluate_attack(Slow(torch.zeros(7)), classifier(), split(), batch_size=4, seed=3).row
    assert len(ticks) == 3 and row["seconds_per_image"] == 2 / 7
    torch.manual_seed(3)
    assert random_numbers[1:] == [torch.rand(()).item(), torch.rand(()).item()]


def test_evaluate_attack_transfer_attacks_the_source_and_evaluates_the_classifier() -> None:
    stub, source, target = Stub(ADDED), classifier("source"), classifier("judged")
    row = evaluate_attack(stub, target, split(), source=source).row
    assert stub.classifier is source
    assert not stub.training
    assert (row["classifier"], row["source"]) == ("judged", "source")
    assert torch.equal((target.network.inputs * 255).round()[:, 0, 0, 0], (LEVELS + ADDED).float())
    assert not hasattr(source.network, "inputs")


def test_evaluate_attack_restores_the_mode_of_the_classifier() -> None:
    target = classifier().train()
    evaluate_attack(Stub(ADDED), target, split())
    assert target.training and target.network.scale.requires_grad


@pytest.mark.parametrize(
    ("added", "message"),
    [(9.0, "stub left its budget linf:8/255"), (float("nan"), "stub made pixels that are not numbers")],
)
def test_evaluate_attack_exceeded_budget_or_nan_pixels_raise(added: float, message: str) -> None:
    with pytest.raises(GapError, match=message):
        evaluate_attack(Stub(torch.full((7,), added), Budget.parse("linf:8/255")), classifier(), split())


def test_evaluate_attack_pixels_out_of_range_raise() -> None:
    with pytest.raises(GapError, match="or the pixels' range"):
        evaluate_attack(Stub(torch.full((7,), 100.0), Budget.parse("linf:0.5")), classifier(), split())


def test_evaluate_attack_empty_split_raises() -> None:
    with pytest.raises(GapError, match="no images to evaluate on in nothing"):
        evaluate_attack(Stub(ADDED), classifier(), split(LEVELS[:0], LABELS[:0]), data="nothing")


def test_evaluate_attack_fewer_images_are_a_fixed_random_sample() -> None:
    """Catches: a sample of every n-th image, which has one class alone where classes alternate."""
    labels = torch.arange(600) % 3
    stub, alternating = Stub(torch.zeros(600)), split(labels * 80, labels)
    row = evaluate_attack(stub, classifier(), alternating, images=200, batch_size=600).row
    assert row["images"] == 200
    assert (stub.labels.bincount() > 45).all()
    first = stub.labels
    evaluate_attack(stub, classifier(), alternating, images=200, batch_size=600, seed=5)
    assert torch.equal(stub.labels, first)
    assert evaluate_attack(Stub(torch.zeros(7)), classifier(), split(), images=100).row["images"] == 7


def test_evaluate_attack_example_has_captions_and_adversarial_images() -> None:
    example = evaluate_attack(Stub(ADDED), classifier(), split(), batch_size=4).example
    assert example.captions == ["0 → 1", "0 → 1", "1 → 1", "1 → 2"]
    assert torch.equal((example.adversarial - example.clean).mul(255).round()[:, 0, 0, 0], ADDED[:4].float())


def test_evaluate_attack_rate_without_correct_images_is_none() -> None:
    row = evaluate_attack(Stub(torch.zeros(1)), classifier(), split(torch.tensor([10]), torch.tensor([2]))).row
    assert row["attack_success_rate"] is None
    assert row["attack_success_rate_interval"] == [0.0, 1.0]
    assert math.isclose(row["l2_max"], 0)


def test_evaluate_import_loads_no_heavy_library() -> None:
    code = "import sys, gap; gap.evaluate; print(*{'torchvision', 'torch._dynamo', 'scipy', 'timm'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert process.stdout.strip() == ""
