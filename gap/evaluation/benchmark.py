"""A line-up: attacks by name or artefact, against classifiers, one row for each pair."""

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gap.attacks.base import Attack
from gap.attacks.criteria import GoalMaker, find_goal
from gap.attacks.generator.model import KINDS, AttackCard, attack_from, folder_name, own_budget
from gap.attacks.gradient import PGD
from gap.attacks.registry import FITTED, attack_names, named_attack, start_of
from gap.classifiers.classifier import Classifier
from gap.classifiers.task import Setting
from gap.core.artifact import Artefact, is_artefact, open_artefact
from gap.core.errors import GapError, GapWarning, unknown
from gap.core.network import device_of
from gap.core.paths import exists
from gap.evaluation.evaluate import Evaluation, evaluate
from gap.threat import Budget


@dataclass(frozen=True)
class Entrant:
    """One attack of a line-up: a spec such as `pgd:steps=100`, or what `gap train` left.

    `text` is what the user wrote, `name` what tells it from the others. `start` is the trained attack that an untrained
    one begins at.
    """

    text: str
    name: str
    artefact: Artefact | None = None
    start: Artefact | None = None

    @property
    def budget(self) -> Budget | None:
        """The budget it was trained at, where it was."""
        return own_budget(self.artefact) if self.artefact else None

    def learns_against(self, classifier: Classifier) -> bool:
        """Whether it was trained against this very classifier, or is fitted to the one that it attacks."""
        trained = self.artefact or self.start
        return trained.read(AttackCard).knows(classifier) if trained else self.text.partition(":")[0] in FITTED


def find_entrants(texts: Sequence[str]) -> list[Entrant]:
    """Read a line-up; raises GapError for what is neither an attack's name nor a trained artefact.

    Artefacts are named after their folders, and where two would have one name, as they were written.
    """
    found = [_find_entrant(text) for text in texts]
    names = Counter(entrant.name for entrant in found)
    return [replace(entrant, name=entrant.text) if names[entrant.name] > 1 else entrant for entrant in found]


def common_budget(entrants: Sequence[Entrant], asked: str | None) -> Budget | None:
    """The budget asked for, else the first entrant's own; raises GapError when one is needed and there is none."""
    if asked:
        return Budget.parse(asked)
    own = next((entrant.budget for entrant in entrants if entrant.budget), None)
    needy = next((entrant for entrant in entrants if not entrant.artefact), None)
    if own is None and needy is not None:
        raise GapError(f"{needy.text} needs a budget; give --budget, for example linf:8/255")
    return own


def run_lineup(
    entrants: Sequence[Entrant],
    setting: Setting,
    budgets: Sequence[Budget | None],
    *,
    own_budgets: bool = False,
    transfer: bool = False,
    images: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
) -> Iterator[Evaluation]:
    """Evaluate every entrant at every budget on every classifier's test images, yielding as they come.

    `own_budgets` leaves trained entrants at the budget they were trained at. An untrained attack looks at the
    classifier it is judged on; with `transfer`, at each classifier in turn (a transfer matrix). Raises GapError when an
    artefact cannot take these images.
    """
    for asked in filter(None, budgets):
        asked.check(setting.data.channels, *setting.data.size)
    check_entrants(entrants, setting)
    for budget in budgets:
        for entrant in entrants:
            at = entrant.budget if own_budgets and entrant.artefact else budget
            for source, judged in _pairings(entrant, setting.classifiers, transfer):
                attack = make_attack(entrant, at, source, setting, seed)
                for classifier in judged:
                    found = evaluate(
                        attack if classifier is source else carried(attack),
                        classifier,
                        setting.data.test,
                        images=images,
                        batch_size=batch_size,
                        source=None if entrant.artefact else source,
                        goal=_goal(entrant, classifier),
                        data=setting.data.name,
                        seed=seed,
                    )
                    yield replace(found, row=found.row | _trained_source(entrant, classifier))


