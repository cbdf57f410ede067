"""Data out of whatever a user holds: a name, two tensors, a torch Dataset, a DataLoader, a Hugging Face dataset."""

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from gap.core.errors import GapError, GapWarning
from gap.data.dataset import (
    Dataset,
    InMemorySplit,
    Split,
    as_floats,
    random_split_indices,
    take_labels,
    validate_labels,
    validation_count,
)
from gap.data.items import (
    LABEL_KEYS,
    batch_levels,
    image_and_label,
    image_levels,
    is_columns,
    label_index,
    label_indices,
    read_batch,
    stack,
)

# So many items of a dataset, spread over it, say how many channels it has and whether its column of labels is right.
PROBES = 16
# How torchvision's MNIST calls its classes; elsewhere they are "0" to "9".
DIGIT_NAME = re.compile(r"(\d) - [a-z]+")


@dataclass
class DatasetSplit:
    """Images of a map-style dataset of the user's own, read when they are needed.

    Each item is an image and its label: a tuple, or a mapping with keys such as "image" and "label". `shape` is the
    C x H x W of the images. `transform` makes of each batch, uint8, the images that are wanted: other channels or
    another size. `workers` processes read ahead.
    """

    dataset: Any
    indices: Tensor
    labels: Tensor | None
    shape: tuple[int, int, int]
    workers: int = 0
    transform: Callable[[Tensor], Tensor] | None = field(default=None, repr=False, compare=False)
    labels_are_original: bool = field(default=True, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, order: Iterable[Tensor], device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """As `gap.data.dataset.Split.batches`."""
        order = list(order) if self.workers else order
        taken: list[Tensor] = []

        def positions() -> Iterator[list[int]]:
            for indices in order:
                taken.append(indices)
                yield self.indices[indices].tolist()

        loader = DataLoader(
            self.dataset,
            batch_sampler=positions(),
            num_workers=self.workers,
            collate_fn=partial(_stack_images, shape=self.shape),
        )
        for images in loader:
            if isinstance(images, GapError):
                raise images
            pixels = self.transform(images) if self.transform else images
            yield (
                as_floats(pixels, torch.device(device)),
                take_labels(self.labels, taken.pop(0)).to(device),
            )

    def with_labels(self, labels: Tensor) -> "DatasetSplit":
        return replace(self, labels=validate_labels(labels, len(self)), labels_are_original=False)

    def renumbered(self, mapping: Tensor) -> "DatasetSplit":
        return self if self.labels is None else replace(self, labels=mapping[self.labels])

    def part(self, positions: Tensor) -> "DatasetSplit":
        """Some of these images."""
        labels = None if self.labels is None else self.labels[positions]
        return replace(self, indices=self.indices[positions], labels=labels)

    def fingerprint(self) -> str:
        """A sha256 of what the dataset is called, which of its images are meant, and their labels."""
        digest = hashlib.sha256(type(self.dataset).__qualname__.encode())
        digest.update(self.indices.numpy().tobytes())
        if self.labels is not None and self.labels_are_original:
            digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()

    def file_fingerprint(self) -> str:
        return self.fingerprint()


@dataclass(frozen=True)
class _Images:
    """What an object of the user's holds: all its images in one split."""

    name: str
    split: InMemorySplit | DatasetSplit
    channels: int
    size: tuple[int, int]
    class_names: tuple[str, ...] | None

    def part(self, positions: Tensor) -> InMemorySplit | DatasetSplit:
        if isinstance(self.split, DatasetSplit):
            return self.split.part(positions)
        labels = None if self.split.labels is None else self.split.labels[positions]
        return InMemorySplit(self.split.images[positions], labels)

    def dataset(self, train: Split, validation: Split, test: Split, division: str) -> Dataset:
        labels = self.split.labels
        classes = None if labels is None or not len(labels) else int(labels.max()) + 1
        names = self.class_names
        if names and (classes or 0) > len(names):
            warnings.warn(
                f"{self.name} has {len(names)} class names and the label {(classes or 0) - 1}; its labels are taken as"
                " class indices",
                GapWarning,
                stacklevel=3,
            )
            names = None
        return Dataset(
            name=self.name,
            train=train,
            validation=validation,
            test=test,
            channels=self.channels,
            size=self.size,
            class_names=names,
            classes=len(names) if names else classes,
            source="given in Python",
            split_description=division,
            labels_index_model=True,
        )


def is_data_name(data: Any) -> bool:
    """Whether data is given by name, as "cifar10" or "folder:PATH"."""
    return isinstance(data, str | Path)


def data_name(data: Any) -> str:
    """The name of data as cards have it: the name itself, or the type of an object."""
    return str(data) if is_data_name(data) else type(data).__name__


def training_data(data: Any) -> Dataset:
    """The dataset that an object stands for, to train on: a twentieth of its images is held out for validation.

    Images are uint8 or floats in [0, 1], which are rounded to 8 bits. A tensor is C x H x W, and a batch of them
    N x C x H x W. In arrays the channels may also come last where only that can be meant: 1, 3 or 4 of them, after a
    height that is none of these. PIL images become 8-bit and opaque as files do. All images have one size; gray ones
    among RGB ones become RGB.

    A label is the index of a class: a whole number, alone or in an array of one, or a vector with a single 1. Where the
    dataset has names for its classes (`.classes`, or Hugging Face's `ClassLabel`), these are matched with those of the
    classifier.

    Args:
        data: a pair (N images, N labels), a torch Dataset or DataLoader, a Hugging Face `datasets.Dataset`, or a
            `gap.data.dataset.Dataset`. Items and batches are sequences that begin with image and label, or mappings
            with keys such as "image" and "label"; a DataLoader may also give lists of items, or single items.

    Returns:
        A dataset whose test split is empty.

    Raises:
        GapError: for an object that is none of these, for pixels outside of [0, 1], and for tensors with the channels
            last.
    """
    if isinstance(data, Dataset):
        return data
    images = _find_images(data)
    held_out, train = random_split_indices(len(images.split), validation_count(len(images.split)))
    return images.dataset(
        images.part(train.sort().values),
        images.part(held_out.sort().values),
        images.part(torch.arange(0)),
        "5% held out at random for validation; no test images",
    )


def evaluation_data(data: Any) -> Dataset:
    """The dataset that an object stands for, to measure on: all its images are test images.

    Takes and raises the same as `training_data`. The training and validation splits are empty.
    """
    if isinstance(data, Dataset):
        return data
    images = _find_images(data)
    none = torch.arange(0)
    # In a fixed random order: the first so many of data that is sorted by class would be of one class.
    (order,) = random_split_indices(len(images.split))
    return images.dataset(images.part(none), images.part(none), images.part(order), "all of them are test images")


def _find_images(data: Any) -> _Images:
    if isinstance(data, DataLoader):
        return _from_loader(data)
    if isinstance(data, TensorDataset):
        if len(data.tensors) < 2:
            raise GapError("a TensorDataset holds images and labels; this one holds no labels")
        data = data.tensors[:2]
    if is_columns(data):
        return _from_tensors("tensors", batch_levels(data[0]), label_indices(data[1]))
    if isinstance(data, Mapping):
        hint = f"choose one of its parts, as data[{next(iter(data))!r}]" if data else "it is empty"
        raise GapError(f"data is not a {type(data).__name__}; {hint}")
    if isinstance(data, IterableDataset) or (hasattr(data, "__iter__") and not hasattr(data, "__getitem__")):
        raise GapError(
            f"a {type(data).__name__} cannot be read by index; give its items as a list, or a DataLoader of it"
        )
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) or isinstance(data, str | Path):
        raise GapError(
            f"data is a name, a pair of tensors, a torch Dataset or DataLoader, or a Hugging Face dataset, not a"
            f" {type(data).__name__}"
        )
    return _from_dataset(data)


