"""Classifiers and data that fit each other."""

import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gap.classifiers.adapters import ClassifierLike, as_classifier, copied
from gap.classifiers.classifier import Classifier, check_compatible, check_normalizer, load_classifier, model_dir_of
from gap.classifiers.memory_format import use_channels_last
from gap.classifiers.options import DataOptions
from gap.classifiers.registry import is_untrained
from gap.core.artifact import open_artifact
from gap.core.device import pick_device
from gap.core.errors import GapError, GapWarning
from gap.core.frozen import frozen
from gap.core.network import device_of, is_on
from gap.data.class_names import find_difference, match_classes
from gap.data.dataset import MIN_IMAGES, Dataset, Split, sequential_batches
from gap.data.registry import converted, load_data

LARGE_DROP = 0.1


@dataclass(frozen=True)
class AttackTask:
    """Classifiers that take the same images, and the data they are attacked on; every image has a label."""

    classifiers: list[Classifier]
    data: Dataset

    @property
    def classes(self) -> int:
        return self.classifiers[0].spec.classes


InputShape = tuple[int, tuple[int, int]]


def load_classifiers(
    models: Sequence[ClassifierLike],
    asked: InputShape | None = None,
    like: InputShape | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> list[Classifier]:
    """Classifiers that take the same images: those of the first one's channels and size, which others resize.

    `asked`, channels and (H, W), is for networks that do not say what they take, and `like` where nothing was asked;
    `mean` and `std` go to those without a normalizer. Raises GapError when they differ in channels, classes or, where
    they know its names, the order of these, or all have a normalizer of their own and another is given.
    """
    load = partial(as_classifier, mean=mean, std=std, lenient=True)
    channels, size = asked or like or (None, None)
    first = load(models[0], channels=channels, size=size)
    spec = first.spec
    channels, size = asked or (spec.channels, spec.size)
    others = [load(name, channels=channels, size=size) for name in models[1:]]
    check_normalizer([first, *others], mean, std)
    for other in others:
        if (other.spec.channels, other.spec.classes) != (spec.channels, spec.classes):
            raise GapError(f"{other.name} and {first.name} differ in channels or classes; take one at a time")
        if other.spec.size != spec.size:
            sizes = ["x".join(map(str, each.spec.size)) for each in (first, other)]
            warnings.warn(f"{other.name} gets the images of {sizes[0]} resized to {sizes[1]}", GapWarning, stacklevel=2)
    _check_order([first, *others])
    return [first, *others]


def load_task(
    models: Sequence[ClassifierLike],
    options: DataOptions,
    device: torch.device | str = "cpu",
    *,
    data: Dataset | None = None,
) -> AttackTask:
    """Load classifiers and data, so that they fit. Networks of the user's own are taken as they are; `data` is taken
    in place of what the options name.

    The data's size decides for networks that take any; a classifier's own size decides for data that has none.
    The images have the first classifier's size, and later ones of another size resize them. Pictures without labels
    take the first classifier's predictions. Labels are matched to the classifiers' classes, by name where a classifier
    that has learned knows the names of its classes (see `match_classes`). `mean` and `std` go to the classifiers
    without a normalizer. Raises GapError when they cannot be made to fit.
    """
    asked = parse_input_shape(options.input)
    given = data
    if data is None and asked is None and not options.data.startswith("folder:"):
        data = load_data(options.data, options.data_root)
    like = (data.channels, data.size) if data else None
    classifiers = load_classifiers(models, asked, like, options.mean, options.std)
    first = classifiers[0].spec
    if data is None or (first.channels, first.size) != (data.channels, data.size):
        if data is not None:
            shape = "x".join(map(str, (first.channels, *first.size)))
            warnings.warn(f"{data.name} is given to {classifiers[0].name} as {shape}", GapWarning, stacklevel=2)
        if given is not None:
            data = converted(given, first.channels, first.size)
        else:
            data = load_data(options.data, options.data_root, channels=first.channels, size=first.size)
    counted = None
    if options.labels != "predicted":
        data = match_labels(data, classifiers)
        counted = data.classes
    classifiers = [_with_num_classes(classifier, counted) for classifier in classifiers]
    for classifier in classifiers:
        check_compatible(
            classifier,
            channels=data.channels,
            classes=counted,
            data=data.name,
            labels_index_model=data.labels_index_model,
        )
    for index, (model, classifier) in enumerate(zip(models, classifiers, strict=True)):
        if isinstance(model, nn.Module):  # the place and the layout of a user's own network are the user's
            classifiers[index] = _on_device(classifier, device)
        else:
            use_channels_last(classifier.to(device))
    if data.labels_index_model:
        data = _with_classes_of(data, classifiers[0])
    unlabeled = data.test.labels is None
    if unlabeled and options.labels == "data":
        raise GapError(
            f"{data.name} has no labels; add a labels.csv (file,label), or, to attack a classifier, take its:"
            " `labels` predicted"
        )
    if unlabeled or options.labels == "predicted":
        data = label_with_predictions(data, classifiers[0], device)
    return AttackTask(classifiers, data)


def make_task(
    models: Sequence[ClassifierLike],
    adapt: Callable[[Any], Dataset],
    data: Any,
    *,
    device: torch.device | str | None = None,
    **options: Any,
) -> AttackTask:
    """Classifiers and data of the user's own, or by name, so that they fit.

    `adapt` makes a dataset of data that is not a name. The device is by default the one that the first network is on;
    networks by name are on the first accelerator that torch has. `options` are those of DataOptions.
    """
    named = isinstance(data, str | os.PathLike)
    read = DataOptions.read(({"data": str(data)} if named else {}) | options)
    return load_task(models, read, find_device(models, device), data=None if named else adapt(data))


def find_device(models: Sequence[ClassifierLike], device: torch.device | str | None = None) -> torch.device:
    """The device of that name. Without one, that of the first network; where all are names, the first accelerator, or
    else the CPU.

    Raises GapError for a device that is not there.
    """
    if device is not None:
        return pick_device(device)
    network = next((model for model in models if isinstance(model, nn.Module)), None)
    return pick_device("auto") if network is None else device_of(network)


def _on_device(classifier: Classifier, device: torch.device | str) -> Classifier:
    """The classifier itself where it is on that device, else a copy there."""
    return classifier if is_on(classifier, device) else copied(classifier).to(device)


def label_with_predictions(data: Dataset, classifier: Classifier, device: torch.device | str = "cpu") -> Dataset:
    """The same pictures labeled by what a classifier says of them."""
    return replace(
        data,
        train=_label_with(data.train, classifier, device),
        validation=_label_with(data.validation, classifier, device),
        test=_label_with(data.test, classifier, device),
        classes=classifier.spec.classes,
        class_names=classifier.spec.class_names,
    )


def with_labels_of(task: AttackTask, data: Dataset, *, predicted: bool) -> Dataset:
    """More data for a task, labeled as the task's own data is: by its classifiers' classes, or by predictions.

    Raises GapError where its labels are not of these classes.
    """
    first = task.classifiers[0]
    if predicted:
        return label_with_predictions(data, first, first.device)
    data = match_labels(data, task.classifiers)
    check_compatible(
        first,
        channels=data.channels,
        classes=data.classes,
        data=data.name,
        labels_index_model=data.labels_index_model,
    )
    return data


def name_classes(classifier: Classifier, data: Dataset) -> None:
    """Give a classifier that is to learn from this data the names of its classes, where it does not know them."""
    if classifier.spec.class_names is None and data.classes == classifier.spec.classes:
        classifier.spec = replace(classifier.spec, class_names=data.class_names)


def _known_names(classifier: Classifier) -> tuple[str, ...] | None:
    """The names of a classifier's classes, where it has one for each."""
    names = classifier.spec.class_names
    return names if names and len(names) == classifier.spec.classes else None


def _check_order(classifiers: Sequence[Classifier]) -> None:
    """Raise GapError where two classifiers know the names of their classes and have them in another order."""
    named = [(classifier.name, names) for classifier in classifiers if (names := _known_names(classifier))]
    for other, names in named[1:]:
        first, first_names = named[0]
        index = find_difference(first_names, names)
        if index is not None:
            raise GapError(
                f"{first} and {other} differ in the order of their classes: class {index} is {first_names[index]!r}"
                f" for the first and {names[index]!r} for the other; take one at a time"
            )


def match_labels(data: Dataset, classifiers: Sequence[Classifier]) -> Dataset:
    """The data labeled by the classes of the first classifier that knows their names, else of the first that has
    learned; fresh networks take the data's classes as they are."""
    learned = [classifier for classifier in classifiers if not is_untrained(classifier.name)]
    reference = next(filter(_known_names, learned), next(iter(learned), None))
    if reference is None:
        return data
    return match_classes(data, reference.name, reference.spec.classes, _known_names(reference))


def _with_classes_of(data: Dataset, classifier: Classifier) -> Dataset:
    """Data whose labels are class indices of a classifier, with its number of classes and their names; the data's own
    names where the classifier has none."""
    spec = classifier.spec
    own = data.class_names if data.class_names and len(data.class_names) == spec.classes else None
    return replace(data, classes=spec.classes, class_names=spec.class_names or own)


def _with_num_classes(classifier: Classifier, classes: int | None) -> Classifier:
    """A fresh network with as many classes as the data has; any other classifier as it is."""
    if not is_untrained(classifier.name) or not classifier.architecture or classes in (None, classifier.spec.classes):
        return classifier
    return load_classifier(
        classifier.name, channels=classifier.spec.channels, size=classifier.spec.size, classes=classes
    )


def parse_input_shape(text: str | None) -> InputShape | None:
    """`3x32x32` as channels and (height, width)."""
    if text is None:
        return None
    match = re.fullmatch(r"0*([1-9]\d{0,5})x0*([1-9]\d{0,5})x0*([1-9]\d{0,5})", text.lower(), re.ASCII)
    if not match:
        raise GapError(f"cannot read `input` {text!r}; write CxHxW, for example 3x32x32")
    channels, height, width = map(int, match.groups())
    return channels, (height, width)


@torch.no_grad()
def accuracy(classifier: Classifier, split: Split, device: torch.device | str = "cpu") -> float:
    """The share of a split's images that a classifier reads as labeled."""
    right = 0
    with frozen(classifier):
        for images, labels in split.batches(sequential_batches(split, 256), device):
            right += int((classifier(images).argmax(dim=1) == labels).sum())
    return right / max(1, len(split))


def is_at_chance_level(share: float, classes: int, split: Split) -> bool:
    """Whether guessing one of so many classes, or always saying the commonest, is right that often on a split."""
    labels = split.labels if split.labels is not None else torch.zeros(0, dtype=torch.int64)
    commonest = labels.bincount(minlength=1).max().item() / max(1, len(split))
    chance = max(1 / classes, commonest)
    return share < chance + 2 * (chance * (1 - chance) / max(1, len(split))) ** 0.5


def warn_if_at_chance(classifier: Classifier, split: Split, device: torch.device | str, data: str) -> None:
    """Warn where a classifier is fresh, no better on this data than guessing, or far worse than its card says.

    An attack on such a classifier means nothing.
    """
    if is_untrained(classifier.name):
        warnings.warn(f"{classifier.name} is a fresh network, which learned nothing yet", GapWarning, stacklevel=2)
        return
    if len(split) < MIN_IMAGES:
        return
    share = accuracy(classifier, split, device)
    chance = is_at_chance_level(share, classifier.spec.classes, split)
    recorded = _recorded_accuracy(classifier)
    if recorded and recorded.is_far_above(share, len(split)):
        guessing = ", no better than chance," if chance else ""
        warnings.warn(
            f"{classifier.name} is right on {share:.1%} of {data}{guessing} and had {recorded.accuracy:.1%} on the test"
            f" images of {recorded.data}; is it other data, are the classes in another order, or does it get another"
            " normalization (`mean`/`std`)?",
            GapWarning,
            stacklevel=2,
        )
    elif chance:
        warnings.warn(
            f"{classifier.name} is right on {share:.1%} of {data}, no better than chance;"
            " is it trained, and does it get its normalization (`mean`/`std`)?",
            GapWarning,
            stacklevel=2,
        )


@dataclass(frozen=True)
class _Recorded:
    """The test accuracy that a card tells: of a classifier on so many images of some data."""

    accuracy: float
    data: str
    images: int

    def is_far_above(self, share: float, images: int) -> bool:
        """Whether this is more than ten points above a share of so many images, and beyond sampling noise."""
        variance = self.accuracy * (1 - self.accuracy) / self.images + share * (1 - share) / images
        return self.accuracy - share > max(LARGE_DROP, 2 * variance**0.5)


def _recorded_accuracy(classifier: Classifier) -> _Recorded | None:
    """The test accuracy in the card of these weights, whatever the normalizer; None where no card tells it."""
    folder = model_dir_of(classifier.name)
    if folder is None:
        return None
    card = open_artifact(folder).card
    try:
        data, images = card["data"]["name"], int(card["data"]["images"]["test"])
        recorded = _Recorded(float(card["metrics"]["test"]["accuracy"]), data, images)
        same = card["classifier"]["fingerprint"] == classifier.fingerprint()
    except (KeyError, TypeError, ValueError):  # a card of something else, or one without metrics
        return None
    return recorded if same and images else None


@torch.no_grad()
def _label_with(split: Split, classifier: Classifier, device: torch.device | str) -> Split:
    predictions: list[Tensor] = [torch.zeros(0, dtype=torch.int64)]
    with frozen(classifier):
        for images, _ in split.batches(sequential_batches(split, 64), device):
            logits = classifier(images)
            if logits.isnan().any():
                raise GapError(f"{classifier.name} returns NaN for some images; its predictions cannot be labels")
            predictions.append(logits.argmax(dim=1).cpu())
    return split.with_labels(torch.cat(predictions))