def make_attack(entrant: Entrant, budget: Budget | None, source: Classifier, setting: Setting, seed: int) -> Attack:
    """The attack that an entrant stands for, at a budget; one that is fitted is fitted to `source` on training images.

    Raises GapError where an untrained one has no budget.
    """
    if entrant.artefact:
        return attack_from(entrant.artefact, budget, device_of(source), entrant.name)
    if budget is None:
        raise GapError(f"{entrant.text} needs a budget; give --budget, for example linf:8/255")
    torch.manual_seed(seed)
    device = device_of(source)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        train = setting.data.train
        return train.batches(torch.randperm(len(train)).split(100), device)

    return named_attack(entrant.text, budget, source, batches)


def carried(attack: Attack) -> Attack:
    """An attack on its way to another classifier: a search goes on past the boundary of the one that it looks at."""
    return replace(attack, confidence=math.inf) if isinstance(attack, PGD) else attack


def check_entrants(entrants: Sequence[Entrant], setting: Setting) -> None:
    """As `check_artefact`, for what was trained in a line-up and what its searches begin at."""
    for artefact in filter(None, (entrant.artefact or entrant.start for entrant in entrants)):
        check_artefact(artefact, setting)


def check_artefact(artefact: Artefact, setting: Setting) -> None:
    """Warn where a trained attack meets images of another size, or other classifiers; raise GapError where it cannot
    be applied."""
    card, first, size = artefact.read(AttackCard), setting.classifiers[0], setting.data.size
    if card.channels != first.facts.channels:
        raise GapError(
            f"{artefact.folder} takes {card.channels}-channel images, {first.name} takes {first.facts.channels}"
        )
    if card.size != size:
        sizes = ["x".join(map(str, each)) for each in (card.size, size)]
        warnings.warn(
            f"{artefact.folder} was trained at {sizes[0]} pixels and meets {sizes[1]}", GapWarning, stacklevel=2
        )
    for classifier in setting.classifiers:
        if not card.knows(classifier):
            warnings.warn(
                f"{artefact.folder} was trained against {card.made_on}, not {classifier.name} as it is, in weights and"
                " normaliser: this is transfer",
                GapWarning,
                stacklevel=2,
            )


def _find_entrant(text: str) -> Entrant:
    if is_artefact(Path(text)):
        artefact = open_artefact(Path(text), *KINDS)
        return Entrant(text, folder_name(artefact), artefact)
    name = text.partition(":")[0]
    if name in attack_names():
        start = start_of(text)
        return Entrant(text, text, start=open_artefact(start, *KINDS) if start else None)
    if exists(text):
        raise GapError(f"{text} is not a folder that gap train left, nor the name of an attack")
    if "/" in text:
        raise GapError(f"there is no folder {text}; name one that gap train left, or an attack (see `gap attacks`)")
    raise unknown("attack", name, attack_names())


def _pairings(
    entrant: Entrant, classifiers: list[Classifier], transfer: bool
) -> list[tuple[Classifier, list[Classifier]]]:
    """The classifiers that an attack is made on, each with those that it is judged on."""
    if entrant.artefact:
        return [(classifiers[0], classifiers)]
    return [(source, classifiers if transfer else [source]) for source in classifiers]


def _goal(entrant: Entrant, classifier: Classifier) -> GoalMaker | None:
    """What a trained attack aimed at; None where that cannot be read off this classifier, as the least likely class of
    others."""
    if entrant.artefact is None:
        return None
    card = entrant.artefact.read(AttackCard)
    goal = find_goal(card.goal, classifier.facts.classes)
    alone = len(card.classifiers) == 1 and card.knows(classifier)
    return goal if alone or not goal.needs_clean else None


def _trained_source(entrant: Entrant, classifier: Classifier) -> dict[str, str]:
    """What a row is to say in place of its source: whom a trained attack that meets another classifier was made on."""
    card = entrant.artefact.read(AttackCard) if entrant.artefact else None
    return {"source": card.made_on} if card and not card.knows(classifier) else {}
