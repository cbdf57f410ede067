"""`folder:PATH`: a dataset out of a folder of pictures, its splits and labels read from how it is laid out."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gap.data.pictures import find_pictures, is_picture
from gap.data.splits import SEED, Dataset, FolderSplit, divide, twentieth
from gap.errors import GapError
from gap.paths import exists, expanded, is_folder

TEST_SHARE = 0.2
FEWEST_TO_DIVIDE = 5
LARGEST_INDEX = 10**6


@dataclass(frozen=True)
class _Pictures:
    paths: Sequence[Path]
    labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    classes: int | None = None
    indexed: bool = False


def load_folder(path: str | Path, channels: int, size: tuple[int, int]) -> Dataset:
    """The pictures of a folder, streamed at the channels and size (H, W) asked for.

    Three layouts: `train/` and `test/` or `val/`, each with a folder for each class; a folder for each class; pictures,
    with a `labels.csv` of `file,label` rows (a label is a class name, or the index of a class of the classifier) or
    unlabelled. Class names are numbered in sorted order. With `train/` and `val/` alone, `val/` is the test set. Where
    the folder names no test pictures 20% are held out for testing, all where there are fewer than five; where it names
    no validation pictures besides, 5% of the training ones.

    Raises GapError for a folder that is missing, holds no pictures, or whose classes or labels do not fit them.
    """
    root = expanded(path)
    if not is_folder(root):
        raise GapError(f"{root} is {'not a folder' if exists(root) else 'missing'}; name a folder of pictures")
    if (root / "train").is_dir():
        pictures, (train, validation, test), division = _divided_by_folders(root)
    else:
        pictures = _read_flat(root) if (root / "labels.csv").exists() or not _folders(root) else _read_classes(root)
        train, validation, test = _divided_by_chance(len(pictures.paths))
        division = f"test 20%, validation 5% of the rest, by seed {SEED}"

    def split(indices: Tensor) -> FolderSplit:
        labels = None if pictures.labels is None else pictures.labels[indices]
        return FolderSplit(tuple(pictures.paths[index] for index in indices.tolist()), labels, channels, size, root)

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
        division=division,
        indexed=pictures.indexed,
    )


def _divided_by_folders(root: Path) -> tuple[_Pictures, list[Tensor], str]:
    parts = [part for part in ("train", "val", "test") if (root / part).is_dir()]
    if len(parts) == 1:
        raise GapError(f"{root} has train/ but neither test/ nor val/; add one, or name {root / 'train'}")
    class_names = _class_names(root / "train")
    read = [_read_classes(root / part, class_names) for part in parts]
    pictures = _Pictures(
        paths=[path for part in read for path in part.paths],
        labels=torch.cat([part.labels for part in read if part.labels is not None]),
        class_names=class_names,
        classes=len(class_names),
    )
    numbers = torch.split(torch.arange(len(pictures.paths)), [len(part.paths) for part in read])
    shuffled = [part[divide(len(part))[0]] for part in numbers]
    if len(parts) == 3:
        return pictures, shuffled, "the folder's own train, val and test"
    train, test = shuffled
    held_out = twentieth(len(train))
    validation, train = train[:held_out], train[held_out:]
    return pictures, [train, validation, test], f"the folder's own train and {parts[1]}; 5% of train by seed {SEED}"


def _divided_by_chance(count: int) -> list[Tensor]:
    tested = round(count * TEST_SHARE) if count >= FEWEST_TO_DIVIDE else count
    test, validation, train = divide(count, tested, twentieth(count - tested))
    return [train, validation, test]


def _read_classes(root: Path, class_names: tuple[str, ...] | None = None) -> _Pictures:
    """Pictures in a folder for each class; with `class_names` given, those classes and no others."""
    class_names = class_names or _class_names(root)
    own = _class_names(root)
    strange = sorted(set(own) - set(class_names))
    if strange:
        raise GapError(f"{root / strange[0]} is a class that the training pictures do not have")
    found = [find_pictures(root / name) for name in own]
    labels = [class_names.index(name) for name, paths in zip(own, found, strict=True) for _ in paths]
    return _Pictures([path for paths in found for path in paths], torch.tensor(labels), class_names, len(class_names))


def _read_flat(root: Path) -> _Pictures:
    paths = find_pictures(root)
    if not (root / "labels.csv").exists():
        return _Pictures(paths)
    by_name = _read_labels(root / "labels.csv")
    named = {root / name: name for name in by_name}
    missing = next((path for path in paths if path not in named), None)
    if missing:
        raise GapError(f"{root / 'labels.csv'} has no label for {missing.relative_to(root)}; add a row for it")
    absent = next(iter(named.keys() - set(paths)), None)
    if absent:
        raise GapError(f"{root / 'labels.csv'} labels {named[absent]}, which is not among the pictures")
    labels = [by_name[named[path]] for path in paths]
    if all(label.isdecimal() for label in labels):
        numbers = [int(label) for label in labels]
        if max(numbers) > LARGEST_INDEX:
            raise GapError(
                f"{root / 'labels.csv'} has the label {max(numbers)}; a number there is the index of a class"
            )
        return _Pictures(paths, torch.tensor(numbers), None, max(numbers) + 1, indexed=True)
    class_names = tuple(sorted(set(labels)))
    return _Pictures(paths, torch.tensor([class_names.index(name) for name in labels]), class_names, len(class_names))


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


def _class_names(root: Path) -> tuple[str, ...]:
    names = tuple(folder.name for folder in _folders(root))
    if not names:
        raise GapError(f"{root} has no folders in it; it must hold one for each class")
    loose = next((path for path in root.iterdir() if path.is_file() and is_picture(path)), None)
    if loose:
        raise GapError(f"{root} holds both folders and pictures ({loose.name}); move the pictures into class folders")
    return names


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
