"""Robust accuracy worth publishing: AutoAttack, and checks that tell robustness from hidden gradients."""

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
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
    AutoAttackResult,
    auto_attack,
    fast_attacks,
    supports_square,
    supports_targeted,
)
from gap.evaluation.evaluate import quantize_checked
from gap.evaluation.interval import wilson
from gap.evaluation.masking_checks import (
    CheckResult,
    EvaluationBatch,
    SurrogatePGD,
    differentiable,
    exceeds_tolerance,
    run_masking_checks,
)
from gap.evaluation.names import unused_name
from gap.report.tables import Column, Table, html_table, text_table
from gap.threat import Budget

Verdict = Literal["holds", "masked", "inconclusive"]
# The checks look at this many images at most; with fewer right ones than FEWEST nothing is concluded.
CHECK_IMAGES, FEWEST = 200, 50
# How often the search without gradients may ask, where AutoAttack's own is left out.
FEW_QUERIES = 1000
# What may be left unchecked.
NO_SURROGATE = "transfer from a classifier trained without hardening (give one as surrogate)"
NO_SEARCH = "black-box search (Square cannot cover pictures of this size in L2)"
NO_TARGETS = "targeted APGD (its loss needs four classes)"
NO_ADAPTIVE = "attacks trained against it: a generator, a universal perturbation (see adaptive images and attacks)"


