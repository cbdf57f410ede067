"""A setting: classifiers and data that fit each other."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from gap.architectures import is_fresh
from gap.classifier import Classifier, check_fits, check_normaliser, load_classifier
from gap.config import Options
from gap.data.named import load_data
from gap.data.splits import Dataset, Split, in_order
from gap.errors import GapError, GapWarning
from gap.frozen import frozen

Labels = Literal["auto", "data", "predicted"]


class DataOptions(Options):
    """Which pictures, and how a classifier that does not say so is to be fed."""

    group = "Data"
    data: Annotated[str, Field(description="a data set by name (see `gap data`), or folder:PATH")] = "mnist-5k"
    data_root: Annotated[
        Path | None, Field(description="where downloaded data sets live; also the variable GAP_DATA")
    ] = None
    labels: Annotated[
        Labels, Field(description="the data's labels, the classifier's predictions, or (auto) whichever there is")
    ] = "auto"
    input: Annotated[str | None, Field(description="what a classifier of your own takes, as 3x32x32")] = None
    mean: Annotated[
        list[float] | None, Field(description="mean of the normaliser of a classifier that has none, as 0.49,0.48,0.45")
    ] = None
    std: Annotated[
        list[float] | None,
        Field(description="standard deviation of that normaliser, of pixels in [0, 1], as 0.25,0.24,0.26"),
    ] = None


@dataclass(frozen=True)
class Setting:
    """Classifiers that take the same images, and the data they are attacked on; every image has a label."""

    classifiers: list[Classifier]
    data: Dataset

    @property
    def classes(self) -> int:
        return self.classifiers[0].facts.classes


Shape = tuple[int, tuple[int, int]]


def load_classifiers(
    names: Sequence[str],
    asked: Shape | None = None,
    like: Shape | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> list[Classifier]:
    """Classifiers that take the same images: those of the first one's channels and size, which others resize.

    `asked`, channels and (H, W), is for networks that do not say what they take, and `like` where nothing was asked;
    `mean` and `std` go to those without a normaliser. Raises GapError when they differ in channels or classes, or
    all have a normaliser of their own and another is given.
    """
    load = partial(load_classifier, mean=mean, std=std, lenient=True)
    channels, size = asked or like or (None, None)
    first = load(names[0], channels=channels, size=size)
    facts = first.facts
    channels, size = asked or (facts.channels, facts.size)
    others = [load(name, channels=channels, size=size) for name in names[1:]]
    check_normaliser([first, *others], mean, std)
    for other in others:
        if (other.facts.channels, other.facts.classes) != (facts.channels, facts.classes):
            raise GapError(f"{other.name} and {first.name} differ in channels or classes; take one at a time")
        if other.facts.size != facts.size:
            sizes = ["x".join(map(str, each.facts.size)) for each in (first, other)]
            warnings.warn(f"{other.name} gets the images of {sizes[0]} resized to {sizes[1]}", GapWarning, stacklevel=2)
    return [first, *others]


def load_setting(names: Sequence[str], options: DataOptions, device: torch.device | str = "cpu") -> Setting:
    """Load classifiers and data by name, so that they fit.

    The data's size decides for networks that take any; a classifier's own size decides for data that has none.
    The images have the first classifier's size, and later ones of another size resize them. Pictures without labels
    take the first classifier's predictions. `mean` and `std` go to the classifiers without a normaliser.
    Raises GapError when they cannot be made to fit.
    """
    asked = parse_input(options.input)
    data: Dataset | None = None
    if asked is None and not options.data.startswith("folder:"):
        data = load_data(options.data, options.data_root)
    counted = data.classes if data and options.labels != "predicted" else None
    like = (data.channels, data.size) if data else None
    classifiers = load_classifiers(names, asked, like, options.mean, options.std)
    first = classifiers[0].facts
    if data is None or (first.channels, first.size) != (data.channels, data.size):
        if data is not None:
            shape = "x".join(map(str, (first.channels, *first.size)))
            warnings.warn(f"{data.name} is given to {classifiers[0].name} as {shape}", GapWarning, stacklevel=2)
        data = load_data(options.data, options.data_root, channels=first.channels, size=first.size)
        counted = data.classes if options.labels != "predicted" else None
    classifiers = [_with_classes(classifier, counted) for classifier in classifiers]
    for classifier in classifiers:
        check_fits(classifier, channels=data.channels, classes=counted, data=data.name, indexed=data.indexed)
        classifier.to(device).to(memory_format=torch.channels_last)
    if data.indexed:
        data = replace(data, classes=classifiers[0].facts.classes, class_names=classifiers[0].facts.class_names)
    unlabelled = data.test.labels is None
    if unlabelled and options.labels == "data":
        raise GapError(
            f"{data.name} has no labels; add a labels.csv (file,label), or take a classifier's: --labels predicted"
        )
    if unlabelled or options.labels == "predicted":
        data = with_predictions(data, classifiers[0], device)
    return Setting(classifiers, data)


def with_predictions(data: Dataset, classifier: Classifier, device: torch.device | str = "cpu") -> Dataset:
    """The same pictures labelled by what a classifier says of them."""
    return replace(
        data,
        train=_predicted(data.train, classifier, device),
        validation=_predicted(data.validation, classifier, device),
        test=_predicted(data.test, classifier, device),
        classes=classifier.facts.classes,
        class_names=classifier.facts.class_names,
    )


def _with_classes(classifier: Classifier, classes: int | None) -> Classifier:
    """A fresh network with as many classes as the data has; any other classifier as it is."""
    if not is_fresh(classifier.name) or classes in (None, classifier.facts.classes):
        return classifier
    return load_classifier(
        classifier.name, channels=classifier.facts.channels, size=classifier.facts.size, classes=classes
    )


def parse_input(text: str | None) -> Shape | None:
    """`3x32x32` as channels and (height, width)."""
    if text is None:
        return None
    match = re.fullmatch(r"0*([1-9]\d{0,5})x0*([1-9]\d{0,5})x0*([1-9]\d{0,5})", text.lower(), re.ASCII)
    if not match:
        raise GapError(f"cannot read --input {text!r}; write CxHxW, for example 3x32x32")
    channels, height, width = map(int, match.groups())
    return channels, (height, width)


@torch.no_grad()
def accuracy(classifier: Classifier, split: Split, device: torch.device | str = "cpu") -> float:
    """The share of a split's images that a classifier reads as labelled."""
    right = 0
    with frozen(classifier):
        for images, labels in split.batches(in_order(split, 256), device):
            right += int((classifier(images).argmax(dim=1) == labels).sum())
    return right / max(1, len(split))


