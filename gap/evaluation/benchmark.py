"""Attacks, by name, by folder or as objects, against classifiers: one row for each pair."""

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
from gap.classifiers.task import AttackTask, make_task
from gap.core.artifact import Artifact, is_artifact, open_artifact
from gap.core.errors import GapError, GapWarning, check_at_least, unknown_name_error
from gap.core.network import device_of
from gap.core.paths import exists
from gap.data.adapters import evaluation_data
from gap.evaluation.evaluate import Evaluation, evaluate_attack
from gap.evaluation.names import unique_names
from gap.evaluation.results import EvaluationResult
from gap.threat import Budget, as_budget

# An attack, a spec such as "pgd:steps=100", or the folder of a trained attack.
AttackLike = Attack | str | Path


@dataclass(frozen=True)
class AttackEntry:
    """One attack of a benchmark: a spec such as `pgd:steps=100`, what `gap train` left, or an attack object.

    `text` is what the user wrote, `name` what tells it from the others. `init` is the trained attack that an untrained
    one begins at.
    """

    text: str
    name: str
    artifact: Artifact | None = None
    init: Artifact | None = None
    attack: Attack | None = None

    @property
    def budget(self) -> Budget | None:
        """The budget that it was trained at, or that the object has."""
        if self.attack:
            return self.attack.budget
        return trained_budget(self.artifact) if self.artifact else None

    def is_adaptive_to(self, classifier: Classifier) -> bool:
        """Whether it was trained against this very classifier, or is fitted to the one that it attacks."""
        trained = self.artifact or self.init
        return (
            trained.read(AttackCard).was_trained_on(classifier)
            if trained
            else self.text.partition(":")[0] in UNIVERSAL_ATTACKS
        )


def parse_attacks(attacks: Sequence[AttackLike]) -> list[AttackEntry]:
    """The entries of a benchmark; raises GapError for what is no attack, no attack's name and no trained artifact.

    Artifacts are named after their folders, and where two would have one name, as they were written. Where names are
    still the same, later ones are numbered.
    """
    found = [_parse_attack(attack) for attack in attacks]
    counts = Counter(entry.name for entry in found)
    names = unique_names(entry.text if counts[entry.name] > 1 else entry.name for entry in found)
    return [replace(entry, name=name) for entry, name in zip(found, names, strict=True)]


def common_budget(entries: Sequence[AttackEntry], asked: Budget | str | None) -> Budget | None:
    """The budget asked for, else the first entry's own; raises GapError when one is needed and there is none."""
    if asked:
        return as_budget(asked)
    own = next((entry.budget for entry in entries if entry.budget), None)
    needy = next((entry for entry in entries if not entry.artifact and not entry.attack), None)
    if own is None and needy is not None:
        raise GapError(f"{needy.text} needs a budget; give `budget`, for example linf:8/255")
    return own


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
    callback: Callable[[Evaluation], None] = lambda evaluation: None,
    **options: Any,
) -> EvaluationResult:
    """Measure attacks on one or several classifiers; every figure is of 8-bit images.

    Args:
        attacks: one attack or several: objects such as `gap.attacks.PGD("linf:8/255")` or what `gap.train_generator`
            returns, names with options such as "pgd:steps=100", folders of trained attacks.
        models: one classifier or several, each a name, a folder, a `gap.Classifier` or any `nn.Module`.
        data: a name such as "cifar10" or "folder:PATH", of which the test images are taken; or images with labels: a
            pair of tensors, a torch Dataset or DataLoader, a Hugging Face dataset.
        budget: the largest perturbation, such as "linf:8/255", or several. Attack objects keep their own. Without one,
            trained attacks keep theirs, and names take the first of those.
        images: how many images, drawn once for all tables; None takes all.
        batch_size: images a batch.
        transfer: whether each named attack is made on every classifier and measured on every one.
        seed: of every random choice.
        device: what torch calls it; None takes the one that the first model is on.
        callback: is called with each row as it comes.
        **options: more options of data by name: data_root, labels, input, mean, std.

    Returns:
        A table that prints itself, with `to_dict`, `to_markdown`, `to_csv`, `to_latex`, `plot` and `pictures`.

    Raises:
        GapError: for attacks, classifiers, data and budgets that do not fit.
    """
    entries = parse_attacks(attacks if isinstance(attacks, list | tuple) else [cast(AttackLike, attacks)])
    classifiers = models if isinstance(models, list | tuple) else [cast(ClassifierLike, models)]
    check_at_least(1, images=images, batch_size=batch_size)
    budgets = list(budget) if isinstance(budget, list | tuple) else [cast(Budget | str | None, budget)]
    typed = [common_budget(entries, each) for each in budgets]
    with torch.random.fork_rng():
        task = make_task(classifiers, evaluation_data, data, device=device, **options)
        evaluations = []
        for evaluation in run_benchmark(
            entries,
            task,
            typed,
            own_budgets=budget is None,
            transfer=transfer,
            images=images,
            batch_size=batch_size,
            seed=seed,
        ):
            callback(evaluation)
            evaluations.append(evaluation)
    return EvaluationResult(evaluations, task.data.describe())


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
    """Evaluate every entry at every budget on every classifier's test images, yielding as they come.

    `own_budgets` leaves trained entries at the budget they were trained at. An untrained attack looks at the
    classifier it is judged on; with `transfer`, at each classifier in turn (a transfer matrix). Classifiers of the same
    name are numbered in the rows. Raises GapError when an artifact cannot take these images.
    """
    for asked in filter(None, budgets):
        asked.check(task.data.channels, *task.data.size)
    check_entries(entries, task)
    names = unique_names(classifier.name for classifier in task.classifiers)
    for budget in budgets:
        for entry in entries:
            at = entry.budget if entry.attack or (own_budgets and entry.artifact) else budget
            for first, judged in _pairs(entry, len(task.classifiers), transfer):
                source = task.classifiers[first]
                attack = make_attack(entry, at, source, task, seed)
                for index in judged:
                    classifier = task.classifiers[index]
                    found = evaluate_attack(
                        attack if index == first else for_transfer(attack),
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
                        "source": names[index if entry.artifact else first],
                    }
                    yield replace(found, row=found.row | labels | _trained_source(entry, index, task, names))


