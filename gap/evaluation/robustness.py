"""Robust accuracy worth publishing: AutoAttack, and a gate that tells robustness from hidden gradients."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gap.attacks.base import Attack
from gap.attacks.gradient import PGD
from gap.classifiers.classifier import Classifier
from gap.core.errors import GapError
from gap.core.frozen import frozen
from gap.data.dataset import Split
from gap.evaluation.autoattack import (
    BLACK_BOX,
    STANDARD,
    Withstood,
    auto_attack,
    can_search,
    can_target,
    fast_attacks,
)
from gap.evaluation.evaluate import quantised
from gap.evaluation.interval import wilson
from gap.evaluation.masking_checks import Bench, Check, FromTwin, differentiable, is_sign, run_gate
from gap.threat import Budget

Verdict = Literal["holds", "masked", "inconclusive"]
# The gate looks at this many images at most; with fewer right ones than FEWEST nothing is concluded.
GATE_IMAGES, FEWEST = 200, 50
# How often the search without gradients may ask, where AutoAttack's own is left out.
FEW_QUERIES = 1000
# What may be left unchecked.
NO_TWIN = "transfer from a standard twin (name one with --twin)"
NO_SEARCH = "black-box search (Square cannot cover pictures of this size in L2)"
NO_TARGETS = "targeted APGD (its loss needs four classes)"
NO_ADAPTIVE = "attacks trained against it: a generator, a universal perturbation (see --adaptive, --attack)"


def judge(
    classifier: Classifier,
    split: Split,
    budget: Budget,
    *,
    images: int | None = None,
    fast: bool = False,
    twin: Classifier | None = None,
    others: Sequence[Attack] = (),
    adaptive: Iterable[Attack] = (),
    batch_size: int = 250,
    seed: int = 0,
    data: str = "",
    tell: Callable[[str, float], None] = lambda name, accuracy: None,
) -> dict[str, Any]:
    """Judge a classifier on the first `images` of a split (labelled); plain values, ready for JSON.

    `robust_accuracy` is the share that is right and withstands every attack, with its 95% Wilson interval. `attacks`
    holds what AutoAttack's parts leave, each of what those before it left, and what a long PGD, each of `others` and
    each of `adaptive` leave of all images by themselves; the last learned against this very classifier, or do so as
    they are asked for. `twin` is a classifier trained in the standard way, for what transfers from it.
    `verdict` is `masked` where a check failed, `inconclusive` where the classifier is right on too few images to tell,
    else `holds`; `unchecked` says what was not looked for. `fast` leaves out AutoAttack's FAB and Square; then Square
    searches some of the images, for the gate alone.
    """
    count = min(images or len(split), len(split))
    if count == 0:
        raise GapError(f"there are no images to judge on in {data or 'this split'}")
    budget.check(classifier.facts.channels, *classifier.facts.size)
    device = classifier.device
    pictures, labels = next(iter(split.batches([torch.arange(count)], device)))
    bench = Bench(classifier, pictures, labels, budget, batch_size)
    torch.manual_seed(seed)
    blind = not differentiable(classifier, pictures)
    classes = classifier.facts.classes
    attacks = (BLACK_BOX,) if blind else fast_attacks(classes) if fast else STANDARD
    found = auto_attack(
        classifier, pictures, labels, budget, attacks=attacks, batch_size=batch_size, seed=seed, tell=tell
    )
    long = PGD(budget, steps=50, restarts=2)
    learned = list(adaptive)
    beside = [long, *others, *learned, *([FromTwin(twin, budget)] if twin else [])]
    torch.manual_seed(seed)
    withstood = _withstood(beside, bench, found, tell, blind=blind)
    searched = can_search(budget, *classifier.facts.size)
    by_gradients = withstood.get(long.name, torch.ones_like(found.right))
    gate = [*([_black_box(found, by_gradients, bench, seed)] if searched else []), _flags(found)]
    right = found.right & torch.stack([found.right, *withstood.values()]).all(dim=0)
    gate += [_beaten(found, withstood, right)] if withstood else []
    few = replace(bench, images=pictures[:GATE_IMAGES], labels=labels[:GATE_IMAGES])
    gate = [*run_gate(few, twin), *gate]
    clean, survivors = round(found.accuracy["clean"] * count), int(right.sum())
    left = {name: kept.double().mean().item() for name, kept in withstood.items()}
    return {
        "classifier": classifier.name,
        "fingerprint": classifier.fingerprint(),
        "normaliser": {"mean": classifier.facts.mean, "std": classifier.facts.std},
        "data": data,
        "budget": str(budget),
        "images": count,
        "autoattack": [name for name in attacks if name in found.accuracy],
        "clean_accuracy": found.accuracy["clean"],
        "robust_accuracy": survivors / count,
        "interval": list(wilson(survivors, count)),
        "attacks": {name: value for name, value in found.accuracy.items() if name != "clean"} | left,
        "gate": [check.dump() for check in gate],
        "unchecked": [
            *([] if twin else [NO_TWIN]),
            *([] if searched else [NO_SEARCH]),
            *([] if can_target(classes) else [NO_TARGETS]),
            *([] if learned else [NO_ADAPTIVE]),
        ],
        "verdict": _verdict(gate, clean),
        "right": clean,
    }


def _withstood(
    attacks: Sequence[Attack], bench: Bench, found: Withstood, tell: Callable[[str, float], None], *, blind: bool
) -> dict[str, Tensor]:
    """Which images are read as labelled in what each attack makes of them, in 8 bits, by its name."""
    withstood: dict[str, Tensor] = {}
    for attack in attacks:
        try:
            with frozen(bench.classifier):
                right = bench.right(InBytes(attack))
        except GapError:
            if blind:  # an attack that needs the gradient that this classifier hides; the gate says so
                continue
            raise
        name = f"{attack.name} (given)" if attack.name in {*found.accuracy, *withstood} else attack.name
        withstood[name] = withstood.get(name, right) & right
        tell(name, right.double().mean().item())
    return withstood


@dataclass(frozen=True)
class InBytes:
    """What an attack makes, as the 8-bit pictures that would be saved."""

    attack: Attack

    @property
    def name(self) -> str:
        return self.attack.name

    @property
    def budget(self) -> Budget | None:
        return self.attack.budget

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return quantised(self.attack, images, self.attack(classifier, images, labels))


def _black_box(found: Withstood, by_gradients: Tensor, bench: Bench, seed: int) -> Check:
    """Search without gradients finds no more than gradients did; on some of the images where AutoAttack left it out.

    `by_gradients` are the images that a long PGD left (N booleans)."""
    images, how = len(found.right), ""
    if BLACK_BOX in found.broken:
        count = int((found.broken[BLACK_BOX] & by_gradients).sum())
    else:
        images = min(images, GATE_IMAGES)
        count = _searched(found.right & by_gradients, bench, seed)
        how = f" ({FEW_QUERIES} queries for each of the first {images})"
    if found.doubt:
        how += f"; AutoAttack's own flag: {found.doubt}"
    evidence = f"{count / images:.1%} of the images fall to {BLACK_BOX} and to no attack that looks at gradients{how}"
    return Check("black-box attacks do not beat white-box ones", not is_sign(count, images), evidence)


def _searched(right: Tensor, bench: Bench, seed: int) -> int:
    """How many of the first images fall to a short search, of those that are right still (N booleans)."""
    standing = right[:GATE_IMAGES].nonzero().squeeze(1)
    if not len(standing):
        return 0
    images, labels = bench.images[standing], bench.labels[standing]
    left = auto_attack(
        bench.classifier,
        images,
        labels,
        bench.budget,
        attacks=(BLACK_BOX,),
        queries=FEW_QUERIES,
        batch_size=bench.batch_size,
        seed=seed,
    )
    return int((~left.right).sum())


def _flags(found: Withstood) -> Check:
    """AutoAttack warns of nothing; its doubt about black-box search is weighed by that check."""
    return Check("AutoAttack raises no other flag", not found.flags, "; ".join(found.flags) or "none")


def _beaten(found: Withstood, withstood: dict[str, Tensor], right: Tensor) -> Check:
    """Of what AutoAttack left, the other attacks break nothing, alone or together."""
    count, images = int((found.right & ~right).sum()), len(right)
    alone = [
        f"{(found.right & ~kept).double().mean():.1%} of the images fall to {name}" for name, kept in withstood.items()
    ]
    return Check("no other attack beats AutoAttack", not is_sign(count, images), "; ".join(alone))


def _verdict(gate: list[Check], right: int) -> Verdict:
    if not all(check.passed for check in gate):
        return "masked"
    return "holds" if right >= FEWEST else "inconclusive"
