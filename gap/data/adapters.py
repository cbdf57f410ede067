"""Conversion of tensors, torch Datasets, DataLoaders and Hugging Face datasets to gap's Dataset."""

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
    is_image,
    is_image_list,
    label_index,
    label_indices,
    read_batch,
    stack,
)

# About this many items of a dataset are read to find its number of channels and to check its column of labels.
NUM_SAMPLES = 16
# The class names of torchvision's MNIST; elsewhere they are "0" to "9".
DIGIT_NAME = re.compile(r"(\d) - [a-z]+")


@dataclass
class DatasetSplit:
    """Images of a user's map-style dataset, read when they are needed.

    An item is an image and its label: a tuple, or a mapping with keys such as "image" and "label". `shape` is the
    C x H x W of the images. `transform` converts each uint8 batch to other channels or another size. `workers` is the
    number of processes that read ahead.
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
        pending: list[Tensor] = []

        def item_indices() -> Iterator[list[int]]:
            for indices in order:
                pending.append(indices)
                yield self.indices[indices].tolist()

        loader = DataLoader(
            self.dataset,
            batch_sampler=item_indices(),
            num_workers=self.workers,
            collate_fn=partial(_stack_images, shape=self.shape),
        )
        for images in loader:
            if isinstance(images, GapError):
                raise images
            pixels = self.transform(images) if self.transform else images
            yield (
                as_floats(pixels, torch.device(device)),
                take_labels(self.labels, pending.pop(0)).to(device),
            )

    def with_labels(self, labels: Tensor) -> "DatasetSplit":
        return replace(self, labels=validate_labels(labels, len(self)), labels_are_original=False)

    def renumbered(self, mapping: Tensor) -> "DatasetSplit":
        return self if self.labels is None else replace(self, labels=mapping[self.labels])

    def part(self, positions: Tensor) -> "DatasetSplit":
        """The images at these positions."""
        labels = None if self.labels is None else self.labels[positions]
        return replace(self, indices=self.indices[positions], labels=labels)

    def fingerprint(self) -> str:
        """A sha256 of the dataset's class, the indices of the images, and their original labels."""
        digest = hashlib.sha256(type(self.dataset).__qualname__.encode())
        digest.update(self.indices.numpy().tobytes())
        if self.labels is not None and self.labels_are_original:
            digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()

    def file_fingerprint(self) -> str:
        return self.fingerprint()


@dataclass(frozen=True)
class _UserImages:
    """All images of an object of the user, in one split."""

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
    """The name of data for cards: the name itself, or the type of an object."""
    return str(data) if is_data_name(data) else type(data).__name__


def training_data(data: Any) -> Dataset:
    """A Dataset of a user's data for training: 5% of the images, at random, are for validation.

    Images are uint8 or floats in [0, 1], which are rounded to 8 bits. A tensor is C x H x W, and a batch of tensors
    N x C x H x W. In arrays the channels may also be last if the shape is unambiguous: 1, 3 or 4 channels, with a
    height that is not one of these numbers. PIL images are converted to 8 bits without transparency, as files are. All
    images must have one size. If some images are RGB, gray ones are converted to RGB.

    A label is the index of a class: a whole number, alone or in an array with one value, or a one-hot vector. If the
    dataset has class names (`.classes`, or Hugging Face's `ClassLabel`), these are matched with those of the
    classifier.

    Args:
        data: a pair (N images, N labels), a torch Dataset or DataLoader, a Hugging Face `datasets.Dataset`, or a
            `gap.data.dataset.Dataset`. Items and batches are sequences that begin with image and label, or mappings
            with keys such as "image" and "label"; a DataLoader may also yield lists of items, or single items.

    Returns:
        A dataset whose test split is empty.

    Raises:
        GapError: for an object of any other type, for pixels outside of [0, 1], and for tensors with the channels last.
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


def image_data(data: Any) -> Dataset:
    """A Dataset of a user's images for a training that needs no labels: 5% of them, at random, are for validation.

    Args:
        data: images alone, as a tensor or an array of N images, a list of images, or a torch Dataset whose items are
            images; or data with labels in a form that `training_data` takes.

    Raises:
        GapError: as `training_data`.
    """
    if isinstance(data, TensorDataset) and len(data.tensors) == 1:
        data = data.tensors[0]
    if is_image_list(data):
        data = (data, torch.zeros(len(data), dtype=torch.long))
    elif isinstance(data, torch.utils.data.Dataset) and not isinstance(data, IterableDataset):
        count = len(data) if hasattr(data, "__len__") else 0
        if count and is_image(data[0]):
            return replace(training_data(_ImagesAlone(data, count)), name=type(_root(data)).__name__)
    return training_data(data)


class _ImagesAlone(torch.utils.data.Dataset[tuple[Any, int]]):
    """A dataset of images without labels, with the label 0 for each."""

    def __init__(self, images: torch.utils.data.Dataset[Any], count: int) -> None:
        self.images, self.targets = images, [0] * count

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images[index], 0


def evaluation_data(data: Any) -> Dataset:
    """A Dataset of a user's data for evaluation: all images are test images.

    The arguments and errors are those of `training_data`. The training and validation splits are empty.
    """
    if isinstance(data, Dataset):
        return data
    images = _find_images(data)
    no_indices = torch.arange(0)
    # Shuffled with a fixed seed: the first images of data that is sorted by class would all be of one class.
    (order,) = random_split_indices(len(images.split))
    return images.dataset(
        images.part(no_indices), images.part(no_indices), images.part(order), "all of them are test images"
    )


def _find_images(data: Any) -> _UserImages:
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


def _from_loader(loader: DataLoader[Any]) -> _UserImages:
    """The images of a loader's dataset, or of all its batches where the dataset cannot be read by index."""
    if not isinstance(loader.dataset, IterableDataset) and _reads_by_index(loader):
        images = _find_images(loader.dataset if _reads_all(loader) else Subset(loader.dataset, list(loader.sampler)))
        if isinstance(images.split, DatasetSplit):
            return replace(images, split=replace(images.split, workers=loader.num_workers))
        return images
    batches = [read_batch(batch) for batch in loader]
    if not batches:
        raise GapError("the DataLoader gives no batch")
    stack([images[0] for images, _ in batches if len(images)])  # raises for batches of different shapes
    pixels, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    return _from_tensors(type(_root(loader.dataset)).__name__, pixels, labels, _find_class_names(loader.dataset))