def _from_loader(loader: DataLoader[Any]) -> _Images:
    """The dataset behind a loader, or all its batches where it has none that can be read by index."""
    if not isinstance(loader.dataset, IterableDataset) and _reads_by_index(loader):
        images = _find_images(loader.dataset if _reads_all(loader) else Subset(loader.dataset, list(loader.sampler)))
        if isinstance(images.split, DatasetSplit):
            return replace(images, split=replace(images.split, workers=loader.num_workers))
        return images
    batches = [read_batch(batch) for batch in loader]
    if not batches:
        raise GapError("the DataLoader gives no batch")
    stack([images[0] for images, _ in batches if len(images)])  # refuses batches of several shapes
    pixels, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    return _from_tensors(type(_root(loader.dataset)).__name__, pixels, labels, _find_class_names(loader.dataset))


def _reads_by_index(loader: DataLoader[Any]) -> bool:
    """Whether a loader only puts items of its dataset together, one index after another."""
    plain = loader.collate_fn is torch.utils.data.default_collate
    return plain and type(loader.batch_sampler) is BatchSampler


def _reads_all(loader: DataLoader[Any]) -> bool:
    """Whether a loader reads each item of its dataset once, in whatever order."""
    sampler: Any = loader.sampler
    if not isinstance(sampler, SequentialSampler | RandomSampler) or getattr(sampler, "replacement", False):
        return False
    return len(sampler) == len(loader.dataset)  # type: ignore[arg-type]


