"""Data out of whatever a user holds: a name, two tensors, a torch Dataset, a DataLoader, a Hugging Face dataset."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
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

from gap.core.errors import GapError
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

# Keys under which a mapping holds its image and its label, the first that it has.
IMAGE_KEYS = ("image", "img", "images", "pixel_values")
LABEL_KEYS = ("label", "labels", "fine_label", "target", "class")
# How far a float may be outside of [0, 1] by rounding.
TOLERANCE = 1e-4


@dataclass
class DatasetSplit:
    """Images of a map-style dataset of the user's own, read when they are needed.

    Each item is an image and its label: a tuple, or a mapping with keys such as "image" and "label". `transform` makes
    of each batch, uint8, the images that are wanted: other channels or another size. `workers` processes read ahead.
    """

    dataset: Any
    indices: Tensor
    labels: Tensor | None
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
            collate_fn=_stack_images,
        )
        for images in loader:
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
        return Dataset(
            name=self.name,
            train=train,
            validation=validation,
            test=test,
            channels=self.channels,
            size=self.size,
            class_names=self.class_names,
            classes=None if labels is None or not len(labels) else int(labels.max()) + 1,
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

    Args:
        data: a pair of tensors (images N x C x H x W, uint8 or floats in [0, 1], and N labels), a torch Dataset or
            DataLoader of (image, label), a Hugging Face `datasets.Dataset`, or a `gap.data.dataset.Dataset`. Images are
            tensors, arrays or PIL images of one size; floats are rounded to 8 bits. Labels are the indices of the
            classifier's classes.

    Returns:
        A dataset whose test split is empty.

    Raises:
        GapError: for an object that is none of these, and for pixels outside of [0, 1].
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
        data = data.tensors
    if isinstance(data, tuple | list) and len(data) == 2 and all(_is_array(each) for each in data):
        return _from_tensors("tensors", torch.as_tensor(data[0]), torch.as_tensor(data[1]))
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) or isinstance(data, str | Path | Mapping):
        raise GapError(
            f"data is a name, a pair of tensors, a torch Dataset or DataLoader, or a Hugging Face dataset, not a"
            f" {type(data).__name__}"
        )
    return _from_dataset(data)


def _from_loader(loader: DataLoader[Any]) -> _Images:
    """The dataset behind a loader, or all its batches where it has none that can be read by index."""
    if not isinstance(loader.dataset, IterableDataset) and _reads_by_index(loader):
        whole = isinstance(loader.sampler, SequentialSampler | RandomSampler)
        images = _find_images(loader.dataset if whole else Subset(loader.dataset, list(loader.sampler)))
        if isinstance(images.split, DatasetSplit):
            return replace(images, split=replace(images.split, workers=loader.num_workers))
        return images
    batches = [_image_and_label(batch) for batch in loader]
    if not batches:
        raise GapError("the DataLoader gives no batch")
    pixels, labels = (torch.cat([torch.as_tensor(each) for each in column]) for column in zip(*batches, strict=True))
    return _from_tensors(type(loader.dataset).__name__, pixels, labels)


def _reads_by_index(loader: DataLoader[Any]) -> bool:
    """Whether a loader only puts items of its dataset together, one index after another."""
    plain = loader.collate_fn is torch.utils.data.default_collate
    return plain and type(loader.batch_sampler) is BatchSampler


def _from_tensors(name: str, images: Tensor, labels: Tensor) -> _Images:
    if images.ndim != 4:
        raise GapError(f"images are N x C x H x W, not of the shape {tuple(images.shape)}")
    if len(images) != len(labels) or labels.ndim != 1:
        raise GapError(f"{len(images)} images need as many labels, one number each, not {tuple(labels.shape)}")
    split = InMemorySplit(_as_levels(images).cpu().contiguous(), _as_labels(labels))
    return _Images(name, split, images.shape[1], (images.shape[2], images.shape[3]), None)


def _from_dataset(dataset: Any) -> _Images:
    if not len(dataset):
        raise GapError(f"{type(dataset).__name__} holds no images")
    image, _ = _image_and_label(dataset[0])
    channels, height, width = _as_image_levels(image).shape
    labels = _find_labels(dataset)
    split = DatasetSplit(dataset, torch.arange(len(dataset)), labels)
    return _Images(type(_root(dataset)).__name__, split, channels, (height, width), _find_class_names(dataset))


def _root(dataset: Any) -> Any:
    """The dataset that a Subset, or a Subset of one, is part of."""
    return _root(dataset.dataset) if isinstance(dataset, Subset) else dataset


def _find_class_names(dataset: Any) -> tuple[str, ...] | None:
    """The class names of a torchvision or Hugging Face dataset."""
    root = _root(dataset)
    names = getattr(root, "classes", None)
    for key in LABEL_KEYS:
        features = getattr(root, "features", None)
        if names is None and isinstance(features, Mapping) and key in features:
            names = getattr(features[key], "names", None)
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_list and names else None


def _find_labels(dataset: Any) -> Tensor:
    """The labels of all items: from where datasets keep them, else by reading every item."""
    if isinstance(dataset, Subset):
        return _find_labels(dataset.dataset)[torch.as_tensor(dataset.indices)]
    for name in ("targets", "labels"):
        labels = getattr(dataset, name, None)
        if labels is not None and _is_array(labels) and len(labels) == len(dataset) and _agree(labels, dataset):
            return _as_labels(labels)
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list):
        key = next((key for key in LABEL_KEYS if key in columns), None)
        if key:
            return _as_labels(list(dataset[key]))
    return _as_labels([int(_image_and_label(dataset[index])[1]) for index in range(len(dataset))])


def _agree(labels: Any, dataset: Any) -> bool:
    """Whether a column of labels has the labels of some items; a transform of the labels may change these."""
    some = range(0, len(dataset), max(1, len(dataset) // 16))
    return all(int(labels[index]) == int(_image_and_label(dataset[index])[1]) for index in some)


def _as_labels(labels: Any) -> Tensor:
    tensor = torch.as_tensor(labels).to("cpu")
    if tensor.ndim != 1 or tensor.is_floating_point():
        raise GapError(f"labels are one whole number for each image, not {tuple(tensor.shape)} of {tensor.dtype}")
    if len(tensor) and int(tensor.min()) < 0:
        raise GapError(f"labels are indices of classes, 0 or more, not {int(tensor.min())}")
    return tensor.to(torch.int64)


def _is_array(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(each, int) for each in value[:10])
    return isinstance(value, Tensor | np.ndarray)


def _image_and_label(item: Any) -> tuple[Any, Any]:
    """The image and the label of an item, or of a batch of them."""
    if isinstance(item, Mapping):
        keys = [next((key for key in names if key in item), None) for names in (IMAGE_KEYS, LABEL_KEYS)]
        if None not in keys:
            return item[keys[0]], item[keys[1]]
        raise GapError(f"an item of the data has the keys {', '.join(map(str, item))}; name them image and label")
    if isinstance(item, tuple | list) and len(item) >= 2:
        return item[0], item[1]
    raise GapError(f"an item of the data is an image and its label, not a {type(item).__name__}")


def _stack_images(items: list[Any]) -> Tensor:
    """The images of items as uint8, N x C x H x W."""
    images = [_as_image_levels(_image_and_label(item)[0]) for item in items]
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        sizes = " and ".join("x".join(map(str, shape)) for shape in sorted(shapes)[:2])
        raise GapError(f"the images of the data differ in size ({sizes}); add a transform that resizes them")
    return torch.stack(images)


def _as_image_levels(image: Any) -> Tensor:
    """One image, a tensor, an array or a PIL image, as uint8 C x H x W."""
    if isinstance(image, Image.Image):
        pixels = torch.from_numpy(np.array(image.convert("L" if image.mode in ("1", "L", "I", "I;16", "F") else "RGB")))
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
    if not isinstance(image, Tensor | np.ndarray):
        raise GapError(f"an image of the data is a tensor, an array or a PIL image, not a {type(image).__name__}")
    pixels = torch.as_tensor(image)
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim == 3 and isinstance(image, np.ndarray) and pixels.shape[2] in (1, 3) and pixels.shape[0] > 3:
        pixels = pixels.permute(2, 0, 1)  # arrays hold channels last, as pictures do
    if pixels.ndim != 3:
        raise GapError(f"an image of the data is C x H x W, not of the shape {tuple(pixels.shape)}")
    return _as_levels(pixels)


def _as_levels(images: Tensor) -> Tensor:
    """Pixels as uint8: uint8 as it is, floats in [0, 1] rounded to 8 bits."""
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise GapError(f"pixels are uint8 or floats in [0, 1], not {images.dtype}")
    if not images.numel():
        return images.to(torch.uint8)
    low, high = images.min().item(), images.max().item()
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        raise GapError(
            f"pixels are floats in [0, 1], and these go from {low:.3g} to {high:.3g}; leave normalization out of the"
            " data and give it to the classifier: gap.Classifier(model, mean=..., std=...)"
        )
    return images.float().mul(255).round().clamp(0, 255).to(torch.uint8)
