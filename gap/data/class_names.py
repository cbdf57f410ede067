"""Class names: their order in a folder, and the classes of a classifier that they stand for."""

import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches

import torch
from torch import Tensor

from gap.core.errors import GapError, GapWarning
from gap.data.dataset import Dataset

SEPARATORS = re.compile(r"(?<=[^\W_])[\s_/,-]+(?=[^\W_])")
WORDNET_ID = re.compile(r"(n\d{8})(?:[\s_-].*)?")
IMAGENET_CLASSES = 1000
# What torchvision calls the bird, so that it has another name than the machine.
IMAGENET_CRANE, IMAGENET_CRANE_NAME = 134, "crane bird"
SHOWN = 6


def sort_names(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in order: by value where all are whole numbers, as text otherwise."""
    names = sorted(names)
    return tuple(sorted(names, key=int) if are_numbers(names) else names)


def are_numbers(names: Iterable[str]) -> bool:
    """Whether all names are whole numbers."""
    return all(name.isdecimal() for name in names)


def abbreviate(parts: Sequence[str], count: int = 0) -> str:
    """The first of these parts, and dots where there are more, or `count` is more than are shown."""
    shown = list(parts[:SHOWN])
    return ", ".join(shown) + (", ..." if max(count, len(parts)) > len(shown) else "")


class ClassNames:
    """The names of a classifier's classes, in the order of its logits.

    A name is looked up as it is written first. If no class has it, case does not matter, spaces, underscores, hyphens,
    commas and slashes between words are the same, and a number counts by its value. A name that begins with a WordNet
    ID (`n01440764_tench`) is also looked up by that ID. A class of ImageNet-1k has three names: its WordNet ID, its
    description in timm and the first synonym of it (`tench`).
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        aliases = _aliases(names)
        keys = [[_key(name) for name in (own, *others)] for own, others in zip(names, aliases, strict=True)]
        self._by_name = _indices_by_name([name] for name in names)
        self._by_alias = _indices_by_name(aliases)
        self._by_key = _indices_by_name(keys)

    def indices(self, name: str) -> list[int]:
        """The indices of the classes that the name stands for: one, none, or several where it is ambiguous."""
        identifier = wordnet_id(name)
        return self._look_up(name) or (self._look_up(identifier) if identifier else [])

    def _look_up(self, name: str) -> list[int]:
        return self._by_name.get(name) or self._by_alias.get(name) or self._by_key.get(_key(name)) or []


def wordnet_id(name: str) -> str | None:
    """The WordNet ID that a name begins with, as `n01440764` of `n01440764_tench`; None where it has none."""
    match = WORDNET_ID.fullmatch(name.strip().lower())
    return match[1] if match else None


def find_difference(first: Sequence[str], second: Sequence[str]) -> int | None:
    """The first index at which two lists of class names, equally long, name different classes; None where they agree.

    Spelling does not matter, as in `ClassNames`.
    """
    if first == second:
        return None
    firsts, seconds = ClassNames(first), ClassNames(second)
    pairs = enumerate(zip(first, second, strict=True))
    return next((i for i, (a, b) in pairs if i not in firsts.indices(b) and i not in seconds.indices(a)), None)


def match_classes(data: Dataset, classifier: str, classes: int, class_names: tuple[str, ...] | None) -> Dataset:
    """The same pictures, labeled by the indices of a classifier's classes.

    A class of the data is the classifier's class of that name; two lists of names that may all mean the same are taken
    as the same. Where the classifier has no names, the order of the data's classes is believed. Class folders that are
    numbers, of which none is a class name, are class indices if all are below `classes`. Indices from a table are class
    names where all of them are names of classes. A warning says which class is which where the labels changed or the
    order is only believed.

    Raises GapError where the classifier does not know a class of the data, or a name stands for several of its classes.
    """
    if data.labels_may_be_names:
        return _match_table_of_indices(data, classifier, class_names)
    if data.class_names is None or data.class_names == class_names:
        return data
    if class_names is None:
        return _match_without_names(data, classifier, classes)
    if len(data.class_names) == len(class_names) and find_difference(data.class_names, class_names) is None:
        return replace(data, class_names=class_names)
    known = ClassNames(class_names)
    if _fits_as_indices(data, classes) and not any(known.indices(name) for name in data.class_names):
        return _match_numbers(data, classifier, classes, class_names)
    return _match_names(data, range(len(data.class_names)), data.class_names, classifier, known)


def _match_table_of_indices(data: Dataset, classifier: str, class_names: tuple[str, ...] | None) -> Dataset:
    known = ClassNames(class_names or ())
    labels = torch.cat([split.labels for split in data.splits.values() if split.labels is not None]).unique().tolist()
    names = [str(label) for label in labels]
    if not all(known.indices(name) for name in names):
        return data
    return _match_names(data, labels, names, classifier, known)


def _match_without_names(data: Dataset, classifier: str, classes: int) -> Dataset:
    assert data.class_names is not None
    order = range(len(data.class_names))
    if _fits_as_indices(data, classes):
        if [int(name) for name in data.class_names] == list(order) and len(order) == classes:
            return data
        return _match_numbers(data, classifier, classes, None)
    if (data.sorted_classes and len(order) == classes) or (data.labels_index_model and len(order) < classes):
        warnings.warn(
            f"{classifier} does not know the names of its classes; those of {data.name} are taken in their order:"
            f" {_shown(data.class_names, order, None)}",
            GapWarning,
            stacklevel=2,
        )
    return data


def _match_numbers(data: Dataset, classifier: str, classes: int, class_names: tuple[str, ...] | None) -> Dataset:
    assert data.class_names is not None
    indices = [int(name) for name in data.class_names]
    warnings.warn(
        f"the classes of {data.name} are numbers, taken as class indices of {classifier}, the first being 0:"
        f" {_shown(data.class_names, indices, class_names)}",
        GapWarning,
        stacklevel=2,
    )
    return _relabeled(data, torch.tensor(indices), classes, class_names)


def _match_names(
    data: Dataset, labels: Sequence[int], names: Sequence[str], classifier: str, known: ClassNames
) -> Dataset:
    """The data labeled by the classes that these names stand for, one name for each of these labels."""
    indices = _indices_of(data, names, classifier, known)
    if indices != list(labels):
        warnings.warn(
            f"the classes of {data.name} are matched to those of {classifier} by name:"
            f" {_shown(names, indices, known.names)}",
            GapWarning,
            stacklevel=2,
        )
    mapping = torch.zeros(max(labels) + 1, dtype=torch.int64)
    mapping[list(labels)] = torch.tensor(indices)
    return _relabeled(data, mapping, len(known.names), known.names)


def _fits_as_indices(data: Dataset, classes: int) -> bool:
    """Whether a folder's class names can be class indices."""
    names = data.class_names or ()
    return data.sorted_classes and are_numbers(names) and all(int(name) < classes for name in names)


def _indices_of(data: Dataset, names: Sequence[str], classifier: str, known: ClassNames) -> list[int]:
    """The one class that each name stands for. Raises GapError where there is none, or more than one."""
    meanings = {name: known.indices(name) for name in names}
    strange = [name for name in names if not meanings[name]]
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        near = get_close_matches(strange[0], known.names, n=3) or known.names
        fix = "use data with its classes"
        if data.sorted_classes:
            fix = "rename the folder (or the label in labels.csv)"
        elif data.labels_index_model:
            fix += ", or a pair of images and labels, which are taken as its class indices"
        raise GapError(
            f"{data.name} has {len(names)} classes, of which {classifier} does not know {strange[0]!r}{more} (it knows"
            f" {len(known.names)} classes: {abbreviate(near, len(known.names))}); {fix}, or, to attack it, use `labels`"
            " predicted"
        )
    for name, indices in meanings.items():
        if len(indices) > 1:
            renamed = "the folder (or the label in labels.csv)" if data.sorted_classes else "the class"
            raise GapError(
                f"{data.name} has the class {name!r}, which may be each of the classes"
                f" {abbreviate(list(map(str, indices)))} of {classifier}; rename {renamed} to the exact name of one, or"
                " to its WordNet ID"
            )
    return [meanings[name][0] for name in names]


def _relabeled(data: Dataset, mapping: Tensor, classes: int, class_names: tuple[str, ...] | None) -> Dataset:
    """The data with `mapping[label]` in place of each label."""
    return replace(
        data,
        train=data.train.renumbered(mapping),
        validation=data.validation.renumbered(mapping),
        test=data.test.renumbered(mapping),
        classes=classes,
        class_names=class_names,
    )


def _shown(names: Sequence[str], indices: Sequence[int], class_names: Sequence[str] | None) -> str:
    """`cat is class 3, dog is class 5 (Dog)`: which class is which, in short."""
    pairs = list(zip(names, indices, strict=True))[:SHOWN]
    shown = [
        f"{name} is class {index}"
        + (f" ({class_names[index]})" if class_names is not None and class_names[index] != name else "")
        for name, index in pairs
    ]
    return abbreviate(shown, len(names))


def _indices_by_name(names: Iterable[Iterable[str]]) -> dict[str, list[int]]:
    """The indices of the classes that have each name, from the names of each class."""
    indices: dict[str, list[int]] = {}
    for index, own in enumerate(names):
        for name in dict.fromkeys(own):
            indices.setdefault(name, []).append(index)
    return indices


def _key(name: str) -> str:
    """What is left of a name where spelling does not matter."""
    key = SEPARATORS.sub(" ", unicodedata.normalize("NFC", name).strip().casefold())
    return str(int(key)) if key.isdecimal() else key


def _aliases(names: Sequence[str]) -> list[list[str]]:
    """The other names of each class: its WordNet ID, and for the classes of ImageNet-1k those of `ClassNames`."""
    identifiers = [wordnet_id(name) for name in names]
    if len(names) == IMAGENET_CLASSES:
        imagenet = _imagenet_names()
        if all(_key(name) in map(_key, each) for name, each in zip(names, imagenet, strict=True)):
            return imagenet
    return [[identifier] if identifier else [] for identifier in identifiers]


def _imagenet_names() -> list[list[str]]:
    """The names of each class of ImageNet-1k: WordNet ID, description and the first synonym of it."""
    from timm.data import ImageNetInfo  # takes seconds to import

    info = ImageNetInfo("imagenet-1k")
    descriptions = [info.index_to_description(index) for index in range(IMAGENET_CLASSES)]
    identifiers = info.label_names()
    names = [[i, text, text.partition(",")[0]] for i, text in zip(identifiers, descriptions, strict=True)]
    names[IMAGENET_CRANE].append(IMAGENET_CRANE_NAME)
    return names
