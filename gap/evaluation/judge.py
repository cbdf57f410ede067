"""Robust accuracy worth publishing: AutoAttack, and a gate that tells robustness from hidden gradients."""

from collections.abc import Callable
from typing import Any, Literal

import torch

from gap.budget import Budget
from gap.classifier import Classifier
from gap.data.splits import Split
from gap.errors import GapError
from gap.evaluation.autoattack import BLACK_BOX, FAST, STANDARD, auto_attack
from gap.evaluation.gate import SLACK, Check, differentiable, run_gate
from gap.evaluation.interval import wilson

Verdict = Literal["holds", "masked", "inconclusive"]
# The gate looks at this many images at most; with fewer right ones than FEWEST nothing is concluded.
GATE_IMAGES, FEWEST = 200, 50


def judge(
    classifier: Classifier,
    split: Split,
    budget: Budget,
    *,
    images: int | None = None,
    fast: bool = False,
    twin: Classifier | None = None,
    batch_size: int = 250,
    seed: int = 0,
    data: str = "",
    tell: Callable[[str, float], None] = lambda name, accuracy: None,
) -> dict[str, Any]:
    """Judge a classifier on the first `images` of a split (labelled); plain values, ready for JSON.

    `robust_accuracy` is the share that is right and withstands every attack, with its 95% Wilson interval. `twin` is a
    classifier trained in the standard way, for the check of transfer. `verdict` is `masked` where a check failed,
    `inconclusive` where the classifier is right on too few images to tell, else `holds`.
    """
    count = min(images or len(split), len(split))
    if count == 0:
        raise GapError(f"there are no images to judge on in {data or 'this split'}")
    budget.check(classifier.facts.channels, *classifier.facts.size)
    device = next(classifier.parameters()).device
    pictures, labels = next(iter(split.batches([torch.arange(count)], device)))
    torch.manual_seed(seed)
    found = auto_attack(
        classifier,
        pictures,
        labels,
        budget,
        attacks=(FAST if fast else STANDARD) if differentiable(classifier, pictures) else (BLACK_BOX,),
        batch_size=batch_size,
        seed=seed,
        tell=tell,
    )
    gate = run_gate(classifier, pictures[:GATE_IMAGES], labels[:GATE_IMAGES], budget, twin)
    if BLACK_BOX in found.accuracy:
        share = found.newly_broken(BLACK_BOX)
        evidence = f"{share:.1%} of the images fall to {BLACK_BOX} and to no attack that looks at gradients"
        gate.append(Check("black-box attacks do not beat white-box ones", share <= SLACK, evidence))
    gate.append(Check("AutoAttack raises no flag", not found.flags, "; ".join(found.flags) or "none"))
    survivors = int(found.right.sum())
    return {
        "classifier": classifier.name,
        "fingerprint": classifier.fingerprint(),
        "data": data,
        "budget": str(budget),
        "images": count,
        "clean_accuracy": found.accuracy["clean"],
        "robust_accuracy": survivors / count,
        "interval": list(wilson(survivors, count)),
        "attacks": {name: value for name, value in found.accuracy.items() if name != "clean"},
        "gate": [check.dump() for check in gate],
        "verdict": _verdict(gate, found.accuracy["clean"] * count),
    }


def _verdict(gate: list[Check], right: float) -> Verdict:
    if not all(check.passed for check in gate):
        return "masked"
    return "holds" if right >= FEWEST else "inconclusive"
