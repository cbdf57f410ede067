"""Class names: their order in a folder, and matching them to the classes of a classifier."""

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
# Torchvision's name of the bird, which distinguishes it from the machine.
IMAGENET_CRANE, IMAGENET_CRANE_NAME = 134, "crane bird"
# The number of classes in a message.
SHOWN = 6


def sort_names(names: Iterable[str]) -> tuple[str, ...]:
    """Class names sorted by value where all are whole numbers, otherwise as text."""
    names = sorted(names)
    return tuple(sorted(names, key=int) if are_numbers(names) else names)


def are_numbers(names: Iterable[str]) -> bool:
    """Whether all names are whole numbers."""
    return all(name.isdecimal() for name in names)


def abbreviate(parts: Sequence[str], count: int = 0) -> str:
    """The first parts as text, with dots where there are more parts, or `count` of them, than the text has."""
    selected = list(parts[:SHOWN])
    return ", ".join(selected) + (", ..." if max(count, len(parts)) > len(selected) else "")


class ClassNames:
    """The names of a classifier's classes, in the order of its logits.

    A name is first looked up in its exact spelling. If no class has it, the lookup ignores case, treats spaces,
    underscores, hyphens, commas and slashes between words as equal, and compares numbers by value. A name that begins
    with a WordNet ID (`n01440764_tench`) is also looked up by that ID. A class of ImageNet-1k has three names: its
    WordNet ID, its description in timm and the first synonym in the description (`tench`).
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        aliases = _aliases(names)
        keys = [[_key(name) for name in (own, *others)] for own, others in zip(names, aliases, strict=True)]
        self._by_name = _indices_by_name([name] for name in names)
        self._by_alias = _indices_by_name(aliases)
        self._by_key = _indices_by_name(keys)

    def indices(self, name: str) -> list[int]:
        """The indices of the classes with this name: none, one, or several where it is ambiguous."""
        identifier = wordnet_id(name)
        return self._look_up(name) or (self._look_up(identifier) if identifier else [])

    def _look_up(self, name: str) -> list[int]:
        return self._by_name.get(name) or self._by_alias.get(name) or self._by_key.get(_key(name)) or []


def wordnet_id(name: str) -> str | None:
    """The WordNet ID at the beginning of a name, such as `n01440764` of `n01440764_tench`; None without one."""
    match = WORDNET_ID.fullmatch(name.strip().lower())
    return match[1] if match else None


def find_difference(first: Sequence[str], second: Sequence[str]) -> int | None:
    """The first index at which two lists of class names, equally long, have different classes; None if they agree.

    Spellings are compared as in `ClassNames`.
    """
    if first == second:
        return None
    firsts, seconds = ClassNames(first), ClassNames(second)
    pairs = enumerate(zip(first, second, strict=True))
    return next((i for i, (a, b) in pairs if i not in firsts.indices(b) and i not in seconds.indices(a)), None)


def match_classes(data: Dataset, classifier: str, classes: int, class_names: tuple[str, ...] | None) -> Dataset:
    """The same images, with the indices of a classifier's classes as labels.

    Classes are matched by name. Two lists of names that agree in every position are taken as the same. If the
    classifier has no names, the order of the data's classes is assumed to be right. Class folders with numbers as
    names, none of which is a class name, are class indices if all are below `classes`. Numbers in a table of labels are
    class names if the classifier has a class with each of these names. A warning lists the classes where the labels
    change or the order is only assumed.

    Raises GapError where the classifier does not have a class of the data, or several of its classes have one name.
    """
    if data.labels_may_be_names:
        return _match_table_of_indices(data, classifier, class_names)
    if data.class_names is None or data.class_names == class_names:
        return data
    if class_names is None:
        return _match_without_names(data, classifier, classes)
    if len(data.class_names) == len(class_names) and find_difference(data.class_names, class_names) is None:
        return replace(data, class_names=class_names)
    classifier_names = ClassNames(class_names)
    if _fits_as_indices(data, classes) and not any(classifier_names.indices(name) for name in data.class_names):
        return _match_numbers(data, classifier, classes, class_names)
    return _match_names(data, range(len(data.class_names)), data.class_names, classifier, classifier_names)


def _match_table_of_indices(data: Dataset, classifier: str, class_names: tuple[str, ...] | None) -> Dataset:
    classifier_names = ClassNames(class_names or ())
    labels = torch.cat([split.labels for split in data.splits.values() if split.labels is not None]).unique().tolist()
    names = [str(label) for label in labels]
    if not all(classifier_names.indices(name) for name in names):
        return data
    return _match_names(data, labels, names, classifier, classifier_names)


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
            f" {_mapping_text(data.class_names, order, None)}",
            GapWarning,
            stacklevel=2,
        )
    return data


def _match_numbers(data: Dataset, classifier: str, classes: int, class_names: tuple[str, ...] | None) -> Dataset:
    assert data.class_names is not None
    indices = [int(name) for name in data.class_names]
    warnings.warn(
        f"the classes of {data.name} are numbers, taken as class indices of {classifier}, the first being 0:"
        f" {_mapping_text(data.class_names, indices, class_names)}",
        GapWarning,
        stacklevel=2,
    )
    return _relabeled(data, torch.tensor(indices), classes, class_names)


def _match_names(
    data: Dataset, labels: Sequence[int], names: Sequence[str], classifier: str, classifier_names: ClassNames
) -> Dataset:
    """The data with the classes of these names as labels; `names` has one name for each of `labels`."""
    indices = _indices_of(data, names, classifier, classifier_names)
    if indices != list(labels):
        warnings.warn(
            f"the classes of {data.name} are matched to those of {classifier} by name:"
            f" {_mapping_text(names, indices, classifier_names.names)}",
            GapWarning,
            stacklevel=2,
        )
    mapping = torch.zeros(max(labels) + 1, dtype=torch.int64)
    mapping[list(labels)] = torch.tensor(indices)
    return _relabeled(data, mapping, len(classifier_names.names), classifier_names.names)


def _fits_as_indices(data: Dataset, classes: int) -> bool:
    """Whether a folder's class names can be class indices."""
    names = data.class_names or ()
    return data.sorted_classes and are_numbers(names) and all(int(name) < classes for name in names)


