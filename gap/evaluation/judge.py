"""Robust accuracy worth publishing: AutoAttack, and a gate that tells robustness from hidden gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gap.attacks.gradient import PGD
from gap.attacks.protocol import Attack
from gap.budget import Budget
from gap.classifier import Classifier
from gap.data.splits import Split
from gap.errors import GapError
from gap.evaluation.autoattack import BLACK_BOX, FAST, STANDARD, auto_attack
from gap.evaluation.evaluate import quantised
from gap.evaluation.gate import SLACK, Check, differentiable, run_gate
from gap.evaluation.interval import wilson
from gap.frozen import frozen

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
    others: Sequence[Attack] = (),
    batch_size: int = 250,
    seed: int = 0,
    data: str = "",
    tell: Callable[[str, float], None] = lambda name, accuracy: None,
) -> dict[str, Any]:
    """Judge a classifier on the first `images` of a split (labelled); plain values, ready for JSON.

    `robust_accuracy` is the share that is right and withstands every attack, with its 95% Wilson interval. `attacks`
    holds what AutoAttack's parts leave, each of what those before it left, and what a long PGD and each of `others`
    leave of all images by themselves. `twin` is a classifier trained in the standard way, for what transfers from it.
    `verdict` is `masked` where a check failed, `inconclusive` where the classifier is right on too few images to tell,
    else `holds`.
    """
    count = min(images or len(split), len(split))
    if count == 0:
        raise GapError(f"there are no images to judge on in {data or 'this split'}")
    budget.check(classifier.facts.channels, *classifier.facts.size)
    device = next(classifier.parameters()).device
    pictures, labels = next(iter(split.batches([torch.arange(count)], device)))
    torch.manual_seed(seed)
    blind = not differentiable(classifier, pictures)
    found = auto_attack(
        classifier,
        pictures,
        labels,
        budget,
        attacks=(BLACK_BOX,) if blind else FAST if fast else STANDARD,
        batch_size=batch_size,
        seed=seed,
        tell=tell,
    )
    others = [PGD(budget, steps=50, restarts=2), *others]
    if twin:
        others = [*others, FromTwin(twin, PGD(budget))]
    left: dict[str, float] = {}
    beaten: list[tuple[str, float]] = []
    for attack in others:
        try:
            withstood = _withstood(attack, classifier, pictures, labels, batch_size)
        except GapError:
            if blind:  # an attack that needs the gradient that this classifier hides; the gate says so
                continue
            raise
        name = attack.name if attack.name not in found.accuracy else f"{attack.name} (given)"
        left[name] = withstood.double().mean().item()
        tell(name, left[name])
        beaten.append((name, (found.right & ~withstood).double().mean().item()))
        found.right &= withstood
    gate = run_gate(classifier, pictures[:GATE_IMAGES], labels[:GATE_IMAGES], budget, twin)
    if BLACK_BOX in found.accuracy:
        share = found.newly_broken(BLACK_BOX)
        evidence = f"{share:.1%} of the images fall to {BLACK_BOX} and to no attack that looks at gradients"
        gate.append(Check("black-box attacks do not beat white-box ones", share <= SLACK, evidence))
    if beaten:
        evidence = "; ".join(f"{share:.1%} of the images fall to {name} alone" for name, share in beaten)
        gate.append(Check("no other attack beats AutoAttack", all(share <= SLACK for _, share in beaten), evidence))
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
        "attacks": {name: value for name, value in found.accuracy.items() if name != "clean"} | left,
        "gate": [check.dump() for check in gate],
        "verdict": _verdict(gate, found.accuracy["clean"] * count),
        "right": round(found.accuracy["clean"] * count),
    }


@dataclass(frozen=True)
class FromTwin:
    """What an attack makes of another classifier than the one it meets: a transfer."""

    twin: Classifier
    attack: PGD

    @property
    def name(self) -> str:
        return f"{self.attack.name} on {self.twin.name}"

    @property
    def budget(self) -> Budget:
        return self.attack.budget

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return self.attack(self.twin, images, labels)


def _withstood(attack: Attack, classifier: Classifier, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """Which of N images are read as labelled in what an attack makes of them, in 8 bits."""
    right = []
    for part, own in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        made = quantised(attack, part, attack(classifier, part, own))
        with frozen(classifier), torch.no_grad():
            right.append(classifier(made).argmax(dim=1) == own)
    return torch.cat(right)


def _verdict(gate: list[Check], right: float) -> Verdict:
    if not all(check.passed for check in gate):
        return "masked"
    return "holds" if right >= FEWEST else "inconclusive"