def is_chance(share: float, classes: int, split: Split) -> bool:
    """Whether guessing one of so many classes, or always saying the commonest, is right that often on a split."""
    labels = split.labels if split.labels is not None else torch.zeros(0, dtype=torch.int64)
    commonest = labels.bincount(minlength=1).max().item() / max(1, len(split))
    chance = max(1 / classes, commonest)
    return share < chance + 2 * (chance * (1 - chance) / max(1, len(split))) ** 0.5


def warn_if_chance(classifier: Classifier, split: Split, device: torch.device | str, data: str) -> None:
    """Say so when a classifier is fresh, or no better on this data than guessing: an attack on it means nothing."""
    if is_fresh(classifier.name):
        warnings.warn(f"{classifier.name} is a fresh network, which learned nothing yet", GapWarning, stacklevel=2)
        return
    if len(split) < 20:
        return
    share = accuracy(classifier, split, device)
    if is_chance(share, classifier.facts.classes, split):
        warnings.warn(
            f"{classifier.name} is right on {share:.1%} of {data}, no better than chance;"
            " is it trained, and does it get its normalisation (--mean/--std)?",
            GapWarning,
            stacklevel=2,
        )


@torch.no_grad()
def _predicted(split: Split, classifier: Classifier, device: torch.device | str) -> Split:
    predictions: list[Tensor] = [torch.zeros(0, dtype=torch.int64)]
    with frozen(classifier):
        for images, _ in split.batches(in_order(split, 64), device):
            predictions.append(classifier(images).argmax(dim=1).cpu())
    return split.with_labels(torch.cat(predictions))