def _reads_by_index(loader: DataLoader[Any]) -> bool:
    """Whether a loader uses torch's default batches, so that its dataset can be read instead."""
    has_default_collate = loader.collate_fn is torch.utils.data.default_collate
    return has_default_collate and type(loader.batch_sampler) is BatchSampler


def _reads_all(loader: DataLoader[Any]) -> bool:
    """Whether a loader reads every item of its dataset exactly once, in any order."""
    sampler: Any = loader.sampler
    if not isinstance(sampler, SequentialSampler | RandomSampler) or getattr(sampler, "replacement", False):
        return False
    # A sampler by index asks its dataset for its length, which the type `Dataset` does not declare.
    return len(sampler) == len(loader.dataset)  # type: ignore[arg-type]


def _from_tensors(name: str, images: Tensor, labels: Tensor, class_names: tuple[str, ...] | None = None) -> _UserImages:
    if len(images) != len(labels):
        raise GapError(f"{len(images)} images need as many labels, one number each, not {len(labels)}")
    split = InMemorySplit(images.cpu().contiguous(), labels)
    return _UserImages(name, split, images.shape[1], (images.shape[2], images.shape[3]), class_names)


def _from_dataset(dataset: Any) -> _UserImages:
    name, count = type(_root(dataset)).__name__, len(dataset)
    if not count:
        raise GapError(f"{name} holds no images")
    samples = {index: image_and_label(dataset[index]) for index in range(0, count, -(-count // NUM_SAMPLES))}
    shapes = [tuple(image_levels(image).shape) for image, _ in samples.values()]
    channels, (_, height, width) = max(shape[0] for shape in shapes), shapes[0]
    labels = _find_labels(dataset, {index: label_index(label) for index, (_, label) in samples.items()})
    split = DatasetSplit(dataset, torch.arange(count), labels, (channels, height, width))
    return _UserImages(name, split, channels, (height, width), _find_class_names(dataset))


def _root(dataset: Any) -> Any:
    """The dataset inside a Subset, or inside nested Subsets."""
    return _root(dataset.dataset) if isinstance(dataset, Subset) else dataset


def _indices_in_root(dataset: Any) -> Tensor | None:
    """The indices in the root dataset of the items of a Subset, or of nested Subsets; None for the root itself."""
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
        # ImageNet in torchvision has a tuple of synonyms and a WordNet ID for each class.
        names = [f"{identifier}_{name[0]}" for identifier, name in zip(identifiers, names, strict=False)]
    if not all(isinstance(name, str) for name in names):
        return None
    digits = [DIGIT_NAME.fullmatch(name) for name in names]
    return tuple(digit[1] for digit in digits if digit) if all(digits) else tuple(names)


def _find_labels(dataset: Any, sampled_labels: Mapping[int, int]) -> Tensor:
    """The labels of all items, from a column of labels if there is one, or else by reading every item.

    A column is used only if it agrees with the labels of some items, because the dataset may transform its labels.
    `sampled_labels` are these labels by index.
    """
    indices = _indices_in_root(dataset)
    for column in _label_columns(_root(dataset)):
        labels = column if indices is None else column[indices]
        if all(int(labels[index]) == label for index, label in sampled_labels.items()):
            return labels
    return label_indices([label_index(image_and_label(dataset[index])[1]) for index in range(len(dataset))])


def _label_columns(dataset: Any) -> Iterator[Tensor]:
    """The labels of all items, from each attribute or column where a dataset may have them."""
    for name in ("targets", "labels"):
        if (labels := _as_column(getattr(dataset, name, None), len(dataset))) is not None:
            yield labels
    columns = getattr(dataset, "column_names", None)
    key = next((key for key in LABEL_KEYS if key in columns), None) if isinstance(columns, list) else None
    if key:
        # A format, or a transform of whole rows, may fail without the images.
        unformatted = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
        if (labels := _as_column(list(unformatted[key]), len(dataset))) is not None:
            yield labels


def _as_column(labels: Any, count: int) -> Tensor | None:
    """Labels as indices, if there are `count` of them; None for anything else."""
    try:
        indices = label_indices(labels)
    except GapError:
        return None
    return indices if len(indices) == count else None


def _stack_images(items: list[Any], shape: tuple[int, int, int]) -> Tensor | GapError:
    """The images of items as uint8, N x C x H x W.

    A GapError is returned, not raised: one that another process raises arrives with another type.
    """
    try:
        return stack([_with_channels(image_levels(image_and_label(item)[0]), shape) for item in items])
    except GapError as error:
        return error


def _with_channels(image: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """An image in that shape: a gray image is converted to RGB if needed."""
    if image.shape[0] == 1 and shape[0] == 3:
        image = image.expand(3, -1, -1)
    if tuple(image.shape) == shape:
        return image
    actual, expected = ("x".join(map(str, sizes)) for sizes in (image.shape, shape))
    if image.shape[0] != shape[0]:
        raise GapError(f"the images of the data differ in channels ({expected} and {actual}); convert all to RGB")
    raise GapError(
        f"the images of the data differ in size ({expected} and {actual}); add a transform that resizes them"
    )
