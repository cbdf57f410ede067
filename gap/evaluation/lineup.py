"""A line-up: attacks by name or artefact, against classifiers, one row for each pair."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gap.artefact import Artefact, is_artefact, open_artefact
from gap.attacks.goals import GoalMaker, find_goal
from gap.attacks.named import attack_names, named_attack
from gap.attacks.protocol import Attack
from gap.attacks.trained import KINDS, AttackCard, attack_from, own_budget
from gap.budget import Budget
from gap.classifier import Classifier
from gap.errors import GapError, GapWarning, unknown
from gap.evaluation.evaluate import Evaluation, evaluate
from gap.setting import Setting


@dataclass(frozen=True)
class Entrant:
    """One attack of a line-up: a spec such as `pgd:steps=100`, or what `gap train` left."""

    text: str
    artefact: Artefact | None = None

    @property
    def budget(self) -> Budget | None:
        """The budget it was trained at, where it was."""
        return own_budget(self.artefact) if self.artefact else None

    @property
    def unbounded(self) -> bool:
        """Whether it can do without a budget: an image made directly."""
        return self.artefact is not None and self.artefact.kind == "direct generator"


def find_entrants(texts: Sequence[str]) -> list[Entrant]:
    """Read a line-up; raises GapError for what is neither an attack's name nor a trained artefact."""
    return [_find_entrant(text) for text in texts]


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
    budget: Budget | None,
    *,
    own_budgets: bool = False,
    transfer: bool = False,
    images: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
) -> Iterator[Evaluation]:
    """Evaluate every entrant on every classifier's test images, yielding as they come.

    `own_budgets` leaves trained entrants at the budget they were trained at. An untrained attack looks at the
    classifier it is judged on; with `transfer`, at each classifier in turn (a transfer matrix). Raises GapError when an
    artefact cannot take these images.
    """
    if budget:
        budget.check(setting.data.channels, *setting.data.size)
    for entrant in entrants:
        sources: list[Classifier | None] = [None]
        if transfer and entrant.artefact is None:
            sources = list(setting.classifiers)
        for source in sources:
            for classifier in setting.classifiers:
                at = entrant.budget if own_budgets and entrant.artefact else budget
                attack = _make(entrant, at, source or classifier, setting, seed)
                yield evaluate(
                    attack,
                    classifier,
                    setting.data.test,
                    images=images,
                    batch_size=batch_size,
                    source=source,
                    goal=_goal(entrant, setting),
                    data=setting.data.name,
                    seed=seed,
                )


def check_artefact(artefact: Artefact, classifier: Classifier, size: tuple[int, int]) -> None:
    """Warn where a trained attack meets images of another size, or another classifier; raise GapError where it cannot
    be applied."""
    card, channels = artefact.read(AttackCard), classifier.facts.channels
    if card.channels != channels:
        raise GapError(f"{artefact.folder} takes {card.channels}-channel images, {classifier.name} takes {channels}")
    if card.size != size:
        sizes = ["x".join(map(str, each)) for each in (card.size, size)]
        warnings.warn(
            f"{artefact.folder} was trained at {sizes[0]} pixels and meets {sizes[1]}", GapWarning, stacklevel=2
        )
    known = {told.fingerprint: told.name for told in card.classifiers}
    if classifier.fingerprint() not in known:
        trained = " and ".join(known.values())
        warnings.warn(
            f"{artefact.folder} was trained against {trained}, not {classifier.name} as it is: this is transfer",
            GapWarning,
            stacklevel=2,
        )


def _find_entrant(text: str) -> Entrant:
    if is_artefact(Path(text)):
        return Entrant(text, open_artefact(Path(text), *KINDS))
    name = text.partition(":")[0]
    if name in attack_names():
        return Entrant(text)
    if Path(text).exists():
        raise GapError(f"{text} is not a folder that gap train left, nor the name of an attack")
    raise unknown("attack", name, attack_names())


def _make(entrant: Entrant, budget: Budget | None, source: Classifier, setting: Setting, seed: int) -> Attack:
    if entrant.artefact:
        check_artefact(entrant.artefact, source, setting.data.size)
        return attack_from(entrant.artefact, budget, next(source.parameters()).device)
    if budget is None:
        raise GapError(f"{entrant.text} needs a budget; give --budget, for example linf:8/255")
    torch.manual_seed(seed)
    device = next(source.parameters()).device

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        train = setting.data.train
        return train.batches(torch.randperm(len(train)).split(100), device)

    return named_attack(entrant.text, budget, source, batches)


def _goal(entrant: Entrant, setting: Setting) -> GoalMaker | None:
    if entrant.artefact is None:
        return None
    return find_goal(entrant.artefact.read(AttackCard).goal, setting.classes)
