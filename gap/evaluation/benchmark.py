"""Benchmarks: attacks, given by name, by folder or as objects, against classifiers."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gap.attacks.base import Attack
from gap.attacks.criteria import CriterionFactory, find_criterion
from gap.attacks.generator.model import AttackCard, folder_name, load_attack_artifact, trained_budget
from gap.attacks.gradient import PGD
from gap.attacks.names import ARTIFACT_KINDS
from gap.attacks.registry import UNIVERSAL_ATTACKS, create_attack, init_folder_of, list_attacks
from gap.classifiers.adapters import ClassifierLike
from gap.classifiers.classifier import Classifier
from gap.classifiers.task import AttackTask, make_task, warn_if_any_at_chance
from gap.core.artifact import Artifact, is_artifact, open_artifact
from gap.core.errors import GapError, GapWarning, check_at_least, unknown_name_error
from gap.core.network import device_of
from gap.core.paths import exists
from gap.core.progress import print_progress
from gap.data.adapters import evaluation_data
from gap.evaluation.evaluate import Evaluation, evaluate_attack
from gap.evaluation.names import unique_names
from gap.evaluation.results import EvaluationResult
from gap.threat import Budget, as_budget

# An attack, a spec such as "pgd:steps=100", or the folder of a trained attack.
AttackLike = Attack | str | Path


@dataclass(frozen=True)
class AttackEntry:
    """One attack of a benchmark: a spec such as `pgd:steps=100`, a folder of `gap train`, or an attack object.

    `text` is the user's text, `name` is unique in the benchmark. `init` is the trained attack whose images are the
    initial points of an untrained attack.
    """

    text: str
    name: str
    artifact: Artifact | None = None
    init: Artifact | None = None
    attack: Attack | None = None

    @property
    def budget(self) -> Budget | None:
        """The budget that the attack was trained with, or that of the object."""
        if self.attack:
            return self.attack.budget
        return trained_budget(self.artifact) if self.artifact else None

    def is_adaptive_to(self, classifier: Classifier) -> bool:
        """Whether it was trained against this classifier, or is fitted to the classifier that it attacks."""
        trained = self.artifact or self.init
        return (
            trained.read(AttackCard).was_trained_on(classifier)
            if trained
            else self.text.partition(":")[0] in UNIVERSAL_ATTACKS
        )


def parse_attacks(attacks: Sequence[AttackLike]) -> list[AttackEntry]:
    """The entries of a benchmark; raises GapError for anything but an attack, its name or a trained artifact.

    The name of an artifact is that of its folder, or its full text where two would have the same name. Names that are
    still equal are numbered.
    """
    entries = [_parse_attack(attack) for attack in attacks]
    counts = Counter(entry.name for entry in entries)
    names = unique_names(entry.text if counts[entry.name] > 1 else entry.name for entry in entries)
    return [replace(entry, name=name) for entry, name in zip(entries, names, strict=True)]


def common_budget(entries: Sequence[AttackEntry], asked: Budget | str | None) -> Budget | None:
    """The requested budget, or else that of the first entry with one; raises GapError when a needed one is missing."""
    if asked:
        return as_budget(asked)
    trained = next((entry.budget for entry in entries if entry.budget), None)
    without_budget = next((entry for entry in entries if not entry.artifact and not entry.attack), None)
    if trained is None and without_budget is not None:
        raise GapError(f"{without_budget.text} needs a budget; give `budget`, for example linf:8/255")
    return trained


def evaluate(
    attacks: AttackLike | Sequence[AttackLike],
    models: ClassifierLike | Sequence[ClassifierLike],
    data: Any = "mnist-5k",
    budget: Budget | str | Sequence[Budget | str] | None = None,
    *,
    images: int | None = None,
    batch_size: int = 250,
    transfer: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    callback: Callable[[Evaluation], None] = lambda evaluation: None,
    **options: Any,
) -> EvaluationResult:
    """Evaluate attacks on one or several classifiers. All metrics are those of 8-bit images.

    Args:
        attacks: one attack or several: objects such as `gap.attacks.PGD("linf:8/255")` or the result of
            `gap.train_generator`, names with options such as "pgd:steps=100", folders of trained attacks.
        models: one classifier or several, each a name, a folder, a `gap.Classifier` or any `nn.Module`.
        data: a name such as "cifar10" or "folder:PATH", whose test images are used; or images with labels: a pair of
            tensors, a torch Dataset or DataLoader, a Hugging Face dataset.
        budget: the largest perturbation, such as "linf:8/255", or several. Attack objects use their own budgets.
            Without this argument, trained attacks use the budgets of their training, and named attacks the first of
            these.
        images: the number of images, a random sample that is the same in all tables; by default all.
        batch_size: images per batch.
        transfer: whether the adversarial images of every named attack on every classifier are evaluated on all
            classifiers.
        seed: the seed of all random choices.
        device: the torch device; by default that of the first model.
        progress: whether the accuracy under each attack is printed on standard error as soon as it is known.
        callback: a function that is called with each `Evaluation`, whose `row` has all metrics, as soon as it is known.
        **options: further options of data by name: data_root, labels, input, mean, std.

    Returns:
        A table with `to_dict`, `to_markdown`, `to_csv`, `to_latex`, `plot` and `pictures`, which prints itself.

    Raises:
        GapError: for attacks, classifiers, data and budgets that do not match.
    """
    entries = parse_attacks(attacks if isinstance(attacks, list | tuple) else [cast(AttackLike, attacks)])
    classifiers = models if isinstance(models, list | tuple) else [cast(ClassifierLike, models)]
    check_at_least(1, images=images, batch_size=batch_size)
    budgets = list(budget) if isinstance(budget, list | tuple) else [cast(Budget | str | None, budget)]
    entry_budgets = [common_budget(entries, item) for item in budgets]
    with torch.random.fork_rng():
        task = make_task(classifiers, evaluation_data, data, device=device, **options)
        return evaluate_task(
            entries,
            task,
            entry_budgets,
            own_budgets=budget is None,
            transfer=transfer,
            images=images,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
            callback=callback,
        )


def evaluate_task(
    entries: Sequence[AttackEntry],
    task: AttackTask,
    budgets: Sequence[Budget | None],
    *,
    own_budgets: bool = False,
    transfer: bool = False,
    images: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
    progress: bool = True,
    callback: Callable[[Evaluation], None] = lambda evaluation: None,
) -> EvaluationResult:
    """The results of `run_benchmark`; `progress` and `callback` are those of `evaluate`."""
    evaluations = []
    for evaluation in run_benchmark(
        entries,
        task,
        budgets,
        own_budgets=own_budgets,
        transfer=transfer,
        images=images,
        batch_size=batch_size,
        seed=seed,
    ):
        if progress:
            print_progress(_describe(evaluation, several_budgets=len(budgets) > 1, classifiers=len(task.classifiers)))
        callback(evaluation)
        evaluations.append(evaluation)
    return EvaluationResult(evaluations, task.data.describe())


def _describe(evaluation: Evaluation, *, several_budgets: bool, classifiers: int) -> str:
    """A row in one line: the attack, the classifier and the budget where there are several, and the accuracy."""
    row = evaluation.row
    on = f" on {row['classifier']}" if classifiers > 1 or not several_budgets else ""
    at = f" at {row['budget']}" if several_budgets else ""
    return f"{row['attack']}{on}{at}: accuracy under attack {row['accuracy_under_attack']:.2%}"


def run_benchmark(
    entries: Sequence[AttackEntry],
    task: AttackTask,
    budgets: Sequence[Budget | None],
    *,
    own_budgets: bool = False,
    transfer: bool = False,
    images: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
) -> Iterator[Evaluation]:
    """Evaluate every entry at every budget on the test images for every classifier, and yield the results one by one.

    With `own_budgets`, trained entries use the budgets of their training. The adversarial images of an untrained attack
    are computed on the classifier they are evaluated on; with `transfer`, on every classifier (a transfer matrix).
    Classifiers with the same name are numbered in the rows. Raises GapError when an artifact cannot be applied to these
    images.
    """
    for checked_budget in filter(None, budgets):
        checked_budget.check(task.data.channels, *task.data.size)
    check_entries(entries, task)
    warn_if_any_at_chance(task, batch_size)
    names = unique_names(classifier.name for classifier in task.classifiers)
    for budget in budgets:
        for entry in entries:
            attack_budget = entry.budget if entry.attack or (own_budgets and entry.artifact) else budget
            for source_index, target_indices in _pairs(entry, len(task.classifiers), transfer):
                source = task.classifiers[source_index]
                attack = make_attack(entry, attack_budget, source, task, seed)
                for index in target_indices:
                    classifier = task.classifiers[index]
                    evaluation = evaluate_attack(
                        attack if index == source_index else for_transfer(attack),
                        classifier,
                        task.data.test,
                        images=images,
                        batch_size=batch_size,
                        source=None if entry.artifact else source,
                        criterion=_criterion(entry, classifier),
                        data=task.data.name,
                        seed=seed,
                    )
                    labels = {
                        "attack": entry.name,
                        "classifier": names[index],
                        "source": names[index if entry.artifact else source_index],
                    }
                    yield replace(evaluation, row=evaluation.row | labels | _trained_source(entry, index, task, names))


def make_attack(entry: AttackEntry, budget: Budget | None, source: Classifier, task: AttackTask, seed: int) -> Attack:
    """The attack of an entry at a budget. A universal attack by name is fitted to `source` on the training images.

    Raises GapError where an untrained attack has no budget.
    """
    if entry.attack:
        return entry.attack
    if entry.artifact:
        return load_attack_artifact(entry.artifact, budget, device_of(source), entry.name)
    if budget is None:
        raise GapError(f"{entry.text} needs a budget; give `budget`, for example linf:8/255")
    torch.manual_seed(seed)
    device = device_of(source)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        train = task.data.train
        return train.batches(torch.randperm(len(train)).split(100), device)

    return create_attack(entry.text, budget, source, batches)


def for_transfer(attack: Attack) -> Attack:
    """An attack for transfer: PGD does not stop at the decision boundary of its source classifier."""
    return replace(attack, confidence=math.inf) if isinstance(attack, PGD) else attack


def check_entries(entries: Sequence[AttackEntry], task: AttackTask) -> None:
    """Run `check_artifact` on the trained attacks of a benchmark, also those that give initial points."""
    for artifact in filter(None, (entry.artifact or entry.init for entry in entries)):
        check_artifact(artifact, task)


def check_artifact(artifact: Artifact, task: AttackTask) -> None:
    """Warn where a trained attack is applied to images of another size or to other classifiers than in its training.

    Raises GapError where it cannot be applied.
    """
    card, first, size = artifact.read(AttackCard), task.classifiers[0], task.data.size
    if card.channels != first.spec.channels:
        raise GapError(
            f"{artifact.folder} takes {card.channels}-channel images, {first.name} takes {first.spec.channels}"
        )
    if card.size != size:
        sizes = ["x".join(map(str, sides)) for sides in (card.size, size)]
        warnings.warn(
            f"{artifact.folder} was trained at {sizes[0]} pixels and meets {sizes[1]}", GapWarning, stacklevel=2
        )
    for classifier in task.classifiers:
        if not card.was_trained_on(classifier):
            warnings.warn(
                f"{artifact.folder} was trained against {card.source_names}, not {classifier.name} as it is, in weights"
                " and normalizer: this is transfer",
                GapWarning,
                stacklevel=2,
            )


def _parse_attack(attack: AttackLike) -> AttackEntry:
    if callable(attack) and hasattr(attack, "budget"):
        return AttackEntry(attack.name, attack.name, getattr(attack, "artifact", None), attack=attack)
    if not isinstance(attack, str | Path):
        raise GapError(f"an attack is a name, a folder or an object with a name and a budget, not {attack!r}")
    text = str(attack)
    if is_artifact(Path(text)):
        artifact = open_artifact(Path(text), *ARTIFACT_KINDS)
        return AttackEntry(text, folder_name(artifact), artifact)
    name = text.partition(":")[0]
    if name in list_attacks():
        init = init_folder_of(text)
        return AttackEntry(text, text, init=open_artifact(init, *ARTIFACT_KINDS) if init else None)
    if exists(text):
        raise GapError(f"{text} is not a folder that gap train wrote, nor the name of an attack")
    if "/" in text:
        raise GapError(f"there is no folder {text}; name one that gap train left, or an attack (see `gap attacks`)")
    raise unknown_name_error("attack", name, list_attacks())


def _pairs(entry: AttackEntry, classifiers: int, transfer: bool) -> list[tuple[int, list[int]]]:
    """Pairs of the index of a source classifier and the indices of the classifiers that it is evaluated on."""
    indices = list(range(classifiers))
    if entry.artifact:
        return [(0, indices)]
    return [(source, indices if transfer else [source]) for source in indices]


def _criterion(entry: AttackEntry, classifier: Classifier) -> CriterionFactory | None:
    """The criterion of a trained attack; None where it depends on the logits of other classifiers."""
    if entry.artifact is None:
        return None
    card = entry.artifact.read(AttackCard)
    criterion = find_criterion(card.criterion, classifier.spec.classes)
    is_only_source = len(card.classifiers) == 1 and card.was_trained_on(classifier)
    return criterion if is_only_source or not criterion.needs_clean else None


def _trained_source(entry: AttackEntry, index: int, task: AttackTask, names: Sequence[str]) -> dict[str, str]:
    """The `source` of a row, if a trained attack is evaluated on a classifier that it was not trained against."""
    card = entry.artifact.read(AttackCard) if entry.artifact else None
    if card is None or card.was_trained_on(task.classifiers[index]):
        return {}
    named = zip(names, task.classifiers, strict=True)
    source_name = next((name for name, classifier in named if card.was_trained_on(classifier)), None)
    return {"source": source_name if source_name and len(card.classifiers) == 1 else card.source_names}
