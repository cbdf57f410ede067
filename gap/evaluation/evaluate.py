"""Evaluation of an attack by its 8-bit images."""

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
# The sample of a split is the same in every table, independent of the seed of the attack.
SAMPLE_SEED = 0
# The width of the window of SSIM (Wang et al., 2004); smaller images have no SSIM.
SSIM_WINDOW = 11


@dataclass(frozen=True)
class Example:
    """Example images: clean and adversarial, N x C x H x W in [0, 1], with a caption for each."""

    clean: Tensor
    adversarial: Tensor
    captions: list[str]


@dataclass(frozen=True)
class Evaluation:
    """One row of a table as plain values, and a few example images."""

    row: dict[str, Any]
    example: Example


@dataclass
class _Counts:
    """Counts over images, and lists of the norms and SSIM of each image."""

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
    """Attack the images of a split and count the predictions of a classifier.

    `images` limits their number; the sample is always the same. `source`, if given, is the classifier that the attack
    uses, while `classifier` is the one that is evaluated (transfer). `criterion` adds the success rate of a targeted
    attack, over images whose label is not the target. `accuracy_before_rounding` is that of the adversarial images
    before rounding to 8 bits; all other metrics are those of 8-bit images. Rates are in [0, 1] with 95% Wilson
    intervals, norms are in pixels of [0, 1]. `seconds_per_image` is the time of the attack alone, after one batch of
    warmup. Raises GapError when there is no image, or an attack exceeds its budget.
    """
    if len(split) == 0:
        raise GapError(f"there are no images to evaluate on in {data or 'this split'}")
    count = min(images or len(split), len(split))
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(SAMPLE_SEED))
    indices = order[:count].sort().values
    device = classifier.device
    counts, example = _Counts(), None
    with frozen(classifier, *([source] if source else [])):
        for batch, labels in split.batches(indices.split(batch_size), device):
            clean = to_8bit(batch)
            if example is None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", GapWarning)  # the call below gives the same warnings
                    _time_attack(attack, source or classifier, clean, labels)
                torch.manual_seed(seed)
            unrounded, seconds = _time_attack(attack, source or classifier, clean, labels)
            counts.seconds += seconds
            adversarial = quantize_checked(attack, clean, unrounded)
            with torch.no_grad():
                clean_logits, adversarial_logits = classifier(clean), classifier(adversarial)
                counts.correct_before_rounding += int((classifier(unrounded).argmax(dim=1) == labels).sum())
            _count(counts, clean, adversarial, clean_logits, adversarial_logits, labels, criterion)
            example = example or _example(classifier, clean, adversarial, clean_logits, adversarial_logits)
    assert example is not None
    if counts.undefined:
        warnings.warn(
            f"{classifier.name} returns NaN for {counts.undefined} of {counts.images} images, clean or attacked; what"
            " it predicts there means nothing",
            GapWarning,
            stacklevel=2,
        )
    return Evaluation(_row(counts, attack, classifier, source, data, criterion), example)


def _time_attack(attack: Attack, classifier: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """The adversarial images of an attack, and its time in seconds."""
    _synchronize(images.device)
    start = time.perf_counter()
    adversarial = attack(classifier, images, labels)
    _synchronize(images.device)
    return adversarial, time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def quantize_checked(attack: Attack, clean: Tensor, adversarial: Tensor) -> Tensor:
    """The 8-bit versions of adversarial images; raises GapError when these are outside of the budget or [0, 1]."""
    if not adversarial.isfinite().all():
        raise GapError(f"{attack.name} made pixels that are not numbers")
    if attack.budget is None:
        return quantize_towards(clean, adversarial)
    largest = attack.budget.norm_of(adversarial - clean).max().item()
    if largest > attack.budget.epsilon * (1 + 1e-4) + 1e-6 or adversarial.min() < -1e-6 or adversarial.max() > 1 + 1e-6:
        raise GapError(f"{attack.name} left its budget {attack.budget} or the pixels' range: {largest:g}")
    return attack.budget.quantize(clean, adversarial)


def _count(
    counts: _Counts,
    clean: Tensor,
    adversarial: Tensor,
    clean_logits: Tensor,
    adversarial_logits: Tensor,
    labels: Tensor,
    criterion: CriterionFactory | None,
) -> None:
    clean_predicted, predicted = clean_logits.argmax(dim=1), adversarial_logits.argmax(dim=1)
    counts.images += len(labels)
    counts.undefined += int((clean_logits.isnan() | adversarial_logits.isnan()).any(dim=1).sum())
    counts.clean_correct += int((clean_predicted == labels).sum())
    counts.correct += int((predicted == labels).sum())
    counts.prediction_changed += int((predicted != clean_predicted).sum())
    counts.newly_misclassified += int(((clean_predicted == labels) & (predicted != labels)).sum())
    perturbation = adversarial - clean
    for name, norm in NORMS.items():
        counts.lengths[name].append(norm.length(perturbation).cpu())
    if min(clean.shape[-2:]) >= SSIM_WINDOW:
        counts.ssim.append(ssim(adversarial, clean, SSIM_WINDOW, eps=0.0).mean(dim=(1, 2, 3)).cpu())
    if criterion is not None:
        batch_criterion = criterion(clean_logits, labels)
        if batch_criterion.targeted:
            is_eligible = batch_criterion.classes != labels
            counts.target_eligible += int(is_eligible.sum())
            counts.target_success += int((batch_criterion.is_adversarial(adversarial_logits) & is_eligible).sum())


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
    rates = {
        "clean_accuracy": (counts.clean_correct, counts.images),
        "accuracy_under_attack": (counts.correct, counts.images),
        "accuracy_before_rounding": (counts.correct_before_rounding, counts.images),
        "fooling_rate": (counts.prediction_changed, counts.images),
        "attack_success_rate": (counts.newly_misclassified, counts.clean_correct),
    }
    if counts.target_eligible:
        rates["target_success_rate"] = (counts.target_success, counts.target_eligible)
    for name, (hits, trials) in rates.items():
        row[name] = hits / trials if trials else None
        row[f"{name}_interval"] = list(wilson(hits, trials))
    for name, parts in counts.lengths.items():
        lengths = torch.cat(parts).double()
        row |= {f"{name}_mean": lengths.mean().item(), f"{name}_max": lengths.max().item()}
    return row | {
        "ssim": torch.cat(counts.ssim).mean().item() if counts.ssim else None,
        "seconds_per_image": counts.seconds / counts.images,
    }


def _example(
    classifier: Classifier, clean: Tensor, adversarial: Tensor, clean_logits: Tensor, adversarial_logits: Tensor
) -> Example:
    selection = slice(0, EXAMPLES)
    captions = [
        f"{classifier.label(int(clean_class))} \N{RIGHTWARDS ARROW} {classifier.label(int(adversarial_class))}"
        for clean_class, adversarial_class in zip(
            clean_logits[selection].argmax(dim=1), adversarial_logits[selection].argmax(dim=1), strict=True
        )
    ]
    return Example(clean[selection].cpu(), adversarial[selection].cpu(), captions)
