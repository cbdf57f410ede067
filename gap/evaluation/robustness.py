"""Robust accuracy by AutoAttack and further attacks, with checks for gradient masking."""

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
# The checks use at most CHECK_IMAGES images. With fewer than FEWEST correct ones, the verdict is inconclusive.
CHECK_IMAGES, FEWEST = 200, 50
# The number of queries of Square in the checks, where it was not a part of AutoAttack.
FEW_QUERIES = 1000
# Parts of an evaluation that may be missing.
NO_SURROGATE = "transfer from a classifier trained without hardening (give one as surrogate)"
NO_SEARCH = "black-box search (Square supports images of this size only under Linf)"
NO_TARGETS = "targeted APGD (its loss needs four classes)"
NO_ADAPTIVE = "attacks trained against it: a generator, a universal perturbation (see adaptive images and attacks)"


@dataclass(frozen=True)
class RobustnessReport:
    """The result of `gap.judge`: the robust accuracy of a classifier, and whether it is reliable.

    Attributes:
        classifier: the classifier's name.
        fingerprint: a hash of its weights.
        normalizer: its mean and standard deviation.
        data: the name of the data.
        budget: the largest perturbation.
        images: the number of images.
        suite: "standard" or "fast".
        autoattack: the parts of AutoAttack that ran.
        clean_accuracy: the share of the images that is classified correctly.
        robust_accuracy: the share that is classified correctly under every attack.
        interval: its 95% Wilson interval.
        attacks: accuracy under each attack. The attacks of `autoattack` get the images that the earlier ones did not
            fool; the others get all images.
        checks: the results of the checks for gradient masking.
        not_evaluated: the checks and attacks that did not run.
        verdict: "masked" where a check failed, "inconclusive" where too few images are classified correctly, else
            "holds".
        num_correct: the number of clean images that are classified correctly.
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
        """All values as plain values for JSON."""
        return asdict(self) | {"interval": list(self.interval)}

    @property
    def reason(self) -> str:
        """The reason for the verdict."""
        return {
            "holds": "no sign that the figure is too high",
            "masked": "a check failed, so the figure is not to be believed",
            "inconclusive": f"{self.num_correct} images are classified correctly, and fewer than {FEWEST} tell nothing;"
            " use more images",
        }[self.verdict]

    @property
    def summary(self) -> str:
        """The accuracies and the verdict in one line."""
        low, high = self.interval
        return (
            f"{self.classifier} at {self.budget}, {self.images} images of {self.data}: clean {self.clean_accuracy:.2%},"
            f" robust {self.robust_accuracy:.2%} ({low:.2%} to {high:.2%}); verdict: {self.verdict} ({self.reason})"
        )

    def tables(self) -> list[Table]:
        """The tables of the accuracy under each attack and of the checks."""
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
        """The HTML that a notebook shows."""
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
    """Attack the first `images` of a labeled split by AutoAttack and other attacks, and check for gradient masking.

    Args:
        classifier: the classifier to evaluate.
        split: labeled images.
        budget: the largest perturbation.
        images: the number of images, which are the first ones; by default all.
        fast: whether AutoAttack's FAB and Square are left out. The checks then run Square on some images.
        surrogate: a classifier with standard training, for transfer attacks.
        others: further attacks.
        adaptive: attacks that are trained against this classifier, possibly while they are iterated.
        batch_size: images per batch.
        seed: the seed of all random choices.
        data: the name of the data.
        callback: a function that is called with the name of each attack and the accuracy under it.

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
    batch_images, labels = next(iter(split.batches([torch.arange(count)], device)))
    batch = EvaluationBatch(classifier, batch_images, labels, budget, batch_size)
    torch.manual_seed(seed)
    no_gradient = not differentiable(classifier, batch_images)
    classes = classifier.spec.classes
    attacks = (BLACK_BOX,) if no_gradient else fast_attacks(classes) if fast else STANDARD
    result = auto_attack(
        classifier, batch_images, labels, budget, attacks=attacks, batch_size=batch_size, seed=seed, tell=callback
    )
    long = PGD(budget, steps=50, restarts=2)
    adaptive_attacks = list(adaptive)
    further_attacks = [long, *others, *adaptive_attacks, *([SurrogatePGD(surrogate, budget)] if surrogate else [])]
    torch.manual_seed(seed)
    robust_to = _robust_images(further_attacks, batch, result, callback, no_gradient=no_gradient)
    square_supported = supports_square(budget, *classifier.spec.size)
    robust_to_pgd = robust_to.get(long.name, torch.ones_like(result.right))
    checks = [
        *([check_black_box(result, robust_to_pgd, batch, seed)] if square_supported else []),
        check_autoattack_warnings(result),
    ]
    robust = result.right & torch.stack([result.right, *robust_to.values()]).all(dim=0)
    checks += [check_other_attacks(result, robust_to, robust)] if robust_to else []
    check_batch = replace(batch, images=batch_images[:CHECK_IMAGES], labels=labels[:CHECK_IMAGES])
    checks = [*run_masking_checks(check_batch, surrogate), *checks]
    num_correct, num_robust = round(result.accuracy["clean"] * count), int(robust.sum())
    accuracies = {name: correct.double().mean().item() for name, correct in robust_to.items()}
    return RobustnessReport(
        classifier=classifier.name,
        fingerprint=classifier.fingerprint(),
        normalizer={"mean": classifier.spec.mean, "std": classifier.spec.std},
        data=data,
        budget=str(budget),
        images=count,
        suite="fast" if fast else "standard",
        autoattack=[name for name in attacks if name in result.accuracy],
        clean_accuracy=result.accuracy["clean"],
        robust_accuracy=num_robust / count,
        interval=wilson(num_robust, count),
        attacks={name: value for name, value in result.accuracy.items() if name != "clean"} | accuracies,
        checks=checks,
        not_evaluated=[
            *([] if surrogate else [NO_SURROGATE]),
            *([] if square_supported else [NO_SEARCH]),
            *([] if supports_targeted(classes) else [NO_TARGETS]),
            *([] if adaptive_attacks else [NO_ADAPTIVE]),
        ],
        verdict=_verdict(checks, num_correct),
        num_correct=num_correct,
    )