def _from_tensors(name: str, images: Tensor, labels: Tensor, class_names: tuple[str, ...] | None = None) -> _Images:
    if len(images) != len(labels):
        raise GapError(f"{len(images)} images need as many labels, one number each, not {len(labels)}")
    split = InMemorySplit(images.cpu().contiguous(), labels)
    return _Images(name, split, images.shape[1], (images.shape[2], images.shape[3]), class_names)


def _from_dataset(dataset: Any) -> _Images:
    name, count = type(_root(dataset)).__name__, len(dataset)
    if not count:
        raise GapError(f"{name} holds no images")
    probes = {index: image_and_label(dataset[index]) for index in range(0, count, -(-count // PROBES))}
    shapes = [tuple(image_levels(image).shape) for image, _ in probes.values()]
    channels, (_, height, width) = max(shape[0] for shape in shapes), shapes[0]
    labels = _find_labels(dataset, {index: label_index(label) for index, (_, label) in probes.items()})
    split = DatasetSplit(dataset, torch.arange(count), labels, (channels, height, width))
    return _Images(name, split, channels, (height, width), _find_class_names(dataset))


def _root(dataset: Any) -> Any:
    """The dataset that a Subset, or a Subset of one, is part of."""
    return _root(dataset.dataset) if isinstance(dataset, Subset) else dataset


def _indices_in_root(dataset: Any) -> Tensor | None:
    """Which items of its root a Subset, or a Subset of one, has, in its order; None for the root itself."""
    if not isinstance(dataset, Subset):
        return None
    indices, outer = torch.as_tensor(dataset.indices), _indices_in_root(dataset.dataset)
    return indices if outer is None else outer[indices]


def _find_class_names(dataset: Any) -> tuple[str, ...] | None:
    """The class names of a torchvision or Hugging Face dataset."""
    root = _root(dataset)
    names = getattr(root, "classes", None)
    for key in LABEL_KEYS:
        features = getattr(root, "features", None)
        if names is None and isinstance(features, Mapping) and key in features:
            names = getattr(features[key], "names", None)
    identifiers = getattr(root, "wnids", None)
    if not isinstance(names, list | tuple) or not names:
        return None
    if isinstance(identifiers, list) and all(isinstance(name, tuple) and name for name in names):
        # The sets of ImageNet in torchvision have several synonyms for each class, and a WordNet ID.
        names = [f"{identifier}_{name[0]}" for identifier, name in zip(identifiers, names, strict=False)]
    if not all(isinstance(name, str) for name in names):
        return None
    digits = [DIGIT_NAME.fullmatch(name) for name in names]
    return tuple(digit[1] for digit in digits if digit) if all(digits) else tuple(names)


def _find_labels(dataset: Any, known: Mapping[int, int]) -> Tensor:
    """The labels of all items: from where datasets keep them, else by reading every item.

    A column is believed where it has the labels that are known of some items; a transform of the labels may change
    these.
    """
    indices = _indices_in_root(dataset)
    for column in _label_columns(_root(dataset)):
        labels = column if indices is None else column[indices]
        if all(int(labels[index]) == label for index, label in known.items()):
            return labels
    return label_indices([label_index(image_and_label(dataset[index])[1]) for index in range(len(dataset))])


def _label_columns(dataset: Any) -> Iterator[Tensor]:
    """The labels of all items, from each place where a dataset may keep them."""
    for name in ("targets", "labels"):
        if (labels := _as_column(getattr(dataset, name, None), len(dataset))) is not None:
            yield labels
    columns = getattr(dataset, "column_names", None)
    key = next((key for key in LABEL_KEYS if key in columns), None) if isinstance(columns, list) else None
    if key:
        # A format, or a transform of whole rows, would be asked for labels without their images.
        plain = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
        if (labels := _as_column(list(plain[key]), len(dataset))) is not None:
            yield labels


def _as_column(labels: Any, count: int) -> Tensor | None:
    """Labels, where there is one for each of so many items; None where these are none."""
    try:
        indices = label_indices(labels)
    except GapError:
        return None
    return indices if len(indices) == count else None


def _stack_images(items: list[Any], shape: tuple[int, int, int]) -> Tensor | GapError:
    """The images of items as uint8, N x C x H x W, or why there are none: an error loses its type on the way from
    another process."""
    try:
        return stack([_with_channels(image_levels(image_and_label(item)[0]), shape) for item in items])
    except GapError as error:
        return error


def _with_channels(image: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """An image of that shape; a gray one among RGB ones becomes RGB."""
    if image.shape[0] == 1 and shape[0] == 3:
        image = image.expand(3, -1, -1)
    if tuple(image.shape) == shape:
        return image
    found, expected = ("x".join(map(str, each)) for each in (image.shape, shape))
    if image.shape[0] != shape[0]:
        raise GapError(f"the images of the data differ in channels ({expected} and {found}); convert all to RGB")
    raise GapError(f"the images of the data differ in size ({expected} and {found}); add a transform that resizes them")
