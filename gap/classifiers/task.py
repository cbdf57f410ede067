"""Tasks: classifiers together with data that matches their inputs and classes."""

import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gap.classifiers.adapters import ClassifierLike, as_classifier, on_device
from gap.classifiers.classifier import Classifier, check_compatible, check_normalizer, load_classifier, model_dir_of
from gap.classifiers.memory_format import use_channels_last
from gap.classifiers.options import DataOptions
from gap.classifiers.registry import is_untrained
from gap.core.artifact import open_artifact
from gap.core.device import pick_device
from gap.core.errors import GapError, GapWarning
from gap.core.frozen import frozen
from gap.core.network import device_of
from gap.data.class_names import find_difference, match_classes
from gap.data.dataset import MIN_IMAGES, Dataset, Split, sequential_batches
from gap.data.registry import converted, load_data

# A drop of the accuracy that brings a warning, when it is also beyond sampling noise.
LARGE_DROP = 0.1
# The largest number of images on which a classifier is checked before an attack.
TRIAL_IMAGES = 2000
# Images per batch where only predictions are needed.
BATCH_SIZE = 256


@dataclass(frozen=True)
class AttackTask:
    """Classifiers with the same input, and the data they are attacked on, in which every image has a label."""

    classifiers: list[Classifier]
    data: Dataset

    @property
    def classes(self) -> int:
        return self.classifiers[0].spec.classes


InputShape = tuple[int, tuple[int, int]]


