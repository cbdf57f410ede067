"""Benchmarks of trained attacks on classifiers other than those they were trained on."""

import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gap
from gap.attacks.generator.model import load_attack
from gap.classifiers.classifier import Classifier, ClassifierSpec
from gap.classifiers.task import AttackTask
from gap.core.artifact import save_artifact
from gap.core.errors import GapWarning
from gap.data.dataset import Dataset, InMemorySplit
from gap.evaluation import benchmark
from gap.evaluation.benchmark import parse_attacks, run_benchmark
from gap.evaluation.results import EvaluationResult, _bars_of, curve_names
from gap.threat import Budget

NAMES = ["one", "two"]
BUDGETS = [Budget("linf", 0.1), Budget("linf", 0.2)]


class Scaled(nn.Module):
    """Three classes by the mean pixel; another scale gives another fingerprint."""

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


def save_universal(folder: Path, *against: Classifier, criterion: str = "untargeted") -> str:
    metadata = [classifier.describe() for classifier in against]
    card = {
        "budget": "linf:0.1", "criterion": criterion, "channels": 1, "size": [4, 4], "generator": {},
        "classifiers": metadata,
    }  # fmt: skip
    save_artifact(folder, "universal_perturbation", {"perturbation": torch.full((1, 1, 4, 4), 0.1)}, card)
    return str(folder)


def benchmark_rows(texts: list[str], *classifiers: Classifier, **options: Any) -> list[dict[str, Any]]:
    evaluations = run_benchmark(parse_attacks(texts), task(*classifiers), BUDGETS[:1], **options)
    return [evaluation.row for evaluation in evaluations]


@pytest.mark.filterwarnings("ignore:.*transfer")
def test_run_benchmark_trained_attack_has_the_classifiers_of_its_card_as_source(tmp_path: Path) -> None:
    both = save_universal(tmp_path / "both", ONE, TWO)
    sources = [row["source"] for row in benchmark_rows([both], ONE, TWO, THREE, transfer=True)]
    assert sources == ["one", "two", "one and two"]


@pytest.mark.filterwarnings("ignore:.*transfer")
def test_run_benchmark_least_likely_success_is_counted_on_its_own_source_alone(tmp_path: Path) -> None:
    def has_target_success(name: str, criterion: str, *against: Classifier) -> list[bool]:
        results = benchmark_rows([save_universal(tmp_path / name, *against, criterion=criterion)], ONE, THREE)
        return ["target_success_rate" in row for row in results]

    assert has_target_success("alone", "least-likely", ONE) == [True, False]
    assert has_target_success("together", "least-likely", ONE, TWO) == [False, False]
    assert has_target_success("fixed", "target:2", ONE) == [True, True]


def test_run_benchmark_artifacts_of_one_folder_name_are_named_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = save_universal(tmp_path / "a" / "uap", ONE), save_universal(tmp_path / "b" / "uap", ONE)
    other = save_universal(tmp_path / "other", ONE)
    assert [row["attack"] for row in benchmark_rows([first, second, other, "uap"], ONE)] == [
        first,
        second,
        "other",
        "uap",
    ]
    monkeypatch.chdir(second)
    assert [row["attack"] for row in benchmark_rows(["."], ONE)] == [load_attack(".").name] == ["uap"]


def test_run_benchmark_transfer_warns_once_for_each_classifier(tmp_path: Path) -> None:
    attack = save_universal(tmp_path / "attack", ONE)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", GapWarning)
        assert len(list(run_benchmark(parse_attacks([attack]), task(ONE, TWO, THREE), BUDGETS))) == 6
    assert [str(warning.message).rpartition(", not ")[2] for warning in warned] == [
        "two as it is, in weights and normalizer: this is transfer",
        "three as it is, in weights and normalizer: this is transfer",
    ]


def guessing(name: str) -> Classifier:
    """A classifier with constant logits."""
    return classifier(name, 0.0)


