"""Trained attacks on picture files."""

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
    keep_size: bool = False,
) -> list[dict[str, Any]]:
    """Perturb pictures into `out` and return a row for each: names, predictions, norms in pixels of [0, 1].

    `mean` and `std` are for a `classifier` without a normalizer. A file that cannot be read is warned about and left
    out. Raises GapError when no picture could be read.
    """
    card = artifact.read(AttackCard)
    channels, size = card.channels, card.size
    asked = Budget.parse(budget) if budget else None
    if asked:
        asked.check(channels, *size)
    attack = load_attack_artifact(artifact, asked)
    if classifier is None and (mean is not None or std is not None):
        raise GapError("`mean` and `std` go with `classifier`")
    reader = _load_training_classifier(artifact) if classifier is None else _load_named(artifact, classifier, mean, std)
    rows: list[dict[str, Any]] = []
    taken: set[str] = set()
    for path in [picture for given in paths for picture in find_pictures(given)]:
        try:
            clean = load_image(path, channels, None if keep_size else size).unsqueeze(0).float() / 255
        except GapError as error:
            warnings.warn(f"left out: {error}", GapWarning, stacklevel=2)
            continue
        labels = torch.zeros(1, dtype=torch.int64)
        adversarial = quantize_checked(attack, clean, attack(reader or torch.nn.Identity(), clean, labels))
        name = _unique_name(path.stem, taken)
        write_marker(out)
        save_image(adversarial[0], out / f"{name}.png")
        before, after = _read(reader, clean), _read(reader, adversarial)
        save_image(
            side_by_side(clean[0], adversarial[0], _words(before), _words(after)), out / f"{_comparison_name(name)}.png"
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
    """The classifier that the user named to read the pictures."""
    metadata = artifact.read(AttackCard).classifiers[0]
    reader = load_classifier(
        name, channels=metadata.channels, size=metadata.size, classes=metadata.classes, mean=mean, std=std
    )
    if reader.spec.channels != metadata.channels:
        raise GapError(f"{name} takes {reader.spec.channels} channels, {artifact.folder} makes {metadata.channels}")
    return reader


def _load_training_classifier(artifact: Artifact) -> Classifier | None:
    """The classifier that the attack was trained against, where it is still there."""
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
        reader = load_classifier(
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
    if not metadata.matches(reader):
        warnings.warn(
            f"{metadata.name} has changed since {artifact.folder} was trained against it", GapWarning, stacklevel=3
        )
    return reader


@torch.no_grad()
def _read(reader: Classifier | None, image: Tensor) -> dict[str, Any]:
    if reader is None:
        return {"": None, "_confidence": None}
    with frozen(reader):
        confidence, label = reader(image).softmax(dim=1).max(dim=1)
    return {"": reader.label(int(label)), "_confidence": confidence.item()}


def _words(reading: dict[str, Any]) -> str:
    return "" if reading[""] is None else f"{reading['']} ({reading['_confidence']:.0%})"


def _unique_name(stem: str, taken: set[str]) -> str:
    """A name for a picture that is free, and so is that of what is written beside it; both are then taken."""
    name, number = stem, 2
    while not taken.isdisjoint((name, _comparison_name(name))):
        name, number = f"{stem}-{number}", number + 1
    taken.update((name, _comparison_name(name)))
    return name


def _comparison_name(name: str) -> str:
    return f"{name}.side-by-side"
