"""How well an attack does: every figure is of the 8-bit pictures that would be saved."""

import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from kornia.metrics import ssim
from torch import Tensor

from gap.attacks.base import Attack
from gap.attacks.criteria import CriterionFactory
from gap.classifiers.classifier import Classifier
from gap.core.errors import GapError, GapWarning
from gap.core.frozen import frozen
from gap.data.dataset import Split
from gap.evaluation.interval import wilson
from gap.threat import NORMS, quantize_towards, to_8bit

EXAMPLES = 8
# The images that stand for a split are the same in every table, whatever the seed of the attack.
SAMPLE_SEED = 0
# The window of SSIM (Wang et al., 2004) is 11 pixels wide; smaller pictures have no such figure.
SSIM_WINDOW = 11


@dataclass(frozen=True)
class Example:
    """Pictures to look at: clean and adversarial, N x C x H x W in [0, 1], and a caption for each."""

    clean: Tensor
    adversarial: Tensor
    captions: list[str]


@dataclass(frozen=True)
class Evaluation:
    """One row of a table, ready for JSON, and a few pictures."""

    row: dict[str, Any]
    example: Example


@dataclass
class _Counts:
    """Sums over images. Counts are whole numbers; norms and SSIM are kept image by image."""

    images: int = 0
    seconds: float = 0.0
    clean_correct: int = 0
    correct: int = 0
    correct_before_rounding: int = 0
    undefined: int = 0
    prediction_changed: int = 0
    newly_misclassified: int = 0
    target_eligible: int = 0
    target_success: int = 0
    lengths: dict[str, list[Tensor]] = field(default_factory=lambda: {name: [] for name in NORMS})
    ssim: list[Tensor] = field(default_factory=list)


def evaluate_attack(
    attack: Attack,
    classifier: Classifier,
    split: Split,
    *,
    images: int | None = None,
    batch_size: int = 250,
    source: Classifier | None = None,
    criterion: CriterionFactory | None = None,
    data: str = "",
    seed: int = 0,
) -> Evaluation:
    """Attack the images of a split and count what a classifier makes of them.

    `images` limits how many, drawn once and for all. `source`, where given, is the classifier that the attack
    looks at while `classifier` is the one judged: a transfer. `criterion` adds the success of a targeted attack, among
    images whose label is not the target already. `accuracy_before_rounding` is that under the attack's own images,
    before 8 bits; all other figures are of 8-bit images. Rates are shares of [0, 1] with 95% Wilson intervals; norms
    are in pixels of [0, 1]. `seconds_per_image` is the attack alone, after one batch that is not timed. Raises GapError
    when there is no image, or an attack leaves its budget.
    """
    if len(split) == 0:
        raise GapError(f"there are no images to evaluate on in {data or 'this split'}")
    count = min(images or len(split), len(split))
    drawn = torch.randperm(len(split), generator=torch.Generator().manual_seed(SAMPLE_SEED))
    chosen = drawn[:count].sort().values
    device = classifier.device
    counts, example = _Counts(), None
    with frozen(classifier, *([source] if source else [])):
        for batch, labels in split.batches(chosen.split(batch_size), device):
            clean = to_8bit(batch)
            if example is None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", GapWarning)  # the same is said of the call that counts
                    _timed(attack, source or classifier, clean, labels)
                torch.manual_seed(seed)
            unrounded, seconds = _timed(attack, source or classifier, clean, labels)
            counts.seconds += seconds
            adversarial = quantize_checked(attack, clean, unrounded)
            with torch.no_grad():
                before, after = classifier(clean), classifier(adversarial)
                counts.correct_before_rounding += int((classifier(unrounded).argmax(dim=1) == labels).sum())
            _count(counts, clean, adversarial, before, after, labels, criterion)
            example = example or _example(classifier, clean, adversarial, before, after)
    assert example is not None
    if counts.undefined:
        warnings.warn(
            f"{classifier.name} returns NaN for {counts.undefined} of {counts.images} images, clean or attacked; what"
            " it predicts there means nothing",
            GapWarning,
            stacklevel=2,
        )
    return Evaluation(_row(counts, attack, classifier, source, data, criterion), example)