def guessable_images() -> tuple[Tensor, Tensor]:
    """40 images with labels of three classes."""
    images = torch.randint(0, 256, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return images, torch.arange(40) % 3


def test_evaluate_classifiers_at_chance_level_warns_once_for_each() -> None:
    """Catches: a table of a network that guesses, without a warning in Python."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", GapWarning)
        gap.evaluate(["noise", "checkerboard"], [guessing(name) for name in NAMES], guessable_images(), BUDGETS)
    chance = [str(warning.message) for warning in warned if "no better than chance" in str(warning.message)]
    assert [message.split()[0] for message in chance] == ["one", "two"]


@pytest.mark.parametrize(
    ("names", "budgets", "labels"),
    [
        (["one"], BUDGETS[:1], ["noise on one", "checkerboard on one"]),
        (["one"], BUDGETS, [f"{attack} at {budget}" for budget in BUDGETS for attack in ("noise", "checkerboard")]),
        (["one", "two"], BUDGETS[:1], [f"{attack} on {n}" for attack in ("noise", "checkerboard") for n in NAMES]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*no better than chance")
def test_evaluate_progress_prints_a_line_for_each_row_on_standard_error(
    names: list[str], budgets: list[Budget], labels: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a long evaluation in Python without a sign of life, or a row that the callback does not get."""
    rows: list[dict[str, Any]] = []
    result = gap.evaluate(
        ["noise", "checkerboard"],
        [guessing(name) for name in names],
        guessable_images(),
        budgets,
        callback=lambda evaluation: rows.append(evaluation.row),
    )
    output = capsys.readouterr()
    accuracies = [row["accuracy_under_attack"] for row in result.rows]
    assert output.err.splitlines() == [
        f"{label}: accuracy under attack {accuracy:.2%}" for label, accuracy in zip(labels, accuracies, strict=True)
    ]
    assert rows == result.rows and not output.out


@pytest.mark.filterwarnings("ignore:.*no better than chance")
def test_evaluate_without_progress_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    gap.evaluate("noise", guessing("one"), guessable_images(), BUDGETS, progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore:.*no better than chance")
def test_evaluate_small_batch_size_bounds_the_batches_of_the_accuracy_check() -> None:
    """Catches: a check of the accuracy that needs more memory than the attacks."""
    sizes: list[int] = []
    network = guessing("one")
    network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    gap.evaluate("noise", network, guessable_images(), BUDGETS[0], batch_size=7, progress=False)
    assert max(sizes) == 7


@pytest.mark.parametrize(("mean", "std", "another"), [((0.1,), (0.3,), True), ((0.0,), (1.0,), False)])
def test_run_benchmark_other_normalizer_warns_of_transfer(
    tmp_path: Path, mean: tuple[float], std: tuple[float], another: bool
) -> None:
    attack = save_universal(tmp_path / "attack", ONE)
    spec = replace(ONE.spec, mean=mean, std=std)
    other = Classifier(ONE.network, spec, name=ONE.name, architecture=ONE.architecture)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", GapWarning)
        benchmark_rows([attack], other)
    assert ["not one as it is, in weights and normalizer" in str(warning.message) for warning in warned] == [
        True
    ] * another


def test_load_attack_other_norm_warns(tmp_path: Path) -> None:
    folder = save_universal(tmp_path / "attack", ONE)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", GapWarning)
        assert load_attack(folder, Budget("linf", 0.2)).name == "attack" and not warned
        load_attack(folder, Budget("l2", 0.2))
    assert [str(warning.message)[:43] for warning in warned] == ["attack was trained within linf:0.1; within "]


def test_run_benchmark_pgd_with_init_starts_from_the_trained_attack(tmp_path: Path) -> None:
    folder = save_universal(tmp_path / "attack", ONE)
    spec = "relative_step_sizes=1e-6,steps=1,confidence=0"

    def rows_of_two_seeds(text: str) -> list[dict[str, Any]]:
        """From two seeds: only an attack with a random initialization differs."""
        return [benchmark_rows([text], ONE, seed=seed)[0] for seed in (0, 1)]

    first, second = rows_of_two_seeds(f"pgd:init={folder},{spec}")
    assert first["l2_mean"] == second["l2_mean"] > 0
    assert first["accuracy_under_attack"] <= benchmark_rows([folder], ONE)[0]["accuracy_under_attack"]
    first, second = rows_of_two_seeds(f"pgd:{spec}")
    assert first["l2_mean"] != second["l2_mean"]
    with pytest.warns(GapWarning, match="not two as it is, in weights and normalizer: this is transfer"):
        benchmark_rows([f"pgd:init={folder}"], TWO)


def test_run_benchmark_attack_is_fitted_once_for_each_source(monkeypatch: pytest.MonkeyPatch) -> None:
    create_attack, fitted = benchmark.create_attack, []

    def count_fits(spec: str, budget: Budget, source: Classifier, *rest: Any) -> Any:
        fitted.append(source.name)
        return create_attack(spec, budget, source, *rest)

    monkeypatch.setattr(benchmark, "create_attack", count_fits)
    results = benchmark_rows(["uap:images_seen=5"], ONE, TWO, transfer=True)
    assert [(row["source"], row["classifier"]) for row in results] == [
        ("one", "one"), ("one", "two"), ("two", "one"), ("two", "two"),
    ]  # fmt: skip
    assert fitted == ["one", "two"]
    fitted.clear()
    results = benchmark_rows(["uap:images_seen=5"], ONE, TWO)
    assert [(row["source"], row["classifier"]) for row in results] == [("one", "one"), ("two", "two")]


def test_run_benchmark_transferred_pgd_has_no_confidence_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: an attack that stops at the boundary of its source, and so hardly transfers."""
    confidences: dict[tuple[str, str], float] = {}
    evaluate = benchmark.evaluate_attack

    def record_confidence(attack: Any, target: Classifier, *arguments: Any, source: Classifier, **options: Any) -> Any:
        confidences[source.name, target.name] = attack.confidence
        return evaluate(attack, target, *arguments, source=source, **options)

    monkeypatch.setattr(benchmark, "evaluate_attack", record_confidence)
    benchmark_rows(["pgd:steps=3,confidence=2"], ONE, TWO, transfer=True)
    assert confidences == {("one", "one"): 2, ("one", "two"): math.inf, ("two", "one"): math.inf, ("two", "two"): 2}


@dataclass(frozen=True)
class Shift:
    """An attack object; all have the same name."""

    by: float
    name: str = "shift"
    budget: Budget | None = None

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return (images + self.by).clamp(0, 1)


def test_run_benchmark_equal_names_are_numbered_in_their_order() -> None:
    """Catches: results of one attack or classifier under the name of another, where results are looked up by name."""
    twins = [classifier("net", scale) for scale in (1.0, 2.0)]
    attacks = [Shift(0.1), Shift(0.2), Shift(0.3), "noise", "noise"]
    evaluations = list(run_benchmark(parse_attacks(attacks), task(*twins), BUDGETS[:1], transfer=True))
    labels = [(e.row["attack"], e.row["source"], e.row["classifier"]) for e in evaluations]
    nets = ["net", "net (2)"]
    names = ["shift", "shift (2)", "shift (3)", "noise", "noise (2)"]
    assert labels == [(name, source, target) for name in names for source in nets for target in nets]
    lengths = [e.row["linf_max"] for e in evaluations[::4]]
    assert lengths[:3] == pytest.approx([0.1, 0.2, 0.3], abs=0.004)
    result = EvaluationResult(evaluations, {"name": "noise"})
    assert len(set(curve_names(result.rows))) == len(result.rows) == 20
    bars = _bars_of(result.rows)
    assert list(bars) == nets and all(len(bars[net]) == 10 for net in nets)
    assert result.plot().width > 300 and result.pictures().height > 20 * 100


def test_bars_of_one_attack_at_several_norms_has_a_bar_for_each() -> None:
    budgets = [Budget("linf", 0.1), Budget("l2", 0.5)]
    result = EvaluationResult(list(run_benchmark(parse_attacks(["noise"]), task(ONE), budgets)), {"name": "noise"})
    assert list(_bars_of(result.rows)["one"]) == ["noise at linf:0.1", "noise at l2:0.5"]


def test_evaluation_result_at_one_budget_has_its_rows_alone() -> None:
    """Catches: pictures or a table of all budgets under the title of one."""
    result = EvaluationResult(
        list(run_benchmark(parse_attacks(["noise", "checkerboard"]), task(ONE), BUDGETS)), {"name": "noise"}
    )
    largest = result.at(BUDGETS[1])
    assert largest.rows == result.rows[2:] and largest.data == result.data
    assert list(result.table().rows[0]) == list(largest.table().rows[0]) and largest.table().caption == result.title
    assert largest.pictures().height < result.pictures().height


def test_evaluation_result_curves_png_of_one_budget_shows_curves() -> None:
    """Catches: bars in the file of `gap compare` for the curves, where there is one epsilon."""
    evaluations = list(run_benchmark(parse_attacks(["noise"]), task(ONE), BUDGETS[:1]))
    result = EvaluationResult(evaluations, {"name": "noise"})
    assert [epsilon for epsilon, *_ in result.curves()["noise"]] == [0.0, 0.1]
    assert result.curves_png()[:4] == b"\x89PNG"


def test_run_benchmark_classifiers_of_one_name_source_is_that_of_the_card(tmp_path: Path) -> None:
    twins = [classifier("net", scale) for scale in (1.0, 2.0)]
    folder = save_universal(tmp_path / "made", twins[1])
    with pytest.warns(GapWarning, match="this is transfer"):
        results = [e.row for e in run_benchmark(parse_attacks([folder]), task(*twins), BUDGETS[:1])]
    assert [(row["source"], row["classifier"]) for row in results] == [("net (2)", "net"), ("net (2)", "net (2)")]
