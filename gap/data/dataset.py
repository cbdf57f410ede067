"""Datasets: three disjoint splits of images, which yield batches for given indices."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gap.core.errors import GapError
from gap.data.images import load_image

SEED = 0
# With fewer images, an accuracy is too noisy to be compared.
MIN_IMAGES = 20
BATCHES_AHEAD = 2
DECODERS = min(16, os.cpu_count() or 1)


class Split(Protocol):
    """Images with labels (int64, N) or without (None)."""

    labels: Tensor | None

    def __len__(self) -> int: ...

    def batches(self, order: Iterable[Tensor], device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels on the device for each tensor of indices in `order`.

        Images are float32 N x C x H x W in [0, 1], channels last; labels are int64, -1 without labels. `order` may be
        consumed a few batches ahead.
        """
        ...

    def with_labels(self, labels: Tensor) -> "Split":
        """The same images with other labels, such as predictions, one for each image."""
        ...

    def renumbered(self, mapping: Tensor) -> "Split":
        """The same images with `mapping[label]` in place of each label."""
        ...

    def fingerprint(self) -> str:
        """A sha256 of the selection of images and of their original labels.

        It is the same for a copy of the images in another folder.
        """
        ...

    def file_fingerprint(self) -> str:
        """A sha256 that changes with the fingerprint, and also when an image file is written again."""
        ...