def _robust_images(
    attacks: Sequence[Attack],
    batch: EvaluationBatch,
    result: AutoAttackResult,
    callback: Callable[[str, float], None],
    *,
    no_gradient: bool,
) -> dict[str, Tensor]:
    """Which images are classified correctly under each attack, in 8 bits, by the name of the attack.

    The first attack is that of the report. Other attacks with its name, or with that of a part of AutoAttack, get the
    suffix "(given)".
    """
    robust_to: dict[str, Tensor] = {}
    for attack in attacks:
        try:
            with frozen(batch.classifier):
                correct = batch.correct(Quantized(attack))
        except GapError:
            if no_gradient:  # the attack needs a gradient, and a check reports that there is none
                continue
            raise
        suffix = " (given)" if attack is not attacks[0] and attack.name in {*result.accuracy, attacks[0].name} else ""
        name = unused_name(attack.name + suffix, robust_to)
        robust_to[name] = correct
        callback(name, correct.double().mean().item())
    return robust_to


@dataclass(frozen=True)
class Quantized:
    """An attack with its adversarial images rounded to 8 bits."""

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
    """Check that Square fools no images that gradient attacks do not fool.

    If AutoAttack ran without Square, Square runs on some of the images. `by_gradients` are N booleans: the images that
    are robust to a long PGD.
    """
    images, note = len(found.right), ""
    if BLACK_BOX in found.broken:
        count = int((found.broken[BLACK_BOX] & by_gradients).sum())
    else:
        images = min(images, CHECK_IMAGES)
        count = _run_square(found.right & by_gradients, batch, seed)
        note = f" ({FEW_QUERIES} queries for each of the first {images})"
    if found.doubt:
        note += f"; AutoAttack's own flag: {found.doubt}"
    details = (
        f"{count / images:.1%} of the images are misclassified under {BLACK_BOX} and under no white-box attack{note}"
    )
    return CheckResult("black-box attacks do not beat white-box ones", not exceeds_tolerance(count, images), details)


def _run_square(robust: Tensor, batch: EvaluationBatch, seed: int) -> int:
    """How many of the first images a short run of Square fools, of those that are still correct (N booleans)."""
    active = robust[:CHECK_IMAGES].nonzero().squeeze(1)
    if not len(active):
        return 0
    images, labels = batch.images[active], batch.labels[active]
    result = auto_attack(
        batch.classifier,
        images,
        labels,
        batch.budget,
        attacks=(BLACK_BOX,),
        queries=FEW_QUERIES,
        batch_size=batch.batch_size,
        seed=seed,
    )
    return int((~result.right).sum())


def check_autoattack_warnings(found: AutoAttackResult) -> CheckResult:
    """Check that AutoAttack has no warnings, except that about black-box search, which has a check of its own."""
    return CheckResult("AutoAttack raises no other flag", not found.flags, "; ".join(found.flags) or "none")


def check_other_attacks(found: AutoAttackResult, robust_to: dict[str, Tensor], right: Tensor) -> CheckResult:
    """Check that the other attacks, taken together, fool no images that AutoAttack did not fool."""
    count, images = int((found.right & ~right).sum()), len(right)
    texts = [
        f"{(found.right & ~correct).double().mean():.1%} of the images are misclassified under {name}, and not under"
        " AutoAttack"
        for name, correct in robust_to.items()
    ]
    return CheckResult("no other attack beats AutoAttack", not exceeds_tolerance(count, images), "; ".join(texts))


def _verdict(checks: list[CheckResult], num_correct: int) -> Verdict:
    if not all(check.passed for check in checks):
        return "masked"
    return "holds" if num_correct >= FEWEST else "inconclusive"