@dataclass(frozen=True)
class RobustnessReport:
    """What `gap.judge` finds: how robust a classifier is, and whether that figure can be believed.

    Attributes:
        classifier: the classifier's name.
        fingerprint: a hash of its weights.
        normalizer: its mean and standard deviation.
        data: the name of the data.
        budget: the largest perturbation.
        images: how many images.
        suite: "standard" or "fast".
        autoattack: the parts of AutoAttack that ran.
        clean_accuracy: the share of the images that is classified correctly.
        robust_accuracy: the share that is classified correctly under every attack.
        interval: its 95% Wilson interval.
        attacks: accuracy under attack. Those of `autoattack` each get the images that those before them left; each of
            the others gets all images.
        checks: the signs of gradient masking that were looked for.
        not_evaluated: what was not looked for.
        verdict: "masked" where a check failed, "inconclusive" where too few images are classified correctly to tell,
            else "holds".
        num_correct: how many clean images are classified correctly.
    """

    classifier: str
    fingerprint: str
    normalizer: dict[str, Any]
    data: str
    budget: str
    images: int
    suite: str
    autoattack: list[str]
    clean_accuracy: float
    robust_accuracy: float
    interval: tuple[float, float]
    attacks: dict[str, float]
    checks: list[CheckResult]
    not_evaluated: list[str]
    verdict: Verdict
    num_correct: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return asdict(self) | {"interval": list(self.interval)}

    @property
    def reason(self) -> str:
        """Why the verdict is what it is."""
        return {
            "holds": "no sign that the figure is too high",
            "masked": "a check failed, so the figure is not to be believed",
            "inconclusive": f"{self.num_correct} images are classified correctly, and fewer than {FEWEST} tell nothing;"
            " use more images",
        }[self.verdict]

    @property
    def summary(self) -> str:
        """The figures and the verdict in one line."""
        low, high = self.interval
        return (
            f"{self.classifier} at {self.budget}, {self.images} images of {self.data}: clean {self.clean_accuracy:.2%},"
            f" robust {self.robust_accuracy:.2%} ({low:.2%} to {high:.2%}); verdict: {self.verdict} ({self.reason})"
        )

    def tables(self) -> list[Table]:
        """The accuracy under each attack, and the checks."""
        attacks = [{"attack": name, "accuracy": accuracy} for name, accuracy in self.attacks.items()]
        checks = [check.to_dict() | {"passed": "yes" if check.passed else "NO"} for check in self.checks]
        return [
            Table(attacks, [Column("attack", "attack"), Column("accuracy", "accuracy under attack", ".2%")], "attacks"),
            Table(
                checks,
                [Column("name", "check"), Column("passed", "passed"), Column("details", "details")],
                "checks for gradient masking",
            ),
        ]

    def __str__(self) -> str:
        tables = [f"{table.caption}\n{text_table(table.rows, table.columns)}" for table in self.tables()]
        return "\n\n".join(
            [*tables, "\n".join([*(f"not evaluated: {text}" for text in self.not_evaluated), self.summary])]
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        tables = "".join(html_table(table.rows, table.columns, table.caption) for table in self.tables())
        return f"{tables}<p>{html.escape(self.summary)}</p>"


def evaluate_robustness(
    classifier: Classifier,
    split: Split,
    budget: Budget,
    *,
    images: int | None = None,
    fast: bool = False,
    surrogate: Classifier | None = None,
    others: Sequence[Attack] = (),
    adaptive: Iterable[Attack] = (),
    batch_size: int = 250,
    seed: int = 0,
    data: str = "",
    callback: Callable[[str, float], None] = lambda name, accuracy: None,
) -> RobustnessReport:
    """Attack the first `images` of a labeled split by AutoAttack and others, and look for signs of gradient masking.

    Args:
        classifier: whose robustness is measured.
        split: labeled images.
        budget: the largest perturbation.
        images: how many images, from the first on; None takes all.
        fast: whether AutoAttack's FAB and Square are left out; Square then searches some images, for the checks alone.
        surrogate: a classifier trained in the standard way, for attacks that transfer from it.
        others: more attacks.
        adaptive: attacks that learned against this very classifier, or learn when they are asked for.
        batch_size: images a batch.
        seed: of every random choice.
        data: the name of the data.
        callback: is called with the name of each attack and the accuracy under it.

    References:
        AutoAttack: Croce and Hein, 2020. Signs of gradient masking: Athalye et al., 2018; Carlini et al., 2019.

    Raises:
        GapError: where there is no image, or the budget allows any image.
    """
    count = min(images or len(split), len(split))
    if count == 0:
        raise GapError(f"there are no images to judge on in {data or 'this split'}")
    budget.check(classifier.spec.channels, *classifier.spec.size)
    device = classifier.device
    pictures, labels = next(iter(split.batches([torch.arange(count)], device)))
    batch = EvaluationBatch(classifier, pictures, labels, budget, batch_size)
    torch.manual_seed(seed)
    no_gradient = not differentiable(classifier, pictures)
    classes = classifier.spec.classes
    attacks = (BLACK_BOX,) if no_gradient else fast_attacks(classes) if fast else STANDARD
    found = auto_attack(
        classifier, pictures, labels, budget, attacks=attacks, batch_size=batch_size, seed=seed, tell=callback
    )
    long = PGD(budget, steps=50, restarts=2)
    learned = list(adaptive)
    beside = [long, *others, *learned, *([SurrogatePGD(surrogate, budget)] if surrogate else [])]
    torch.manual_seed(seed)
    robust_to = _robust_images(beside, batch, found, callback, no_gradient=no_gradient)
    searched = supports_square(budget, *classifier.spec.size)
    by_gradients = robust_to.get(long.name, torch.ones_like(found.right))
    checks = [
        *([check_black_box(found, by_gradients, batch, seed)] if searched else []),
        check_autoattack_warnings(found),
    ]
    right = found.right & torch.stack([found.right, *robust_to.values()]).all(dim=0)
    checks += [check_other_attacks(found, robust_to, right)] if robust_to else []
    few = replace(batch, images=pictures[:CHECK_IMAGES], labels=labels[:CHECK_IMAGES])
    checks = [*run_masking_checks(few, surrogate), *checks]
    clean, survivors = round(found.accuracy["clean"] * count), int(right.sum())
    left = {name: kept.double().mean().item() for name, kept in robust_to.items()}
    return RobustnessReport(
        classifier=classifier.name,
        fingerprint=classifier.fingerprint(),
        normalizer={"mean": classifier.spec.mean, "std": classifier.spec.std},
        data=data,
        budget=str(budget),
        images=count,
        suite="fast" if fast else "standard",
        autoattack=[name for name in attacks if name in found.accuracy],
        clean_accuracy=found.accuracy["clean"],
        robust_accuracy=survivors / count,
        interval=wilson(survivors, count),
        attacks={name: value for name, value in found.accuracy.items() if name != "clean"} | left,
        checks=checks,
        not_evaluated=[
            *([] if surrogate else [NO_SURROGATE]),
            *([] if searched else [NO_SEARCH]),
            *([] if supports_targeted(classes) else [NO_TARGETS]),
            *([] if learned else [NO_ADAPTIVE]),
        ],
        verdict=_verdict(checks, clean),
        num_correct=clean,
    )


def _robust_images(
    attacks: Sequence[Attack],
    batch: EvaluationBatch,
    found: AutoAttackResult,
    tell: Callable[[str, float], None],
    *,
    no_gradient: bool,
) -> dict[str, Tensor]:
    """Which images are classified correctly in what each attack makes of them, in 8 bits, by its name.

    The first attack is the report's own; others of its name, or of a part of AutoAttack, are marked as given.
    """
    robust_to: dict[str, Tensor] = {}
    for attack in attacks:
        try:
            with frozen(batch.classifier):
                right = batch.correct(Quantized(attack))
        except GapError:
            if no_gradient:  # an attack that needs the gradient that this classifier hides; a check says so
                continue
            raise
        given = " (given)" if attack is not attacks[0] and attack.name in {*found.accuracy, attacks[0].name} else ""
        name = unused_name(attack.name + given, robust_to)
        robust_to[name] = right
        tell(name, right.double().mean().item())
    return robust_to


@dataclass(frozen=True)
class Quantized:
    """What an attack makes, as the 8-bit pictures that would be saved."""

    attack: Attack

    @property
    def name(self) -> str:
        return self.attack.name

    @property
    def budget(self) -> Budget | None:
        return self.attack.budget

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return quantize_checked(self.attack, images, self.attack(classifier, images, labels))


def check_black_box(found: AutoAttackResult, by_gradients: Tensor, batch: EvaluationBatch, seed: int) -> CheckResult:
    """Search without gradients finds no more than gradients did; on some of the images where AutoAttack left it out.

    `by_gradients` are the images that a long PGD left (N booleans)."""
    images, how = len(found.right), ""
    if BLACK_BOX in found.broken:
        count = int((found.broken[BLACK_BOX] & by_gradients).sum())
    else:
        images = min(images, CHECK_IMAGES)
        count = _run_square(found.right & by_gradients, batch, seed)
        how = f" ({FEW_QUERIES} queries for each of the first {images})"
    if found.doubt:
        how += f"; AutoAttack's own flag: {found.doubt}"
    details = f"{count / images:.1%} of the images fall to {BLACK_BOX} and to no attack that looks at gradients{how}"
    return CheckResult("black-box attacks do not beat white-box ones", not exceeds_tolerance(count, images), details)


def _run_square(right: Tensor, batch: EvaluationBatch, seed: int) -> int:
    """How many of the first images fall to a short search, of those that are right still (N booleans)."""
    standing = right[:CHECK_IMAGES].nonzero().squeeze(1)
    if not len(standing):
        return 0
    images, labels = batch.images[standing], batch.labels[standing]
    left = auto_attack(
        batch.classifier,
        images,
        labels,
        batch.budget,
        attacks=(BLACK_BOX,),
        queries=FEW_QUERIES,
        batch_size=batch.batch_size,
        seed=seed,
    )
    return int((~left.right).sum())


def check_autoattack_warnings(found: AutoAttackResult) -> CheckResult:
    """AutoAttack warns of nothing; its doubt about black-box search is weighed by that check."""
    return CheckResult("AutoAttack raises no other flag", not found.flags, "; ".join(found.flags) or "none")


def check_other_attacks(found: AutoAttackResult, robust_to: dict[str, Tensor], right: Tensor) -> CheckResult:
    """Of what AutoAttack left, the other attacks break nothing, alone or together."""
    count, images = int((found.right & ~right).sum()), len(right)
    alone = [
        f"{(found.right & ~kept).double().mean():.1%} of the images fall to {name}" for name, kept in robust_to.items()
    ]
    return CheckResult("no other attack beats AutoAttack", not exceeds_tolerance(count, images), "; ".join(alone))


def _verdict(checks: list[CheckResult], num_correct: int) -> Verdict:
    if not all(check.passed for check in checks):
        return "masked"
    return "holds" if num_correct >= FEWEST else "inconclusive"
