"""`folder:PATH`: a dataset of a folder of images, with splits and labels from its structure."""

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gap.core.errors import GapError, GapWarning
from gap.core.paths import exists, expanded, is_folder
from gap.data.class_names import abbreviate, are_numbers, sort_names
from gap.data.dataset import SEED, Dataset, ImageFolderSplit, random_split_indices, validation_count
from gap.data.images import SUFFIXES, find_pictures, is_image, is_system_file, list_pictures

TEST_SHARE = 0.2
MIN_IMAGES_TO_SPLIT = 5
LARGEST_INDEX = 10**6
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class _LabeledFiles:
    paths: Sequence[Path]
    labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    classes: int | None = None
    labels_index_model: bool = False


def load_folder(path: str | Path, channels: int, size: tuple[int, int]) -> Dataset:
    """The images of a folder, loaded in batches with these channels and this size (H, W).

    The folder has one of three structures:

    - `train/` and `test/` or `val/`, each with a folder for each class. `SPLIT_NAMES` has further names of splits, in
      upper or lower case. Without `test/`, `val/` is the test set.
    - A folder for each class.
    - Images, with or without a `labels.csv` of `file,label` rows. A label is a class name, or a class index of the
      classifier.

    Classes are numbered in the order of their names, by value if all names are whole numbers. A class folder without
    images is left out, with a warning. Without a test folder, 20% of the images are the test set, or all if there are
    fewer than five. Without a validation folder, 5% of the training images are the validation set.

    Raises GapError for a folder that is missing or has no images, for classes or labels that do not match the images,
    and for two folders of the same split.
    """
    root = expanded(path)
    if not is_folder(root):
        raise GapError(f"{root} is {'not a folder' if exists(root) else 'missing'}; name a folder of pictures")
    parts = _find_splits(root)
    if parts:
        images, (train, validation, test), split_description = _split_by_folders(parts)
    else:
        images = _read_flat(root) if (root / "labels.csv").exists() or not _folders(root) else _read_classes(root)
        train, validation, test = _random_split(len(images.paths))
        split_description = f"test 20%, validation 5% of the rest, by seed {SEED}"

    def make_split(indices: Tensor) -> ImageFolderSplit:
        labels = None if images.labels is None else images.labels[indices]
        return ImageFolderSplit(tuple(images.paths[index] for index in indices.tolist()), labels, channels, size, root)

    return Dataset(
        name=f"folder:{path}",
        train=make_split(train),
        validation=make_split(validation),
        test=make_split(test),
        channels=channels,
        size=size,
        class_names=images.class_names,
        classes=images.classes,
        source=f"picture files of {root}; their owner's terms",
        split_description=split_description,
        labels_index_model=images.labels_index_model,
        labels_may_be_names=images.labels_index_model,
        sorted_classes=images.class_names is not None,
    )


def _find_splits(root: Path) -> dict[str, Path]:
    """The folder of each split, in the order train, val, test; empty if the folders are not splits.

    Raises GapError where a split is missing, or two folders are the same split.
    """
    folders = _folders(root)
    candidates = {
        part: [folder for folder in folders if folder.name.lower() in names] for part, names in SPLIT_NAMES.items()
    }
    parts = {part: matches[0] for part, matches in candidates.items() if matches}
    complete = "train" in parts and len(parts) > 1
    has_others = len(folders) > sum(map(len, candidates.values()))
    if not parts or (not complete and _are_no_splits(root, parts, has_others)):
        return {}
    if not complete:
        folder = next(iter(parts.values()))
        missing = "neither test/ nor val/; add one" if "train" in parts else "no train/; add it"
        raise GapError(f"{root} has {folder.name}/ but {missing}, or name {folder}")
    for part, matches in candidates.items():
        if len(matches) > 1:
            raise GapError(f"{matches[0]} and {matches[1]} both hold the {part} pictures; put them into one folder")
    return parts


def _are_no_splits(root: Path, parts: dict[str, Path], has_others: bool) -> bool:
    """Whether folders with names of splits are class folders, or folders of images with a table of labels.

    A single `train` is a class (the vehicle) if the root has other folders and it has no subfolders.
    """
    if "train" in parts:
        return has_others and not _folders(parts["train"])
    return has_others or (root / "labels.csv").exists()


