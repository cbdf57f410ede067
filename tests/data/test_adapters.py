"""Data that a user gives as Python objects, in the forms that are common."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Subset, TensorDataset

from gap.core.errors import GapError, GapWarning
from gap.data.adapters import evaluation_data, image_data, training_data
from gap.data.dataset import sequential_batches
from gap.data.images import as_image, load_image

COUNT, SIDE = 12, 8


class Rows(Dataset[Any]):
    """A dataset whose items are computed from their index by a function."""

    def __init__(self, item: Callable[[int], Any], count: int = COUNT) -> None:
        self.item, self.count = item, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if index >= self.count:
            raise IndexError(index)
        return self.item(index)


class Stream(IterableDataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Any:
        return iter(self.items)


class Hub:
    """A stand-in for a Hugging Face dataset, with the formats of `datasets/formatting`.

    Its rows hold PIL images, tensors C x H x W ("torch"), or arrays H x W x C, for gray images H x W ("numpy"). With a
    transform they hold its output for a batch; when one column is read, the batch has this column alone.
    """

    def __init__(self, images: Tensor, labels: Tensor, form: Any = None) -> None:
        self.images, self.indices, self.form = images, labels.tolist(), form
        self.column_names = ["image", "label"]
        self.features = {"image": object(), "label": SimpleNamespace(names=[f"kind {index}" for index in range(4)])}

    def with_format(self, form: str | None) -> "Hub":
        return Hub(self.images, torch.tensor(self.indices), form)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return self.form({key: self.indices})[key] if callable(self.form) else self.indices
        image, label = to_pil(self.images[key]), self.indices[key]
        if callable(self.form):
            return {name: column[0] for name, column in self.form({"image": [image], "label": [label]}).items()}
        array = np.asarray(image)
        if self.form == "numpy":
            return {"image": array, "label": np.int64(label)}
        if self.form == "torch":
            return {
                "image": torch.from_numpy(array.copy().reshape(SIDE, SIDE, -1)).permute(2, 0, 1),
                "label": torch.tensor(label),
            }
        return {"image": image, "label": label}


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy())


def sample(channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(channels)
    images = torch.randint(256, (COUNT, channels, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    return images, torch.arange(COUNT) * 7 % 4


def read_all(data: Any) -> tuple[Tensor, Tensor]:
    """All images of data, in 256 levels, and all labels, in an order that does not depend on the form of the data."""
    split = evaluation_data(data).test
    images, labels = zip(*split.batches(sequential_batches(split, 5)), strict=True)
    return (torch.cat(images) * 255).round().to(torch.uint8), torch.cat(labels)


def assert_same(data: Any, expected: Any) -> None:
    for actual, wanted in zip(read_all(data), read_all(expected), strict=True):
        assert torch.equal(actual, wanted)


def one_hot(labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels, 4)


def as_dictionaries(items: list[tuple[Tensor, Any]]) -> dict[str, Any]:
    return {
        "pixel_values": torch.stack([image for image, _ in items]),
        "labels": torch.tensor([int(label) for _, label in items]),
    }


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: DataLoader(Rows(lambda i: (x[i], y[i])), batch_size=None),
        lambda x, y: DataLoader(Rows(lambda i: (to_pil(x[i]), int(y[i]))), batch_size=None),
        lambda x, y: DataLoader(Stream([(x[:5], y[:5]), (x[5:], y[5:])]), batch_size=None),
        lambda x, y: DataLoader(Stream(list(zip(x, y, strict=True))), batch_size=5),
        lambda x, y: DataLoader(TensorDataset(x, y), 5, collate_fn=lambda items: items),
        lambda x, y: DataLoader(TensorDataset(x, y), 5, collate_fn=as_dictionaries),
        lambda x, y: DataLoader(TensorDataset(x, y), 5, collate_fn=lambda items: [list(x) for x in zip(*items)]),  # noqa: B905
        lambda x, y: DataLoader(Rows(lambda i: {"image": x[i], "label": y[i]}), 5),
        lambda x, y: DataLoader(
            Rows(lambda i: {"img": to_pil(x[i]), "target": int(y[i])}), 5, collate_fn=lambda items: items
        ),
        lambda x, y: DataLoader(TensorDataset(x, y, torch.arange(COUNT)), 5),
        lambda x, y: DataLoader(
            TensorDataset(x, y, torch.arange(COUNT)), 5, collate_fn=torch.utils.data.default_collate
        ),
        lambda x, y: DataLoader(Rows(lambda i: (x[i], y[i], i)), 5, collate_fn=lambda items: list(items)),
        lambda x, y: DataLoader(Rows(lambda i: (x[i], y[i])), 5, num_workers=2),
        lambda x, y: Rows(lambda i: (x[i], y[i], {"index": i})),
        lambda x, y: Rows(lambda i: (x[i], one_hot(y)[i])),
        lambda x, y: Rows(lambda i: (x[i], y[i : i + 1])),
        lambda x, y: Rows(lambda i: (x[i], float(y[i]))),
        lambda x, y: Rows(lambda i: (x[i], np.int32(y[i]))),
        lambda x, y: (x, y[:, None]),
        lambda x, y: (x, y.double()),
        lambda x, y: (x, one_hot(y)),
        lambda x, y: (x.numpy(), one_hot(y).float().numpy()),
        lambda x, y: ([to_pil(image) for image in x], y.tolist()),
        lambda x, y: [(to_pil(image), int(label)) for image, label in zip(x, y, strict=True)],
        lambda x, y: (x.permute(0, 2, 3, 1).numpy(), y.numpy()),
        lambda x, y: (x.permute(0, 2, 3, 1).numpy() / 255, y.numpy()),
        lambda x, y: Rows(lambda i: (x[i].permute(1, 2, 0).numpy(), y[i])),
        lambda x, y: Rows(lambda i: (x[i].flip(2).permute(1, 2, 0).numpy()[:, ::-1], y[i])),
        lambda x, y: Hub(x, y),
        lambda x, y: Hub(x, y, "numpy"),
        lambda x, y: Hub(x, y, "torch"),
        lambda x, y: Hub(
            x, y, lambda batch: {"pixel_values": [as_image(i, len(x[0])) for i in batch["image"]]} | batch
        ),
        lambda x, y: DataLoader(Hub(x, y, "torch"), 5),  # type: ignore[arg-type]
    ],
)
def test_evaluation_data_each_form_gives_the_same_images_and_labels(
    form: Callable[[Tensor, Tensor], Any], channels: int
) -> None:
    """Catches: a form that fails with an error of torch, or that gives other images or labels."""
    images, labels = sample(channels)
    assert_same(form(images, labels), (images, labels))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda x, y: (x.permute(0, 2, 3, 1), y), r"seem to be N x H x W x C, 12x8x8x3; give images\.permute\(0, 3, 1"),
        (lambda x, y: TensorDataset(x.permute(0, 2, 3, 1) / 255, y), r"seem to be N x H x W x C"),
        (
            lambda x, y: Rows(lambda i: (x[i].permute(1, 2, 0), y[i])),
            r"H x W x C, 8x8x3; give image\.permute\(2, 0, 1\)",
        ),
        (lambda x, y: DataLoader(Stream([(x.permute(0, 2, 3, 1), y)]), batch_size=None), r"N x H x W x C"),
        (lambda x, y: (x[:, 0], y), r"add the channels: images\[:, None\]"),
        (lambda x, y: (x.to(torch.int64), y), r"not torch\.int64; images\.to\(torch\.uint8\)"),
        (lambda x, y: (x, torch.rand(COUNT, 4)), "a single 1 in each row"),
        (lambda x, y: (x, y + 0.5), "one whole number for each image"),
        (lambda x, y: (x, y - 1), "0 or more, not -1"),
        (lambda x, y: (x, y[:5]), "12 images need as many labels"),
        (lambda x, y: Rows(lambda i: (x[i], "cat")), "a label is the index of a class, not 'cat'"),
        (lambda x, y: Rows(lambda i: (x[i], None)), "a label is the index of a class, not None"),
        (lambda x, y: Rows(lambda i: (x[i],)), "an image and its label, not a tuple"),
        (lambda x, y: Rows(lambda i: (x[i, :, i % 2 :], y[i])), r"differ in size \(3x8x8 and 3x7x8\)"),
        (lambda x, y: Rows(lambda i: (x[i, :, : 8 - i // 11], y[i])), r"differ in size \(3x8x8 and 3x7x8\)"),
        (lambda x, y: DataLoader(Stream([(x, y), (x[..., :4], y)]), batch_size=None), "differ in size"),
        (lambda x, y: TensorDataset(x), "holds no labels"),
        (lambda x, y: {"train": Hub(x, y)}, r"data\['train'\]"),
        (lambda x, y: Stream([(x[0], y[0])]), "a Stream cannot be read by index; give its items as a list, or a DataL"),
        (lambda x, y: iter([(x[0], y[0])]), "cannot be read by index"),
        (lambda x, y: DataLoader(Stream([]), batch_size=None), "gives no batch"),
    ],
)
def test_evaluation_data_ambiguous_or_invalid_data_is_refused_in_one_line(
    form: Callable[[Tensor, Tensor], Any], message: str
) -> None:
    with pytest.raises(GapError, match=message) as error:
        read_all(form(*sample()))
    assert "\n" not in str(error.value)


def test_evaluation_data_images_of_two_sizes_in_a_worker_are_refused_in_one_line() -> None:
    """Catches: the error of another process, which comes with its whole traceback as text."""
    images, labels = sample()
    rows = Rows(lambda i: (images[i % 12, :, : 8 - i // 39], labels[i % 12]), 40)
    with pytest.raises(GapError, match=r"differ in size") as error:
        read_all(DataLoader(rows, 5, num_workers=2))
    assert "\n" not in str(error.value)


def test_evaluation_data_gray_images_among_rgb_images_become_rgb() -> None:
    images, labels = sample()
    mixed = Rows(lambda i: (to_pil(images[i, :1] if i < 3 else images[i]), labels[i]))
    gray = images[:3, :1].expand(-1, 3, -1, -1)
    assert_same(mixed, (torch.cat([gray, images[3:]]), labels))


def test_evaluation_data_rgb_image_after_many_gray_images_is_refused() -> None:
    images, labels = sample()
    rows = Rows(lambda i: (images[i % 12, :1] if i != 38 else images[0], labels[i % 12]), 40)
    with pytest.raises(GapError, match=r"differ in channels \(1x8x8 and 3x8x8\); convert all to RGB"):
        read_all(rows)


def make_deep_image(mode: str) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE))
    return Image.fromarray(pixels.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))


def make_transparent_image(mode: str) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode != "P":
        return image.convert(mode)
    image = Image.fromarray(pixels[..., :3]).quantize(16)
    image.info["transparency"] = 3
    return image


@pytest.mark.parametrize(
    ("image", "channels"),
    [
        (make_deep_image("I;16"), 1),
        (make_deep_image("I"), 1),
        (make_deep_image("F"), 1),
        (make_transparent_image("RGBA"), 3),
        (make_transparent_image("LA"), 1),
        (make_transparent_image("P"), 3),
        (make_transparent_image("RGB").quantize(16), 3),
        (make_transparent_image("L").convert("1"), 1),
        (make_transparent_image("CMYK"), 3),
    ],
)
def test_evaluation_data_pil_image_equals_its_loaded_file(image: Image.Image, channels: int, tmp_path: Path) -> None:
    """Catches: 16-bit images that are clipped, and the hidden colors of transparent pixels."""
    path = tmp_path / ("image.png" if image.mode not in ("I", "F", "CMYK") else "image.tif")
    image.save(path)
    expected = load_image(path, channels)
    (images, _) = read_all(Rows(lambda i: (image, 0), 2))
    assert torch.equal(images, torch.stack([expected, expected])) and expected.float().std() > 10
    assert torch.equal((as_image(image, channels) * 255).round().to(torch.uint8), expected)


def test_evaluation_data_rgba_array_is_blended_over_white() -> None:
    image = make_transparent_image("RGBA")
    assert_same(Rows(lambda i: (np.asarray(image), 0), 2), Rows(lambda i: (image, 0), 2))


def test_evaluation_data_pil_image_of_unknown_scale_is_refused_in_one_line() -> None:
    image = Image.fromarray(np.full((SIDE, SIDE), -3.0, dtype=np.float32))
    for call in (lambda: read_all(Rows(lambda i: (image, 0))), lambda: as_image(image, 1)):
        with pytest.raises(GapError, match=r"a PIL image of mode F cannot be used \(pixels from -3.0"):
            call()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("column", [False, True])
def test_evaluation_data_subset_in_another_order_keeps_images_and_labels_paired(nested: bool, column: bool) -> None:
    """Catches: labels of the whole dataset, or of the outer subset, paired with images of the inner one."""
    images, labels = sample()
    dataset = Rows(lambda i: (images[i], labels[i]))
    if column:
        dataset.targets = labels.tolist()  # type: ignore[attr-defined]
    order = [7, 2, 11, 2, 0, 5]
    subset = Subset(dataset, order)
    if nested:
        subset, order = Subset(subset, torch.tensor([5, 0, 3])), [order[index] for index in (5, 0, 3)]  # type: ignore[arg-type]
    assert_same(subset, (images[order], labels[order]))
    assert_same(DataLoader(subset, 2, num_workers=2), (images[order], labels[order]))


def test_evaluation_data_subset_reads_no_item_outside_of_it() -> None:
    images, labels = sample()

    def item(index: int) -> tuple[Tensor, Tensor]:
        assert index < 5
        return images[index], labels[index]

    assert_same(Subset(Rows(item), range(5)), (images[:5], labels[:5]))


def test_training_data_loader_with_workers_gives_the_images_of_the_dataset() -> None:
    images, labels = sample()
    datasets = (
        training_data(source)
        for source in (DataLoader(TensorDataset(images, labels), 4, num_workers=2), (images, labels))
    )
    with_workers, plain = (
        torch.cat([batch for batch, _ in data.train.batches(sequential_batches(data.train, 4))]) for data in datasets
    )
    rows = training_data(DataLoader(Rows(lambda i: (images[i], labels[i])), 4, num_workers=2))
    assert rows.train.workers == 2  # type: ignore[attr-defined]
    by_rows = torch.cat([batch for batch, _ in rows.train.batches(sequential_batches(rows.train, 4))])
    assert torch.equal(with_workers, plain) and torch.equal(by_rows, plain)


def test_image_data_of_every_form_gives_the_same_images() -> None:
    """Catches: labels that are required where none are needed, and a list of two images taken for images and labels."""
    images, labels = sample()
    forms = (
        images,
        images.numpy(),
        list(images),
        TensorDataset(images),
        Rows(lambda i: images[i]),
        (images, labels),
        Rows(lambda i: (images[i], labels[i])),
    )
    pixels = []
    for form in forms:
        data = image_data(form)
        pixels.append(torch.cat([batch for batch, _ in data.train.batches(sequential_batches(data.train, 4))]))
        assert len(data.train) + len(data.validation) == len(images) and not len(data.test)
    assert all(torch.equal(batch, pixels[0]) for batch in pixels)
    assert image_data(Rows(lambda i: images[i])).name == "Rows"
    assert len(image_data(list(images[:2])).train) == 1


def test_evaluation_data_loader_with_a_sampler_gives_as_many_images_as_it_draws() -> None:
    images, labels = sample()
    dataset = TensorDataset(images, labels)
    assert len(read_all(DataLoader(dataset, 4, sampler=RandomSampler(dataset, num_samples=5)))[0]) == 5


class Named(Rows):
    """A dataset with names for its classes."""

    def __init__(self, classes: Any, **attributes: Any) -> None:
        images, labels = sample()
        super().__init__(lambda i: (images[i], labels[i]))
        self.classes = classes
        vars(self).update(attributes)


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (Named(["a", "b", "c", "d"]), ("a", "b", "c", "d")),
        (Subset(Named(("a", "b", "c", "d")), [1, 2]), ("a", "b", "c", "d")),
        (DataLoader(Named(list("abcd")), 5, collate_fn=lambda items: items), ("a", "b", "c", "d")),
        (Hub(*sample()), ("kind 0", "kind 1", "kind 2", "kind 3")),
        (Named(["0 - zero", "1 - one", "2 - two", "3 - three"]), ("0", "1", "2", "3")),
        (Named([("tench", "Tinca"), ("goldfish",)] * 2, wnids=["n01440764", "n01443537"] * 2),
         ("n01440764_tench", "n01443537_goldfish") * 2),
        (Named([1, 2, 3, 4]), None),
        (Named([]), None),
        (sample(), None),
    ],
)  # fmt: skip
def test_training_data_class_names_are_those_of_the_dataset(data: Any, names: tuple[str, ...] | None) -> None:
    dataset = training_data(data)
    assert dataset.class_names == names and dataset.classes == 4


def test_evaluation_data_fewer_class_names_than_labels_are_dropped_with_a_warning() -> None:
    with pytest.warns(GapWarning, match="Named has 2 class names and the label 3; its labels are taken as class ind"):
        assert evaluation_data(Named(["a", "b"])).class_names is None