def _timed(attack: Attack, classifier: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """An attack's images, and the seconds it took."""
    _synchronize(images.device)
    started = time.perf_counter()
    adversarial = attack(classifier, images, labels)
    _synchronize(images.device)
    return adversarial, time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def quantize_checked(attack: Attack, clean: Tensor, adversarial: Tensor) -> Tensor:
    """The 8-bit pictures of an attack's images; raises GapError when they are not inside its budget and [0, 1]."""
    if not adversarial.isfinite().all():
        raise GapError(f"{attack.name} made pixels that are not numbers")
    if attack.budget is None:
        return quantize_towards(clean, adversarial)
    over = attack.budget.norm_of(adversarial - clean).max().item()
    if over > attack.budget.epsilon * (1 + 1e-4) + 1e-6 or adversarial.min() < -1e-6 or adversarial.max() > 1 + 1e-6:
        raise GapError(f"{attack.name} left its budget {attack.budget} or the pixels' range: {over:g}")
    return attack.budget.quantize(clean, adversarial)


def _count(
    counts: _Counts,
    clean: Tensor,
    adversarial: Tensor,
    before: Tensor,
    after: Tensor,
    labels: Tensor,
    criterion: CriterionFactory | None,
) -> None:
    was, now = before.argmax(dim=1), after.argmax(dim=1)
    counts.images += len(labels)
    counts.undefined += int((before.isnan() | after.isnan()).any(dim=1).sum())
    counts.clean_correct += int((was == labels).sum())
    counts.correct += int((now == labels).sum())
    counts.prediction_changed += int((now != was).sum())
    counts.newly_misclassified += int(((was == labels) & (now != labels)).sum())
    perturbation = adversarial - clean
    for name, norm in NORMS.items():
        counts.lengths[name].append(norm.length(perturbation).cpu())
    if min(clean.shape[-2:]) >= SSIM_WINDOW:
        counts.ssim.append(ssim(adversarial, clean, SSIM_WINDOW, eps=0.0).mean(dim=(1, 2, 3)).cpu())
    if criterion is not None:
        aim = criterion(before, labels)
        if aim.targeted:
            is_open = aim.classes != labels
            counts.target_eligible += int(is_open.sum())
            counts.target_success += int((aim.is_adversarial(after) & is_open).sum())


def _row(
    counts: _Counts,
    attack: Attack,
    classifier: Classifier,
    source: Classifier | None,
    data: str,
    criterion: CriterionFactory | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "attack": attack.name,
        "classifier": classifier.name,
        "source": source.name if source else classifier.name,
        "data": data,
        "budget": str(attack.budget) if attack.budget else None,
        "images": counts.images,
    }
    shares = {
        "clean_accuracy": (counts.clean_correct, counts.images),
        "accuracy_under_attack": (counts.correct, counts.images),
        "accuracy_before_rounding": (counts.correct_before_rounding, counts.images),
        "fooling_rate": (counts.prediction_changed, counts.images),
        "attack_success_rate": (counts.newly_misclassified, counts.clean_correct),
    }
    if counts.target_eligible:
        shares["target_success_rate"] = (counts.target_success, counts.target_eligible)
    for name, (hits, trials) in shares.items():
        row[name] = hits / trials if trials else None
        row[f"{name}_interval"] = list(wilson(hits, trials))
    for name, parts in counts.lengths.items():
        lengths = torch.cat(parts).double()
        row |= {f"{name}_mean": lengths.mean().item(), f"{name}_max": lengths.max().item()}
    return row | {
        "ssim": torch.cat(counts.ssim).mean().item() if counts.ssim else None,
        "seconds_per_image": counts.seconds / counts.images,
    }


def _example(classifier: Classifier, clean: Tensor, adversarial: Tensor, before: Tensor, after: Tensor) -> Example:
    few = slice(0, EXAMPLES)
    captions = [
        f"{classifier.label(int(was))} \N{RIGHTWARDS ARROW} {classifier.label(int(now))}"
        for was, now in zip(before[few].argmax(dim=1), after[few].argmax(dim=1), strict=True)
    ]
    return Example(clean[few].cpu(), adversarial[few].cpu(), captions)
