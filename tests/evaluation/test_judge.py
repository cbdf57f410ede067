"""`gap.judge`: its warnings, and the robustness evaluations that are kept in the card of a classifier."""

import warnings

import pytest
import torch
from judging import shorten_judging
from torch import Tensor, nn

import gap
from gap.core.errors import GapWarning
from gap.evaluation.judge import noted

BUDGET = "linf:0.1"


class Guess(nn.Module):
    """Three classes with nearly constant logits."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.constant_(self.head.bias[:1], 1.0)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))


def images_and_labels() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return images, torch.arange(40) % 3


def test_judge_classifier_and_surrogate_at_chance_level_warns_once_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches: a report on a network that guesses, without a warning in Python."""
    shorten_judging(monkeypatch)
    classifier, surrogate = (gap.Classifier(Guess(), input_size=4, channels=1) for _ in range(2))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        gap.judge(classifier, images_and_labels(), BUDGET, surrogate=surrogate, images=8, fast=True, progress=False)
    chance = [warning for warning in warned if "no better than chance" in str(warning.message)]
    assert len(chance) == 2 and all(warning.category is GapWarning for warning in chance)


@pytest.mark.filterwarnings("ignore::gap.core.errors.GapWarning")
@pytest.mark.parametrize("progress", [True, False])
def test_judge_progress_prints_the_accuracy_under_each_attack_on_standard_error(
    *, progress: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: AutoAttack in Python without a sign of life, or lines despite `progress=False`."""
    shorten_judging(monkeypatch)
    told: list[tuple[str, float]] = []
    report = gap.judge(
        gap.Classifier(Guess(), input_size=4, channels=1),
        images_and_labels(),
        BUDGET,
        images=8,
        fast=True,
        progress=progress,
        callback=lambda name, accuracy: told.append((name, accuracy)),
    )
    output = capsys.readouterr()
    assert output.err.splitlines() == [f"{name}: {accuracy:.2%}" for name, accuracy in told] * progress
    assert [name for name, _ in told] == ["clean", *report.attacks] and not output.out


def test_noted_keeps_the_last_report_for_each_set_of_options() -> None:
    """Catches: a card that grows with every run, or that loses a report made with other options."""
    options = {"budget": "linf:0.1", "suite": "fast", "images": 60, "data": "mnist-5k"}
    reports: list[dict[str, object]] = []
    for change, robust in (({}, 0.1), ({"images": 70}, 0.2), ({"budget": "linf:0.2"}, 0.3), ({}, 0.4)):
        reports = noted({**options, **change, "robust_accuracy": robust}, reports)
    assert [report["robust_accuracy"] for report in reports] == [0.2, 0.3, 0.4]


def test_noted_damaged_card_starts_a_new_list() -> None:
    assert noted({"budget": "linf:0.1"}, "none") == [{"budget": "linf:0.1"}]
