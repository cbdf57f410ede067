"""Trained attacks on image files."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gap.attacks.generator.model import AttackCard, load_attack_artifact
from gap.classifiers.classifier import Classifier, load_classifier
from gap.classifiers.registry import runs_user_code, split_name
from gap.core.artifact import Artifact, write_marker
from gap.core.errors import GapError, GapWarning
from gap.core.frozen import frozen
from gap.data.images import find_pictures, load_image
from gap.evaluation.evaluate import quantize_checked
from gap.report.pictures import save_image, side_by_side
from gap.threat import NORMS, Budget


def perturb_files(
    artifact: Artifact,
    paths: Sequence[Path],
    out: Path,
    *,
    classifier: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    budget: str | None = None,
    original_size: bool = False,
) -> list[dict[str, Any]]:
    """Write perturbed images to `out`. Returns a row for each: names, predictions, norms in pixels of [0, 1].

    `mean` and `std` are for a `classifier` without a normalizer. A file that cannot be read is left out, with a
    warning. Raises GapError when no image could be read.
    """
    card = artifact.read(AttackCard)
    channels, size = card.channels, card.size
    given_budget = Budget.parse(budget) if budget else None
    if given_budget:
        given_budget.check(channels, *size)
    attack = load_attack_artifact(artifact, given_budget)
    if classifier is None and (mean is not None or std is not None):
        raise GapError("`mean` and `std` go with `classifier`")
    predictor = (
        _load_training_classifier(artifact) if classifier is None else _load_named(artifact, classifier, mean, std)
    )
    rows: list[dict[str, Any]] = []
    used_names: set[str] = set()
    for path in [image_path for given_path in paths for image_path in find_pictures(given_path)]:
        try:
            clean = load_image(path, channels, None if original_size else size).unsqueeze(0).float() / 255
        except GapError as error:
            warnings.warn(f"left out: {error}", GapWarning, stacklevel=2)
            continue
        labels = torch.zeros(1, dtype=torch.int64)
        adversarial = quantize_checked(attack, clean, attack(predictor or torch.nn.Identity(), clean, labels))
        name = _unique_name(path.stem, used_names)
        write_marker(out)
        save_image(adversarial[0], out / f"{name}.png")
        before, after = _predict(predictor, clean), _predict(predictor, adversarial)
        save_image(
            side_by_side(clean[0], adversarial[0], _caption(before), _caption(after)),
            out / f"{_comparison_name(name)}.png",
        )
        rows.append(
            {
                "picture": str(path),
                "perturbed": f"{name}.png",
                **{f"before{key}": value for key, value in before.items()},
                **{f"after{key}": value for key, value in after.items()},
                **{name: norm.length(adversarial - clean).item() for name, norm in NORMS.items()},
            }
        )
    if not rows:
        raise GapError(f"none of the pictures in {', '.join(map(str, paths))} could be read")
    return rows


def _load_named(artifact: Artifact, name: str, mean: Sequence[float] | None, std: Sequence[float] | None) -> Classifier:
    """The classifier of that name, for the predictions."""
    metadata = artifact.read(AttackCard).classifiers[0]
    classifier = load_classifier(
        name, channels=metadata.channels, size=metadata.size, classes=metadata.classes, mean=mean, std=std
    )
    if classifier.spec.channels != metadata.channels:
        raise GapError(f"{name} takes {classifier.spec.channels} channels, {artifact.folder} makes {metadata.channels}")
    return classifier


def _load_training_classifier(artifact: Artifact) -> Classifier | None:
    """The classifier that the attack was trained against; None, with a warning, if it cannot be loaded."""
    metadata = artifact.read(AttackCard).classifiers[0]
    if runs_user_code(metadata.architecture) or runs_user_code(split_name(metadata.name)[0]):
        warnings.warn(
            f"no labels: {artifact.folder} was trained against {metadata.name}, code that only a card names;"
            " name it with `classifier`",
            GapWarning,
            stacklevel=3,
        )
        return None
    try:
        classifier = load_classifier(
            metadata.name,
            channels=metadata.channels,
            size=metadata.size,
            classes=metadata.classes,
            mean=metadata.mean,
            std=metadata.std,
        )
    except GapError as error:
        warnings.warn(f"no labels: {error}; name one with `classifier`", GapWarning, stacklevel=3)
        return None
    if not metadata.matches(classifier):
        warnings.warn(
            f"{metadata.name} has changed since {artifact.folder} was trained against it", GapWarning, stacklevel=3
        )
    return classifier


@torch.no_grad()
def _predict(classifier: Classifier | None, image: Tensor) -> dict[str, Any]:
    if classifier is None:
        return {"": None, "_confidence": None}
    with frozen(classifier):
        confidence, label = classifier(image).softmax(dim=1).max(dim=1)
    return {"": classifier.label(int(label)), "_confidence": confidence.item()}


def _caption(prediction: dict[str, Any]) -> str:
    return "" if prediction[""] is None else f"{prediction['']} ({prediction['_confidence']:.0%})"


def _unique_name(stem: str, used: set[str]) -> str:
    """An unused name for an image, whose comparison has an unused name too. Adds both to `used`."""
    name, number = stem, 2
    while not used.isdisjoint((name, _comparison_name(name))):
        name, number = f"{stem}-{number}", number + 1
    used.update((name, _comparison_name(name)))
    return name


def _comparison_name(name: str) -> str:
    return f"{name}-side-by-side"
