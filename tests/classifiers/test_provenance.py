"""Fingerprints of data and classifiers: equal for equal content, different after a change."""

from pathlib import Path

import torch
from PIL import Image

from gap.classifiers.classifier import load_classifier
from gap.classifiers.provenance import data_fingerprints
from gap.data.image_folder import load_folder
from gap.data.registry import load_data


def test_data_fingerprints_changed_weight_changes_only_that_of_the_classifier() -> None:
    torch.manual_seed(0)
    data, classifier = load_data("mnist-5k"), load_classifier("mnist-cnn")
    fingerprints = data_fingerprints(data, [classifier])
    splits = {f"the {split} images of mnist-5k" for split in ("train", "validation", "test")}
    assert fingerprints.keys() == splits | {"the classifier mnist-cnn"}
    assert data_fingerprints(load_data("mnist-5k"), [classifier]) == fingerprints
    with torch.no_grad():
        next(classifier.parameters()).flatten()[0] += 1e-3
    changed = data_fingerprints(data, [classifier])
    assert {name for name in fingerprints if fingerprints[name] != changed[name]} == {"the classifier mnist-cnn"}


def test_data_fingerprints_edited_label_or_overwritten_image_changes_one_split(tmp_path: Path) -> None:
    rows = [f"{number}.png,{number % 2}" for number in range(10)]
    for number in range(10):
        Image.new("L", (3, 3), number).save(tmp_path / f"{number}.png")

    def fingerprints() -> dict[str, str]:
        (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
        return data_fingerprints(load_folder(tmp_path, 1, (3, 3)))

    before = fingerprints()
    assert fingerprints() == before
    rows[0] = "0.png,7"
    relabeled = fingerprints()
    assert sum(relabeled[name] != before[name] for name in before) == 1
    Image.new("L", (4, 4), 200).save(tmp_path / "0.png")
    overwritten = fingerprints()
    assert sum(overwritten[name] != relabeled[name] for name in before) == 1
