"""`folder:PATH`: a dataset out of a folder of pictures, its splits and labels read from how it is laid out."""

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
    """The pictures of a folder, streamed at the channels and size (H, W) asked for.

    Three layouts: `train/` and `test/` or `val/`, each with a folder for each class; a folder for each class; pictures,
    with a `labels.csv` of `file,label` rows (a label is a class name, or the index of a class of the classifier) or
    unlabeled. `SPLIT_NAMES` are the names of splits, in any case. Classes are numbered in the order of their names, by
    value where all are whole numbers. A class folder without pictures is left out, with a warning. With `train/` and
    `val/` alone, `val/` is the test set. Where the folder names no test pictures 20% are held out for testing, all
    where there are fewer than five; where it names no validation pictures besides, 5% of the training ones.

    Raises GapError for a folder that is missing or holds no pictures, for classes or labels that do not fit them, and
    for two folders of the same split.
    """
    root = expanded(path)
    if not is_folder(root):
        raise GapError(f"{root} is {'not a folder' if exists(root) else 'missing'}; name a folder of pictures")
    parts = _find_splits(root)
    if parts:
        pictures, (train, validation, test), split_description = _split_by_folders(parts)
    else:
        pictures = _read_flat(root) if (root / "labels.csv").exists() or not _folders(root) else _read_classes(root)
        train, validation, test = _random_split(len(pictures.paths))
        split_description = f"test 20%, validation 5% of the rest, by seed {SEED}"

    def split(indices: Tensor) -> ImageFolderSplit:
        labels = None if pictures.labels is None else pictures.labels[indices]
        return ImageFolderSplit(
            tuple(pictures.paths[index] for index in indices.tolist()), labels, channels, size, root
        )

    return Dataset(
        name=f"folder:{path}",
        train=split(train),
        validation=split(validation),
        test=split(test),
        channels=channels,
        size=size,
        class_names=pictures.class_names,
        classes=pictures.classes,
        source=f"picture files of {root}; their owner's terms",
        split_description=split_description,
        labels_index_model=pictures.labels_index_model,
        labels_may_be_names=pictures.labels_index_model,
        sorted_classes=pictures.class_names is not None,
    )


def _find_splits(root: Path) -> dict[str, Path]:
    """The folder of each split, in the order train, val, test; none where the pictures are not divided by folders.

    Raises GapError where a split is missing, or two folders hold the same.
    """
    folders = _folders(root)
    candidates = {
        part: [folder for folder in folders if folder.name.lower() in names] for part, names in SPLIT_NAMES.items()
    }
    parts = {part: same[0] for part, same in candidates.items() if same}
    complete = "train" in parts and len(parts) > 1
    beside = len(folders) > sum(map(len, candidates.values()))
    if not parts or (not complete and _are_no_splits(root, parts, beside)):
        return {}
    if not complete:
        folder = next(iter(parts.values()))
        missing = "neither test/ nor val/; add one" if "train" in parts else "no train/; add it"
        raise GapError(f"{root} has {folder.name}/ but {missing}, or name {folder}")
    for part, same in candidates.items():
        if len(same) > 1:
            raise GapError(f"{same[0]} and {same[1]} both hold the {part} pictures; put them into one folder")
    return parts


def _are_no_splits(root: Path, parts: dict[str, Path], beside: bool) -> bool:
    """Whether folders that only have the names of splits are class folders, or lie beside a table of labels.

    `train` alone is a class (a vehicle) if it has other folders `beside` it and none in it.
    """
    if "train" in parts:
        return beside and not _folders(parts["train"])
    return beside or (root / "labels.csv").exists()


def _split_by_folders(parts: dict[str, Path]) -> tuple[_LabeledFiles, list[Tensor], str]:
    by_class = {part: _pictures_by_class(folder) for part, folder in parts.items()}
    class_names = sort_names(by_class["train"])
    for part, folder in parts.items():
        for name in by_class[part]:
            if name not in class_names:
                raise GapError(f"{folder / name} is a class that the training pictures do not have")
    read = [_labeled(each, class_names) for each in by_class.values()]
    pictures = _LabeledFiles(
        paths=[path for paths, _ in read for path in paths],
        labels=torch.cat([labels for _, labels in read]),
        class_names=class_names,
        classes=len(class_names),
    )
    numbers = torch.split(torch.arange(len(pictures.paths)), [len(paths) for paths, _ in read])
    shuffled = [part[random_split_indices(len(part))[0]] for part in numbers]
    if len(parts) == 3:
        return pictures, shuffled, "the folder's own train, val and test"
    train, test = shuffled
    held_out = validation_count(len(train))
    validation, train = train[:held_out], train[held_out:]
    tested = "val" if "val" in parts else "test"
    return pictures, [train, validation, test], f"the folder's own train and {tested}; 5% of train by seed {SEED}"


def _random_split(count: int) -> list[Tensor]:
    tested = round(count * TEST_SHARE) if count >= MIN_IMAGES_TO_SPLIT else count
    test, validation, train = random_split_indices(count, tested, validation_count(count - tested))
    return [train, validation, test]


def _read_classes(root: Path) -> _LabeledFiles:
    """Pictures in a folder for each class."""
    by_class = _pictures_by_class(root)
    class_names = sort_names(by_class)
    return _LabeledFiles(*_labeled(by_class, class_names), class_names, len(class_names))


def _labeled(by_class: dict[str, list[Path]], class_names: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """All the pictures, and for each the number of its class."""
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = [numbers[name] for name, paths in by_class.items() for _ in paths]
    return [path for paths in by_class.values() for path in paths], torch.tensor(labels)


def _read_flat(root: Path) -> _LabeledFiles:
    paths = find_pictures(root)
    if not (root / "labels.csv").exists():
        return _LabeledFiles(paths)
    by_name = _read_labels(root / "labels.csv")
    named = {root / name: name for name in by_name}
    missing = next((path for path in paths if path not in named), None)
    if missing:
        raise GapError(f"{root / 'labels.csv'} has no label for {missing.relative_to(root)}; add a row for it")
    absent = next(iter(named.keys() - set(paths)), None)
    if absent:
        raise GapError(f"{root / 'labels.csv'} labels {named[absent]}, which is not among the pictures")
    labels = [by_name[named[path]] for path in paths]
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
    """Labels by what the table says is the file."""
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


def _pictures_by_class(root: Path) -> dict[str, list[Path]]:
    """The pictures of each class folder that has any, by its name. A warning names the folders that have none."""
    folders = _folders(root)
    if not folders:
        raise GapError(f"{root} has no folders in it; it must hold one for each class")
    loose = next((path for path in root.iterdir() if path.is_file() and is_image(path)), None)
    if loose:
        raise GapError(f"{root} holds both folders and pictures ({loose.name}); move the pictures into class folders")
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
