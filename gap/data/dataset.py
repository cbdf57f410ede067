"""What a dataset is: three disjoint splits, each handing out batches of pictures in the order asked for."""

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
# Fewer images say little about a classifier's accuracy.
MIN_IMAGES = 20
BATCHES_AHEAD = 2
DECODERS = min(16, os.cpu_count() or 1)


class Split(Protocol):
    """Pictures with labels (int64, N) or without (None)."""

    labels: Tensor | None

    def __len__(self) -> int: ...

    def batches(self, order: Iterable[Tensor], device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """For each tensor of indices: images, float32 N x C x H x W in [0, 1], channels last, and their int64
        labels (-1 where unlabeled), both on the device. `order` may be read a few batches ahead."""
        ...

    def with_labels(self, labels: Tensor) -> "Split":
        """The same pictures with labels that someone made of them, one for each picture."""
        ...

    def renumbered(self, mapping: Tensor) -> "Split":
        """The same pictures, their own labels numbered otherwise: `mapping[label]` is in place of each label."""
        ...

    def fingerprint(self) -> str:
        """A sha256 that tells this selection of pictures from another, and the labels that they came with from others.

        It is the same for a copy of the pictures elsewhere.
        """
        ...

    def file_fingerprint(self) -> str:
        """A sha256 that changes with the fingerprint, and also when a picture on this disk is written again."""
        ...


@dataclass
class InMemorySplit:
    """Pictures held in memory: uint8, N x C x H x W. On a CUDA device with room for them they are moved there once.

    `transform` makes of each batch, still uint8, the pictures that are wanted: other channels or another size.
    Without `labels_are_original` the labels are someone's reading of the pictures, and no part of the digest.
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
        images = self._images_near(device)
        for indices in order:
            pictures = images[indices.to(images.device)]
            if self.transform is not None:
                pictures = self.transform(pictures.to(device))
            yield as_floats(pictures, device), take_labels(self.labels, indices).to(device)

    def with_labels(self, labels: Tensor) -> "InMemorySplit":
        return replace(self, labels=validate_labels(labels, len(self)), labels_are_original=False)

    def renumbered(self, mapping: Tensor) -> "InMemorySplit":
        return self if self.labels is None else replace(self, labels=mapping[self.labels])

    def fingerprint(self) -> str:
        return _digest(self.images.contiguous().numpy().data, self.labels if self.labels_are_original else None)

    def file_fingerprint(self) -> str:
        return self.fingerprint()

    def _images_near(self, device: torch.device) -> Tensor:
        if device.type != "cuda":
            return self.images
        if device not in self.device_cache:
            free, _ = torch.cuda.mem_get_info(device)
            self.device_cache[device] = self.images.to(device) if self.images.nbytes < free / 4 else self.images
        return self.device_cache[device]


@dataclass
class ImageFolderSplit:
    """Picture files, decoded by a few threads while earlier batches are used; never held all at once.

    `size` is (H, W); each picture is resized to cover it and cropped at the center. Batches raise GapError, with the
    file's name, for a file that cannot be read. `root` only shortens the names that the fingerprint is made of.
    Labels that are not the pictures' own, by `labels_are_original`, are no part of it.
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
                    yield self._decoded(*decoding.popleft(), device)
            while decoding:
                yield self._decoded(*decoding.popleft(), device)
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
                written = path.stat()
            except OSError as error:
                raise GapError(f"{path} cannot be read: {error.strerror}") from error
            digest.update(f"{written.st_size} {written.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def _open(self, index: int) -> Tensor:
        return load_image(self.paths[index], self.channels, self.size)

    def _decoded(self, indices: Tensor, pictures: list[Future[Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
        if pictures:
            images = torch.stack([picture.result() for picture in pictures])
        else:
            images = torch.empty(0, self.channels, *self.size, dtype=torch.uint8)
        return as_floats(images, device), take_labels(self.labels, indices).to(device)


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits of pictures, and what is known about them.

    `size` is (H, W). `class_names` and `classes` are None where unknown. With `labels_index_model` the labels are class
    indices of a classifier, as far as it has no other names for them, and `classes` only says how many classes that has
    at least; with `labels_may_be_names` these numbers are its class names if it has such names. With `sorted_classes`
    the classes are numbered in the order of their names, which a classifier need not follow. `split_description` says
    how the splits were made; `source` says where the pictures are from and their terms.
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
        """What a classifier is tried on before work begins: the validation images, or where they are few the test
        images."""
        return (
            self.validation
            if len(self.validation) >= MIN_IMAGES or len(self.test) < len(self.validation)
            else self.test
        )

    def describe(self) -> dict[str, object]:
        """What a card says about the data: plain values, with a sha256 for each split.

        That is of file names or of images, and of the labels that came with them.
        """
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
    """Batches of indices of one rank's share of the split, or of its `first` pictures, in order; over all ranks every
    one of these comes exactly once."""
    share = torch.arange(len(split))[:first][rank::world]
    return [indices for indices in torch.split(share, batch_size) if len(indices)]


def random_split_indices(count: int, *sizes: int) -> list[Tensor]:
    """`count` indices in an order fixed by SEED, cut into disjoint parts of these sizes; the rest is the last part."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SEED))
    return list(torch.split(order, [*sizes, count - sum(sizes)]))


def validation_count(count: int) -> int:
    """How many of `count` pictures are held out for validation: 5%, one at least where one remains to train on."""
    return max(round(count / 20), 1) if count > 1 else 0


def as_floats(pictures: Tensor, device: torch.device) -> Tensor:
    """uint8 pictures as float32 in [0, 1], channels last, on the device."""
    if device.type == "cuda" and pictures.device.type == "cpu":
        pictures = pictures.pin_memory().to(device, non_blocking=True)
    return pictures.to(device, torch.float32, memory_format=torch.channels_last).div_(255)


def take_labels(labels: Tensor | None, indices: Tensor) -> Tensor:
    """The labels at these indices, -1 for each where there are none."""
    return torch.full((len(indices),), -1) if labels is None else labels[indices.to(labels.device)]


def _digest(pictures: bytes | memoryview, labels: Tensor | None) -> str:
    digest = hashlib.sha256(pictures)
    if labels is not None:
        digest.update(b"\0" + labels.to("cpu", torch.int64).numpy().tobytes())
    return digest.hexdigest()


def validate_labels(labels: Tensor, count: int) -> Tensor:
    """The labels as int64 on the CPU. Raises ValueError where they are not one for each picture."""
    if labels.shape != (count,):
        raise ValueError(f"{count} pictures need {count} labels, not {tuple(labels.shape)}")
    return labels.to("cpu", torch.int64)