@dataclass
class InMemorySplit:
    """Images in memory: uint8, N x C x H x W. They are copied to a CUDA device once, if they fit into its memory.

    `transform` converts each uint8 batch to other channels or another size. Labels that are not original, such as
    predictions, are not part of the fingerprint.
    """

    images: Tensor
    labels: Tensor | None = None
    device_cache: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)
    transform: Callable[[Tensor], Tensor] | None = field(default=None, repr=False, compare=False)
    labels_are_original: bool = field(default=True, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, order: Iterable[Tensor], device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        device = torch.device(device)
        images = self._images_on(device)
        for indices in order:
            batch = images[indices.to(images.device)]
            if self.transform is not None:
                batch = self.transform(batch.to(device))
            yield as_floats(batch, device), take_labels(self.labels, indices).to(device)

    def with_labels(self, labels: Tensor) -> "InMemorySplit":
        return replace(self, labels=validate_labels(labels, len(self)), labels_are_original=False)

    def renumbered(self, mapping: Tensor) -> "InMemorySplit":
        return self if self.labels is None else replace(self, labels=mapping[self.labels])

    def fingerprint(self) -> str:
        return _digest(self.images.contiguous().numpy().data, self.labels if self.labels_are_original else None)

    def file_fingerprint(self) -> str:
        return self.fingerprint()

    def _images_on(self, device: torch.device) -> Tensor:
        if device.type != "cuda":
            return self.images
        if device not in self.device_cache:
            free, _ = torch.cuda.mem_get_info(device)
            self.device_cache[device] = self.images.to(device) if self.images.nbytes < free / 4 else self.images
        return self.device_cache[device]


@dataclass
class ImageFolderSplit:
    """Image files, decoded in threads a few batches ahead; they are never all in memory.

    `size` is (H, W); images are resized to cover it and cropped at the center. Batches raise GapError, with the file's
    name, for a file that cannot be read. The fingerprint is made of file names relative to `root`. Labels that are not
    original, such as predictions, are not part of it.
    """

    paths: tuple[Path, ...]
    labels: Tensor | None
    channels: int
    size: tuple[int, int]
    root: Path = Path()
    labels_are_original: bool = field(default=True, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, order: Iterable[Tensor], device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        device = torch.device(device)
        pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        decoding: deque[tuple[Tensor, list[Future[Tensor]]]] = deque()
        try:
            for indices in order:
                decoding.append((indices, [pool.submit(self._open, index) for index in indices.tolist()]))
                if len(decoding) > BATCHES_AHEAD:
                    yield self._collect(*decoding.popleft(), device)
            while decoding:
                yield self._collect(*decoding.popleft(), device)
        finally:
            pool.shutdown(cancel_futures=True)

    def with_labels(self, labels: Tensor) -> "ImageFolderSplit":
        return replace(self, labels=validate_labels(labels, len(self)), labels_are_original=False)

    def renumbered(self, mapping: Tensor) -> "ImageFolderSplit":
        return self if self.labels is None else replace(self, labels=mapping[self.labels])

    def fingerprint(self) -> str:
        names = (Path(os.path.relpath(path, self.root)).as_posix() for path in self.paths)
        return _digest(
            "\n".join(names).encode(errors="surrogateescape"), self.labels if self.labels_are_original else None
        )

    def file_fingerprint(self) -> str:
        digest = hashlib.sha256(self.fingerprint().encode())
        for path in self.paths:
            try:
                status = path.stat()
            except OSError as error:
                raise GapError(f"{path} cannot be read: {error.strerror}") from error
            digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def _open(self, index: int) -> Tensor:
        return load_image(self.paths[index], self.channels, self.size)

    def _collect(self, indices: Tensor, futures: list[Future[Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
        if futures:
            images = torch.stack([future.result() for future in futures])
        else:
            images = torch.empty(0, self.channels, *self.size, dtype=torch.uint8)
        return as_floats(images, device), take_labels(self.labels, indices).to(device)


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits of images, with metadata.

    Attributes:
        name: the name of the data in tables and errors.
        train: the images for training.
        validation: the images for validation during training.
        test: the images for evaluation.
        channels: 1 or 3.
        size: (H, W).
        class_names: the names of the classes; None where unknown.
        classes: the number of classes; None where unknown.
        source: the origin and the license of the images.
        split_description: how the splits were made.
        labels_index_model: whether the labels are class indices of a classifier, unless its class names say otherwise.
            `classes` is then only a lower bound for its number of classes.
        sorted_classes: whether the classes are numbered in the order of their names. The order of a classifier may be
            another one.
        labels_may_be_names: whether the labels, which are numbers, may also be class names of a classifier.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    channels: int
    size: tuple[int, int]
    class_names: tuple[str, ...] | None
    classes: int | None
    source: str
    split_description: str = ""
    labels_index_model: bool = False
    sorted_classes: bool = False
    labels_may_be_names: bool = False

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def trial_split(self) -> Split:
        """The images on which a classifier is checked before a training: validation, or test where these are few."""
        return (
            self.validation
            if len(self.validation) >= MIN_IMAGES or len(self.test) < len(self.validation)
            else self.test
        )

    def describe(self) -> dict[str, object]:
        """The metadata for a card: plain values, with the fingerprint of each split."""
        return {
            "name": self.name,
            "source": self.source,
            "division": self.split_description,
            "channels": self.channels,
            "size": list(self.size),
            "classes": self.classes,
            "images": {name: len(split) for name, split in self.splits.items()},
            "sha256": {name: split.fingerprint() for name, split in self.splits.items()},
        }


def sequential_batches(
    split: Split, batch_size: int, rank: int = 0, world: int = 1, *, first: int | None = None
) -> list[Tensor]:
    """Batches of the indices of one rank, in order.

    The indices of the split, or of its `first` images, are distributed over the ranks, each to exactly one.
    """
    rank_indices = torch.arange(len(split))[:first][rank::world]
    return [indices for indices in torch.split(rank_indices, batch_size) if len(indices)]


def random_split_indices(count: int, *sizes: int) -> list[Tensor]:
    """`count` indices, shuffled with a fixed seed and split into parts of these sizes and a last part of the others."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SEED))
    return list(torch.split(order, [*sizes, count - sum(sizes)]))


def validation_count(count: int) -> int:
    """The number of validation images of `count` images: 5%, and at least 1, but 0 of a single image."""
    return max(round(count / 20), 1) if count > 1 else 0


def as_floats(pictures: Tensor, device: torch.device) -> Tensor:
    """uint8 images as float32 in [0, 1], channels last, on the device."""
    if device.type == "cuda" and pictures.device.type == "cpu":
        pictures = pictures.pin_memory().to(device, non_blocking=True)
    return pictures.to(device, torch.float32, memory_format=torch.channels_last).div_(255)


def take_labels(labels: Tensor | None, indices: Tensor) -> Tensor:
    """The labels at these indices, -1 without labels."""
    return torch.full((len(indices),), -1) if labels is None else labels[indices.to(labels.device)]


def _digest(content: bytes | memoryview, labels: Tensor | None) -> str:
    digest = hashlib.sha256(content)
    if labels is not None:
        digest.update(b"\0" + labels.to("cpu", torch.int64).numpy().tobytes())
    return digest.hexdigest()


def validate_labels(labels: Tensor, count: int) -> Tensor:
    """The labels as int64 on the CPU. Raises ValueError unless there is one for each image."""
    if labels.shape != (count,):
        raise ValueError(f"{count} pictures need {count} labels, not {tuple(labels.shape)}")
    return labels.to("cpu", torch.int64)