def load_classifiers(
    models: Sequence[ClassifierLike],
    input_shape: InputShape | None = None,
    default_input_shape: InputShape | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> list[Classifier]:
    """Classifiers for images with the channels and size of the first; those with another size resize the images.

    `input_shape`, channels and (H, W), is the requested input shape of networks that do not define one;
    `default_input_shape` is used if it is None. `mean` and `std` are for networks without a normalizer. Raises GapError
    where the classifiers differ in channels, in classes or in the order of their class names, and where `mean` and
    `std` are given although all classifiers have their own.
    """
    load = partial(as_classifier, mean=mean, std=std, lenient=True)
    channels, size = input_shape or default_input_shape or (None, None)
    first = load(models[0], channels=channels, size=size)
    spec = first.spec
    channels, size = input_shape or (spec.channels, spec.size)
    others = [load(name, channels=channels, size=size) for name in models[1:]]
    check_normalizer([first, *others], mean, std)
    for other in others:
        if (other.spec.channels, other.spec.classes) != (spec.channels, spec.classes):
            raise GapError(f"{other.name} and {first.name} differ in channels or classes; take one at a time")
        if other.spec.size != spec.size:
            sizes = ["x".join(map(str, classifier.spec.size)) for classifier in (first, other)]
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
    """Load classifiers, and data that matches them. `data` replaces the data of the options.

    Networks of any input size use the size of the data, and data without a size uses that of the first classifier.
    The images have the first classifier's size; classifiers with another size resize them. Images without labels are
    labeled with the first classifier's predictions. Labels are matched to the classifiers' classes, by name where a
    trained classifier has class names (see `match_classes`). `mean` and `std` are for classifiers without a normalizer.
    Networks that are not given by name keep their device and memory format. Raises GapError where the classifiers and
    the data cannot be matched.
    """
    requested = parse_input_shape(options.input)
    user_data = data
    if data is None and requested is None and not options.data.startswith("folder:"):
        data = load_data(options.data, options.data_root)
    data_shape = (data.channels, data.size) if data else None
    classifiers = load_classifiers(models, requested, data_shape, options.mean, options.std)
    first = classifiers[0].spec
    if data is None or (first.channels, first.size) != (data.channels, data.size):
        if data is not None:
            shape = "x".join(map(str, (first.channels, *first.size)))
            warnings.warn(f"{data.name} is given to {classifiers[0].name} as {shape}", GapWarning, stacklevel=2)
        if user_data is not None:
            data = converted(user_data, first.channels, first.size)
        else:
            data = load_data(options.data, options.data_root, channels=first.channels, size=first.size)
    num_classes = None
    if options.labels != "predicted":
        data = match_labels(data, classifiers)
        num_classes = data.classes
    classifiers = [_with_num_classes(classifier, num_classes) for classifier in classifiers]
    for classifier in classifiers:
        check_compatible(
            classifier,
            channels=data.channels,
            classes=num_classes,
            data=data.name,
            labels_index_model=data.labels_index_model,
        )
    for index, (model, classifier) in enumerate(zip(models, classifiers, strict=True)):
        if isinstance(model, nn.Module):  # the user decides on the device and memory format of these
            classifiers[index] = on_device(classifier, device)
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
    """A task of classifiers and data, each either a name or an object of the user.

    `adapt` converts data that is not a name to a Dataset. The default device is that of the first network, or the
    first accelerator of torch where all networks are given by name. `options` are those of DataOptions.
    """
    is_name = isinstance(data, str | os.PathLike)
    data_options = DataOptions.read(({"data": str(data)} if is_name else {}) | options)
    return load_task(models, data_options, find_device(models, device), data=None if is_name else adapt(data))


def find_device(models: Sequence[ClassifierLike], device: torch.device | str | None = None) -> torch.device:
    """The device of that name. Without one, it is the device of the first network, if any.

    Where all models are names, it is the first accelerator, or the CPU where there is none. Raises GapError for a
    device that is not available.
    """
    if device is not None:
        return pick_device(device)
    network = next((model for model in models if isinstance(model, nn.Module)), None)
    return pick_device("auto") if network is None else device_of(network)


def label_with_predictions(data: Dataset, classifier: Classifier, device: torch.device | str = "cpu") -> Dataset:
    """The data with a classifier's predictions as labels."""
    return replace(
        data,
        train=_label_with(data.train, classifier, device),
        validation=_label_with(data.validation, classifier, device),
        test=_label_with(data.test, classifier, device),
        classes=classifier.spec.classes,
        class_names=classifier.spec.class_names,
    )


def with_labels_of(task: AttackTask, data: Dataset, *, predicted: bool) -> Dataset:
    """Further data for a task with labels as in the task's data: classes of its classifiers, or predictions.

    Raises GapError where its labels do not match these classes.
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
    """Set the class names of a classifier that will be trained on this data, if it has none."""
    if classifier.spec.class_names is None and data.classes == classifier.spec.classes:
        classifier.spec = replace(classifier.spec, class_names=data.class_names)


def _known_names(classifier: Classifier) -> tuple[str, ...] | None:
    """The names of a classifier's classes; None unless every class has one."""
    names = classifier.spec.class_names
    return names if names and len(names) == classifier.spec.classes else None


def _check_order(classifiers: Sequence[Classifier]) -> None:
    """Raise GapError where two classifiers with class names have them in different orders."""
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
    """The data with labels matched to the classes of a classifier.

    It is the first trained classifier that has class names, or else the first trained one. Without a trained
    classifier the data is unchanged.
    """
    learned = [classifier for classifier in classifiers if not is_untrained(classifier.name)]
    reference = next(filter(_known_names, learned), next(iter(learned), None))
    if reference is None:
        return data
    return match_classes(data, reference.name, reference.spec.classes, _known_names(reference))


def _with_classes_of(data: Dataset, classifier: Classifier) -> Dataset:
    """Data whose labels are class indices of a classifier, with the classifier's number of classes and class names.

    Where the classifier has no class names, those of the data are used.
    """
    spec = classifier.spec
    own = data.class_names if data.class_names and len(data.class_names) == spec.classes else None
    return replace(data, classes=spec.classes, class_names=spec.class_names or own)


def _with_num_classes(classifier: Classifier, classes: int | None) -> Classifier:
    """An untrained network rebuilt with the data's number of classes; any other classifier unchanged."""
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
def accuracy(
    classifier: Classifier,
    split: Split,
    device: torch.device | str = "cpu",
    batches: Sequence[Tensor] | None = None,
) -> float:
    """The share of a split's images, or of those with the indices in `batches`, that are classified correctly."""
    if batches is None:
        batches = sequential_batches(split, BATCH_SIZE)
    num_correct = 0
    with frozen(classifier):
        for images, labels in split.batches(batches, device):
            num_correct += int((classifier(images).argmax(dim=1) == labels).sum())
    return num_correct / max(1, sum(map(len, batches)))


def is_at_chance_level(share: float, classes: int, split: Split, images: int | None = None) -> bool:
    """Whether an accuracy is no better than that of random guessing, or of always predicting the most common label.

    `images` is the number of images of the accuracy, if it is not that of the split.
    """
    labels = split.labels if split.labels is not None else torch.zeros(0, dtype=torch.int64)
    majority = labels.bincount(minlength=1).max().item() / max(1, len(split))
    chance = max(1 / classes, majority)
    return share < chance + 2 * (chance * (1 - chance) / max(1, images or len(split))) ** 0.5


def warn_if_any_at_chance(task: AttackTask, batch_size: int = BATCH_SIZE) -> None:
    """Run `warn_if_at_chance` on each classifier of a task, in batches of at most `batch_size`."""
    for classifier in task.classifiers:
        warn_if_at_chance(
            classifier, task.data.trial_split, classifier.device, task.data.name, min(batch_size, BATCH_SIZE)
        )


def warn_if_at_chance(
    classifier: Classifier, split: Split, device: torch.device | str, data: str, batch_size: int = BATCH_SIZE
) -> None:
    """Warn where a classifier is untrained, at chance level on this data, or far below the accuracy in its card.

    The results of attacks on such a classifier are meaningless. The accuracy is that on at most TRIAL_IMAGES images, a
    fixed sample.
    """
    if is_untrained(classifier.name):
        warnings.warn(f"{classifier.name} has randomly initialized weights", GapWarning, stacklevel=2)
        return
    if len(split) < MIN_IMAGES:
        return
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    sample = order[:TRIAL_IMAGES].sort().values
    measured = accuracy(classifier, split, device, sample.split(batch_size))
    at_chance = is_at_chance_level(measured, classifier.spec.classes, split, len(sample))
    recorded = _recorded_accuracy(classifier)
    if recorded and recorded.is_far_above(measured, len(sample)):
        guessing = ", no better than chance," if at_chance else ""
        warnings.warn(
            f"{classifier.name} has an accuracy of {measured:.1%} on {data}{guessing} and had {recorded.accuracy:.1%}"
            f" on the test images of {recorded.data}; check that the data, the order of the classes and the"
            " normalization (`mean`, `std`) are those of its training",
            GapWarning,
            stacklevel=2,
        )
    elif at_chance:
        warnings.warn(
            f"{classifier.name} has an accuracy of {measured:.1%} on {data}, no better than chance;"
            " check that it is trained and gets its normalization (`mean`, `std`)",
            GapWarning,
            stacklevel=2,
        )


@dataclass(frozen=True)
class _Recorded:
    """The test accuracy in the card of a classifier, with the name of the data and its number of test images."""

    accuracy: float
    data: str
    images: int

    def is_far_above(self, accuracy: float, images: int) -> bool:
        """Whether it exceeds an accuracy on `images` images by more than LARGE_DROP and more than sampling noise."""
        variance = self.accuracy * (1 - self.accuracy) / self.images + accuracy * (1 - accuracy) / images
        return self.accuracy - accuracy > max(LARGE_DROP, 2 * variance**0.5)


def _recorded_accuracy(classifier: Classifier) -> _Recorded | None:
    """The test accuracy in the card of these weights, regardless of the normalizer; None without such a card."""
    folder = model_dir_of(classifier.name)
    if folder is None:
        return None
    card = open_artifact(folder).card
    try:
        data, images = card["data"]["name"], int(card["data"]["images"]["test"])
        recorded = _Recorded(float(card["metrics"]["test"]["accuracy"]), data, images)
        same_weights = card["classifier"]["fingerprint"] == classifier.fingerprint()
    except (KeyError, TypeError, ValueError):  # the card of another kind of artifact, or one without metrics
        return None
    return recorded if same_weights and images else None


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
