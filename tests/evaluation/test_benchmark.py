"""Line-ups of trained attacks that meet classifiers other than their own."""

import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gap.attacks.generator.model import load_attack
from gap.classifiers.classifier import Classifier, ClassifierSpec
from gap.classifiers.task import AttackTask
from gap.core.artifact import save_artifact
from gap.core.errors import GapWarning
from gap.data.dataset import Dataset, InMemorySplit
from gap.evaluation import benchmark as lineup
from gap.evaluation.benchmark import parse_attacks, run_benchmark
from gap.evaluation.results import EvaluationResult, _bars_of, curve_names
from gap.threat import Budget

BUDGETS = [Budget("linf", 0.1), Budget("linf", 0.2)]


class Scaled(nn.Module):
    """Three classes by the mean pixel; the scale makes one fingerprint unlike another."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return self.scale * torch.stack([0.3 - mean, mean * 0, mean - 0.7], dim=1)


def classifier(name: str, scale: float) -> Classifier:
    return Classifier(Scaled(scale), ClassifierSpec(1, (4, 4), 3), name=name, architecture="scaled")


ONE, TWO, THREE = classifier("one", 1.0), classifier("two", 2.0), classifier("three", 3.0)


def task(*classifiers: Classifier) -> AttackTask:
    images = torch.randint(0, 256, (12, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = InMemorySplit(images, torch.arange(12) % 3)
    return AttackTask(list(classifiers), Dataset("noise", split, split, split, 1, (4, 4), None, 3, ""))


def trained(folder: Path, *against: Classifier, criterion: str = "untargeted") -> str:
    told = [each.describe() for each in against]
    card = {
        "budget": "linf:0.1", "criterion": criterion, "channels": 1, "size": [4, 4], "generator": {},
        "classifiers": told,
    }  # fmt: skip
    save_artifact(folder, "universal_perturbation", {"perturbation": torch.full((1, 1, 4, 4), 0.1)}, card)
    return str(folder)


def rows(texts: list[str], *classifiers: Classifier, **options: Any) -> list[dict[str, Any]]:
    found = run_benchmark(parse_attacks(texts), task(*classifiers), BUDGETS[:1], **options)
    return [evaluation.row for evaluation in found]


@pytest.mark.filterwarnings("ignore:.*transfer")
def test_a_trained_attack_was_made_on_those_of_its_card(tmp_path: Path) -> None:
    both = trained(tmp_path / "both", ONE, TWO)
    sources = [row["source"] for row in rows([both], ONE, TWO, THREE, transfer=True)]
    assert sources == ["one", "two", "one and two"]


@pytest.mark.filterwarnings("ignore:.*transfer")
def test_the_least_likely_class_of_others_is_not_counted(tmp_path: Path) -> None:
    def counted(name: str, criterion: str, *against: Classifier) -> list[bool]:
        found = rows([trained(tmp_path / name, *against, criterion=criterion)], ONE, THREE)
        return ["target_success_rate" in row for row in found]

    assert counted("alone", "least-likely", ONE) == [True, False]
    assert counted("together", "least-likely", ONE, TWO) == [False, False]
    assert counted("fixed", "target:2", ONE) == [True, True]


def test_artifacts_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = trained(tmp_path / "a" / "uap", ONE), trained(tmp_path / "b" / "uap", ONE)
    other = trained(tmp_path / "other", ONE)
    assert [row["attack"] for row in rows([first, second, other, "uap"], ONE)] == [first, second, "other", "uap"]
    monkeypatch.chdir(second)
    assert [row["attack"] for row in rows(["."], ONE)] == [load_attack(".").name] == ["uap"]


def test_transfer_is_warned_about_once(tmp_path: Path) -> None:
    attack = trained(tmp_path / "attack", ONE)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", GapWarning)
        assert len(list(run_benchmark(parse_attacks([attack]), task(ONE, TWO, THREE), BUDGETS))) == 6
    assert [str(warning.message).rpartition(", not ")[2] for warning in told] == [
        "two as it is, in weights and normalizer: this is transfer",
        "three as it is, in weights and normalizer: this is transfer",
    ]


@pytest.mark.parametrize(("mean", "std", "another"), [((0.1,), (0.3,), True), ((0.0,), (1.0,), False)])
def test_another_normalizer_is_another_classifier(
    tmp_path: Path, mean: tuple[float], std: tuple[float], another: bool
) -> None:
    attack = trained(tmp_path / "attack", ONE)
    spec = replace(ONE.spec, mean=mean, std=std)
    other = Classifier(ONE.network, spec, name=ONE.name, architecture=ONE.architecture)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", GapWarning)
        rows([attack], other)
    assert ["not one as it is, in weights and normalizer" in str(each.message) for each in told] == [True] * another


def test_another_norm_is_warned_about(tmp_path: Path) -> None:
    folder = trained(tmp_path / "attack", ONE)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", GapWarning)
        assert load_attack(folder, Budget("linf", 0.2)).name == "attack" and not told
        load_attack(folder, Budget("l2", 0.2))
    assert [str(each.message)[:43] for each in told] == ["attack was trained within linf:0.1; within "]


def test_a_search_begins_at_a_trained_attack(tmp_path: Path) -> None:
    folder = trained(tmp_path / "attack", ONE)
    spec = "relative_step_sizes=1e-6,steps=1,confidence=0"

    def found(text: str) -> list[dict[str, Any]]:
        """From different seeds: only a search from a random start differs."""
        return [rows([text], ONE, seed=seed)[0] for seed in (0, 1)]

    one, two = found(f"pgd:init={folder},{spec}")
    assert one["l2_mean"] == two["l2_mean"] > 0
    assert one["accuracy_under_attack"] <= rows([folder], ONE)[0]["accuracy_under_attack"]
    one, two = found(f"pgd:{spec}")
    assert one["l2_mean"] != two["l2_mean"]
    with pytest.warns(GapWarning, match="not two as it is, in weights and normalizer: this is transfer"):
        rows([f"pgd:init={folder}"], TWO)


def test_an_attack_is_fitted_once_for_each_source(monkeypatch: pytest.MonkeyPatch) -> None:
    made, fitted = lineup.create_attack, []

    def counting(spec: str, budget: Budget, source: Classifier, *rest: Any) -> Any:
        fitted.append(source.name)
        return made(spec, budget, source, *rest)

    monkeypatch.setattr(lineup, "create_attack", counting)
    found = rows(["uap:images_seen=5"], ONE, TWO, transfer=True)
    assert [(row["source"], row["classifier"]) for row in found] == [
        ("one", "one"), ("one", "two"), ("two", "one"), ("two", "two"),
    ]  # fmt: skip
    assert fitted == ["one", "two"]
    fitted.clear()
    found = rows(["uap:images_seen=5"], ONE, TWO)
    assert [(row["source"], row["classifier"]) for row in found] == [("one", "one"), ("two", "two")]


def test_a_search_that_is_carried_over_does_not_stop_at_the_source_s_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    """On its own classifier it stops past the boundary by as much as was asked; on another, not at all."""
    seen: dict[tuple[str, str], float] = {}
    evaluate = lineup.evaluate_attack

    def noting(attack: Any, judged: Classifier, *given: Any, source: Classifier, **options: Any) -> Any:
        seen[source.name, judged.name] = attack.confidence
        return evaluate(attack, judged, *given, source=source, **options)

    monkeypatch.setattr(lineup, "evaluate_attack", noting)
    rows(["pgd:steps=3,confidence=2"], ONE, TWO, transfer=True)
    assert seen == {("one", "one"): 2, ("one", "two"): math.inf, ("two", "one"): math.inf, ("two", "two"): 2}


@dataclass(frozen=True)
class Shift:
    """An attack object; all have the same name."""

    by: float
    name: str = "shift"
    budget: Budget | None = None

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return (images + self.by).clamp(0, 1)


def test_rows_of_the_same_names_are_numbered_in_the_order_given() -> None:
    """Catches: one attack or classifier in the place of another, wherever results go by name."""
    twins = [classifier("net", scale) for scale in (1.0, 2.0)]
    attacks = [Shift(0.1), Shift(0.2), Shift(0.3), "noise", "noise"]
    evaluations = list(run_benchmark(parse_attacks(attacks), task(*twins), BUDGETS[:1], transfer=True))
    labels = [(e.row["attack"], e.row["source"], e.row["classifier"]) for e in evaluations]
    nets = ["net", "net (2)"]
    names = ["shift", "shift (2)", "shift (3)", "noise", "noise (2)"]
    assert labels == [(name, source, judged) for name in names for source in nets for judged in nets]
    lengths = [e.row["linf_max"] for e in evaluations[::4]]
    assert lengths[:3] == pytest.approx([0.1, 0.2, 0.3], abs=0.004)
    result = EvaluationResult(evaluations, {"name": "noise"})
    assert len(set(curve_names(result.rows))) == len(result.rows) == 20
    bars = _bars_of(result.rows)
    assert list(bars) == nets and all(len(bars[net]) == 10 for net in nets)
    assert result.plot().width > 300 and result.pictures().height > 20 * 100


def test_bars_of_one_attack_at_several_norms_are_all_there() -> None:
    budgets = [Budget("linf", 0.1), Budget("l2", 0.5)]
    result = EvaluationResult(list(run_benchmark(parse_attacks(["noise"]), task(ONE), budgets)), {"name": "noise"})
    assert list(_bars_of(result.rows)["one"]) == ["noise at linf:0.1", "noise at l2:0.5"]


def test_trained_attack_among_classifiers_of_one_name_names_the_one_it_was_made_on(tmp_path: Path) -> None:
    twins = [classifier("net", scale) for scale in (1.0, 2.0)]
    folder = trained(tmp_path / "made", twins[1])
    with pytest.warns(GapWarning, match="this is transfer"):
        found = [e.row for e in run_benchmark(parse_attacks([folder]), task(*twins), BUDGETS[:1])]
    assert [(row["source"], row["classifier"]) for row in found] == [("net (2)", "net"), ("net (2)", "net (2)")]