def make_attack(entry: AttackEntry, budget: Budget | None, source: Classifier, task: AttackTask, seed: int) -> Attack:
    """The attack that an entry stands for, at a budget; one that is fitted is fitted to `source` on training images.

    Raises GapError where an untrained one has no budget.
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
    """An attack on its way to another classifier: a search goes on past the boundary of the one that it looks at."""
    return replace(attack, confidence=math.inf) if isinstance(attack, PGD) else attack


def check_entries(entries: Sequence[AttackEntry], task: AttackTask) -> None:
    """As `check_artifact`, for what was trained in a benchmark and what its searches begin at."""
    for artifact in filter(None, (entry.artifact or entry.init for entry in entries)):
        check_artifact(artifact, task)


def check_artifact(artifact: Artifact, task: AttackTask) -> None:
    """Warn where a trained attack meets images of another size, or other classifiers; raise GapError where it cannot
    be applied."""
    card, first, size = artifact.read(AttackCard), task.classifiers[0], task.data.size
    if card.channels != first.spec.channels:
        raise GapError(
            f"{artifact.folder} takes {card.channels}-channel images, {first.name} takes {first.spec.channels}"
        )
    if card.size != size:
        sizes = ["x".join(map(str, each)) for each in (card.size, size)]
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
        raise GapError(f"{text} is not a folder that gap train left, nor the name of an attack")
    if "/" in text:
        raise GapError(f"there is no folder {text}; name one that gap train left, or an attack (see `gap attacks`)")
    raise unknown_name_error("attack", name, list_attacks())


def _pairs(entry: AttackEntry, classifiers: int, transfer: bool) -> list[tuple[int, list[int]]]:
    """The classifiers, by index, that an attack is made on, each with those that it is judged on."""
    indices = list(range(classifiers))
    if entry.artifact:
        return [(0, indices)]
    return [(source, indices if transfer else [source]) for source in indices]


def _criterion(entry: AttackEntry, classifier: Classifier) -> CriterionFactory | None:
    """What a trained attack aimed at; None where that cannot be read off this classifier, as the least likely class of
    others."""
    if entry.artifact is None:
        return None
    card = entry.artifact.read(AttackCard)
    criterion = find_criterion(card.criterion, classifier.spec.classes)
    alone = len(card.classifiers) == 1 and card.was_trained_on(classifier)
    return criterion if alone or not criterion.needs_clean else None


def _trained_source(entry: AttackEntry, index: int, task: AttackTask, names: Sequence[str]) -> dict[str, str]:
    """What a row is to say in place of its source: whom a trained attack that meets another classifier was made on."""
    card = entry.artifact.read(AttackCard) if entry.artifact else None
    if card is None or card.was_trained_on(task.classifiers[index]):
        return {}
    own = zip(names, task.classifiers, strict=True)
    known = next((name for name, classifier in own if card.was_trained_on(classifier)), None)
    return {"source": known if known and len(card.classifiers) == 1 else card.source_names}
