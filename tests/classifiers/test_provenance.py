from pathlib import Path

import torch
from PIL import Image

from gap.classifiers.classifier import load_classifier
from gap.classifiers.provenance import data_fingerprints
from gap.data.image_folder import load_folder
from gap.data.registry import load_data


def test_what_is_the_same_is_known_again_and_what_is_not_is_told_apart() -> None:
    torch.manual_seed(0)
    data, classifier = load_data("mnist-5k"), load_classifier("mnist-cnn")
    made_of = data_fingerprints(data, [classifier])
    splits = {f"the {split} images of mnist-5k" for split in ("train", "validation", "test")}
    assert made_of.keys() == splits | {"the classifier mnist-cnn"}
    assert data_fingerprints(load_data("mnist-5k"), [classifier]) == made_of
    with torch.no_grad():
        next(classifier.parameters()).flatten()[0] += 1e-3
    changed = data_fingerprints(data, [classifier])
    assert {name for name in made_of if made_of[name] != changed[name]} == {"the classifier mnist-cnn"}


def test_edited_labels_and_overwritten_pictures_are_told_apart(tmp_path: Path) -> None:
    rows = [f"{number}.png,{number % 2}" for number in range(10)]
    for number in range(10):
        Image.new("L", (3, 3), number).save(tmp_path / f"{number}.png")

    def made_of() -> dict[str, str]:
        (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
        return data_fingerprints(load_folder(tmp_path, 1, (3, 3)))

    before = made_of()
    assert made_of() == before
    rows[0] = "0.png,7"
    relabeled = made_of()
    assert sum(relabeled[name] != before[name] for name in before) == 1
    Image.new("L", (4, 4), 200).save(tmp_path / "0.png")
    overwritten = made_of()
    assert sum(overwritten[name] != relabeled[name] for name in before) == 1