def _split_by_folders(parts: dict[str, Path]) -> tuple[_LabeledFiles, list[Tensor], str]:
    by_class = {part: _images_by_class(folder) for part, folder in parts.items()}
    class_names = sort_names(by_class["train"])
    for part, folder in parts.items():
        for name in by_class[part]:
            if name not in class_names:
                raise GapError(f"{folder / name} is a class that the training pictures do not have")
    labeled = [_labeled(class_paths, class_names) for class_paths in by_class.values()]
    images = _LabeledFiles(
        paths=[path for paths, _ in labeled for path in paths],
        labels=torch.cat([labels for _, labels in labeled]),
        class_names=class_names,
        classes=len(class_names),
    )
    indices = torch.split(torch.arange(len(images.paths)), [len(paths) for paths, _ in labeled])
    shuffled = [part[random_split_indices(len(part))[0]] for part in indices]
    if len(parts) == 3:
        return images, shuffled, "the folder's own train, val and test"
    train, test = shuffled
    held_out = validation_count(len(train))
    validation, train = train[:held_out], train[held_out:]
    test_folder = "val" if "val" in parts else "test"
    return images, [train, validation, test], f"the folder's own train and {test_folder}; 5% of train by seed {SEED}"


def _random_split(count: int) -> list[Tensor]:
    num_test = round(count * TEST_SHARE) if count >= MIN_IMAGES_TO_SPLIT else count
    test, validation, train = random_split_indices(count, num_test, validation_count(count - num_test))
    return [train, validation, test]


def _read_classes(root: Path) -> _LabeledFiles:
    """The images of a root with a folder for each class."""
    by_class = _images_by_class(root)
    class_names = sort_names(by_class)
    return _LabeledFiles(*_labeled(by_class, class_names), class_names, len(class_names))


def _labeled(by_class: dict[str, list[Path]], class_names: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """The paths of all images, and the number of the class of each."""
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = [numbers[name] for name, paths in by_class.items() for _ in paths]
    return [path for paths in by_class.values() for path in paths], torch.tensor(labels)


def _read_flat(root: Path) -> _LabeledFiles:
    paths = find_pictures(root)
    if not (root / "labels.csv").exists():
        return _LabeledFiles(paths)
    by_name = _read_labels(root / "labels.csv")
    name_of_path = {root / name: name for name in by_name}
    missing = next((path for path in paths if path not in name_of_path), None)
    if missing:
        raise GapError(f"{root / 'labels.csv'} has no label for {missing.relative_to(root)}; add a row for it")
    absent = next(iter(name_of_path.keys() - set(paths)), None)
    if absent:
        raise GapError(f"{root / 'labels.csv'} labels {name_of_path[absent]}, which is not among the pictures")
    labels = [by_name[name_of_path[path]] for path in paths]
    if are_numbers(labels):
        numbers = [int(label) for label in labels]
        if max(numbers) > LARGEST_INDEX:
            raise GapError(
                f"{root / 'labels.csv'} has the label {max(numbers)}; a number there is the index of a class"
            )
        return _LabeledFiles(paths, torch.tensor(numbers), None, max(numbers) + 1, labels_index_model=True)
    class_names = sort_names(set(labels))
    return _LabeledFiles(
        paths, torch.tensor([class_names.index(name) for name in labels]), class_names, len(class_names)
    )


def _read_labels(table: Path) -> dict[str, str]:
    """The labels of a table by file name."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise GapError(f"{table} cannot be read ({error}); it must be text with columns file,label") from error
    labels = {}
    for number, row in enumerate(rows, start=2):
        if not row.get("file") or not row.get("label"):
            raise GapError(f"{table} row {number} lacks a file or a label; the columns must be file,label")
        labels[row["file"]] = row["label"].strip()
    return labels


def _images_by_class(root: Path) -> dict[str, list[Path]]:
    """The images of each class folder by its name. Folders without images are left out, with a warning."""
    folders = _folders(root)
    if not folders:
        raise GapError(f"{root} has no folders in it; it must hold one for each class")
    stray = next((path for path in root.iterdir() if path.is_file() and is_image(path)), None)
    if stray:
        raise GapError(f"{root} holds both folders and pictures ({stray.name}); move the pictures into class folders")
    by_class = {folder.name: list_pictures(folder) for folder in folders}
    empty = [name for name, paths in by_class.items() if not paths]
    if len(empty) == len(folders):
        raise GapError(f"{root} holds no pictures ({' '.join(SUFFIXES)})")
    if empty:
        warnings.warn(
            f"class folders of {root} hold no pictures and are left out: {abbreviate(empty)}", GapWarning, stacklevel=2
        )
    return {name: paths for name, paths in by_class.items() if paths}


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_system_file(path.name))