def _indices_of(data: Dataset, names: Sequence[str], classifier: str, classifier_names: ClassNames) -> list[int]:
    """The index of the class of each name. Raises GapError where there is none, or more than one."""
    indices_by_name = {name: classifier_names.indices(name) for name in names}
    unknown = [name for name in names if not indices_by_name[name]]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        near = get_close_matches(unknown[0], classifier_names.names, n=3) or classifier_names.names
        fix = "use data with its classes"
        if data.sorted_classes:
            fix = "rename the folder (or the label in labels.csv)"
        elif data.labels_index_model:
            fix += ", or a pair of images and labels, which are taken as its class indices"
        raise GapError(
            f"{data.name} has {len(names)} classes, of which {classifier} does not know {unknown[0]!r}{more} (it knows"
            f" {len(classifier_names.names)} classes: {abbreviate(near, len(classifier_names.names))}); {fix}, or, to"
            " attack it, use `labels` predicted"
        )
    for name, indices in indices_by_name.items():
        if len(indices) > 1:
            renamed = "the folder (or the label in labels.csv)" if data.sorted_classes else "the class"
            raise GapError(
                f"{data.name} has the class {name!r}, which may be each of the classes"
                f" {abbreviate(list(map(str, indices)))} of {classifier}; rename {renamed} to the exact name of one, or"
                " to its WordNet ID"
            )
    return [indices_by_name[name][0] for name in names]


def _relabeled(data: Dataset, mapping: Tensor, classes: int, class_names: tuple[str, ...] | None) -> Dataset:
    """The data with `mapping[label]` in place of each label, and with other classes."""
    return replace(
        data,
        train=data.train.renumbered(mapping),
        validation=data.validation.renumbered(mapping),
        test=data.test.renumbered(mapping),
        classes=classes,
        class_names=class_names,
    )


def _mapping_text(names: Sequence[str], indices: Sequence[int], class_names: Sequence[str] | None) -> str:
    """The indices of the first names, as in `cat is class 3, dog is class 5 (Dog)`."""
    pairs = list(zip(names, indices, strict=True))[:SHOWN]
    parts = [
        f"{name} is class {index}"
        + (f" ({class_names[index]})" if class_names is not None and class_names[index] != name else "")
        for name, index in pairs
    ]
    return abbreviate(parts, len(names))


def _indices_by_name(names: Iterable[Iterable[str]]) -> dict[str, list[int]]:
    """The indices of classes by name, from the names of each class."""
    indices: dict[str, list[int]] = {}
    for index, own in enumerate(names):
        for name in dict.fromkeys(own):
            indices.setdefault(name, []).append(index)
    return indices


def _key(name: str) -> str:
    """A name in a normalized spelling, for comparisons."""
    key = SEPARATORS.sub(" ", unicodedata.normalize("NFC", name).strip().casefold())
    return str(int(key)) if key.isdecimal() else key


def _aliases(names: Sequence[str]) -> list[list[str]]:
    """The alternative names of each class: its WordNet ID, and for ImageNet-1k the three names of `ClassNames`."""
    identifiers = [wordnet_id(name) for name in names]
    if len(names) == IMAGENET_CLASSES:
        imagenet = _imagenet_names()
        if all(_key(name) in map(_key, synonyms) for name, synonyms in zip(names, imagenet, strict=True)):
            return imagenet
    return [[identifier] if identifier else [] for identifier in identifiers]


def _imagenet_names() -> list[list[str]]:
    """The names of each class of ImageNet-1k: its WordNet ID, its description and the first synonym in that."""
    from timm.data import ImageNetInfo  # imported here because that takes seconds

    info = ImageNetInfo("imagenet-1k")
    descriptions = [info.index_to_description(index) for index in range(IMAGENET_CLASSES)]
    identifiers = info.label_names()
    names = [[i, text, text.partition(",")[0]] for i, text in zip(identifiers, descriptions, strict=True)]
    names[IMAGENET_CRANE].append(IMAGENET_CRANE_NAME)
    return names
