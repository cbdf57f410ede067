import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gap.core.errors import GapError
from gap.data.dataset import Dataset, ImageFolderSplit, InMemorySplit, Split, random_split_indices, sequential_batches
from gap.data.images import load_image


def make_memory_split(count: int, labeled: bool = True) -> InMemorySplit:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 4, 5), dtype=torch.uint8, generator=generator)
    return InMemorySplit(images, torch.arange(count) % 7 if labeled else None)


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolderSplit:
    random = np.random.default_rng(0)
    paths = tuple(tmp_path / f"{number}.png" for number in range(11))
    for path in paths:
        Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(path)
    return ImageFolderSplit(paths, torch.arange(11) * 3, 3, (6, 5), tmp_path)


@given(count=st.integers(0, 60), batch_size=st.integers(1, 20), world=st.integers(1, 4))
def test_sequential_batches_give_every_image_once_over_all_ranks(count: int, batch_size: int, world: int) -> None:
    split = InMemorySplit(torch.zeros(count, 1, 1, 1, dtype=torch.uint8))
    shares = [sequential_batches(split, batch_size, rank, world) for rank in range(world)]
    indices_of_all_ranks = [int(index) for share in shares for indices in share for index in indices]
    assert sorted(indices_of_all_ranks) == list(range(count))
    assert all(0 < len(indices) <= batch_size for share in shares for indices in share)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(count=st.integers(0, 200), data=st.data())
def test_random_split_indices_parts_are_disjoint_complete_and_repeatable(count: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, count))
    second = data.draw(st.integers(0, count - first))
    parts = random_split_indices(count, first, second)
    assert [len(part) for part in parts] == [first, second, count - first - second]
    assert sorted(torch.cat(parts).tolist()) == list(range(count))
    assert all(
        torch.equal(part, again) for part, again in zip(parts, random_split_indices(count, first, second), strict=True)
    )


@settings(max_examples=20)
@given(order=st.lists(st.lists(st.integers(0, 9), min_size=0, max_size=5), max_size=4))
def test_in_memory_split_batches_hold_the_requested_images(order: list[list[int]]) -> None:
    split = make_memory_split(10)
    indices = [torch.tensor(numbers, dtype=torch.int64) for numbers in order]
    batches = list(split.batches(indices))
    assert len(batches) == len(order)
    for wanted, (images, labels) in zip(indices, batches, strict=True):
        assert images.dtype == torch.float32 and labels.dtype == torch.int64
        assert torch.equal(images, split.images[wanted].float() / 255)
        assert torch.equal(labels, wanted % 7)


def test_in_memory_split_batches_are_channels_last_copies() -> None:
    """Catches: a batch that shares memory with the split, so that a change in place changes the data."""
    split = make_memory_split(6)
    before = split.images.clone()
    ((images, _),) = split.batches([torch.arange(6)])
    assert images.is_contiguous(memory_format=torch.channels_last)
    images.zero_()
    assert torch.equal(split.images, before)


def test_in_memory_split_unlabeled_images_have_label_minus_one() -> None:
    split = make_memory_split(5, labeled=False)
    ((_, labels),) = split.batches([torch.tensor([3, 1])])
    assert labels.tolist() == [-1, -1] and labels.dtype == torch.int64
    labeled = split.with_labels(torch.tensor([5, 6, 7, 8, 9], dtype=torch.int32))
    ((_, labels),) = labeled.batches([torch.tensor([3, 1])])
    assert labels.tolist() == [8, 6] and labels.dtype == torch.int64
    assert split.labels is None and labeled.images is split.images and labeled.device_cache is split.device_cache


def test_with_labels_wrong_number_of_labels_raises(folder: ImageFolderSplit) -> None:
    splits: list[Split] = [make_memory_split(5), folder]
    for split in splits:
        with pytest.raises(ValueError, match="labels"):
            split.with_labels(torch.zeros(len(split) + 1))


def test_renumbered_labels_are_mapped_and_change_the_fingerprint(folder: ImageFolderSplit) -> None:
    mapping = torch.arange(100).flip(0)
    splits: list[Split] = [make_memory_split(5), folder]
    for split in splits:
        other = split.renumbered(mapping)
        assert split.labels is not None and other.labels is not None
        assert torch.equal(other.labels, 99 - split.labels) and other.fingerprint() != split.fingerprint()
        assert other.renumbered(mapping).fingerprint() == split.fingerprint()
    assert make_memory_split(5, labeled=False).renumbered(mapping).labels is None


def test_image_folder_split_batches_hold_the_requested_files(folder: ImageFolderSplit) -> None:
    order = [torch.tensor(numbers) for numbers in ([3, 1, 4], [0], [10, 10], [5, 9, 2], [6], [7, 8])]
    batches = list(folder.batches(iter(order)))
    assert len(batches) == len(order)
    for indices, (images, labels) in zip(order, batches, strict=True):
        expected = torch.stack([load_image(folder.paths[index], 3, (6, 5)) for index in indices.tolist()])
        assert torch.equal(images, expected.float() / 255) and images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.tolist() == (indices * 3).tolist()


def test_image_folder_split_with_labels_gives_the_new_labels(folder: ImageFolderSplit) -> None:
    other = folder.with_labels(torch.arange(11) + 100)
    ((_, labels),) = other.batches([torch.tensor([2, 0])])
    assert labels.tolist() == [102, 100] and other.paths == folder.paths


def test_image_folder_split_batches_prefetch_only_a_few_images(folder: ImageFolderSplit) -> None:
    requested: list[int] = []

    def order():
        for index in range(11):
            requested.append(index)
            yield torch.tensor([index])

    batches = folder.batches(order())
    next(batches)
    assert 2 <= len(requested) <= 4


def test_image_folder_split_batches_closed_early_leave_no_threads(folder: ImageFolderSplit) -> None:
    batches = folder.batches(sequential_batches(folder, 1))
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_image_folder_split_damaged_file_raises_with_its_name(folder: ImageFolderSplit) -> None:
    folder.paths[4].write_bytes(folder.paths[4].read_bytes()[:60])
    batches = folder.batches(sequential_batches(folder, 4))
    next(batches)
    with pytest.raises(GapError, match=r"4\.png"):
        next(batches)


def test_fingerprint_depends_on_the_selection_and_not_on_the_folder(folder: ImageFolderSplit, tmp_path: Path) -> None:
    moved = ImageFolderSplit(
        tuple(Path("/elsewhere") / path.name for path in folder.paths), folder.labels, 1, (2, 2), Path("/elsewhere")
    )
    fewer = ImageFolderSplit(folder.paths[:-1], torch.arange(10) * 3, 3, (6, 5), tmp_path)
    assert moved.fingerprint() == folder.fingerprint() != fewer.fingerprint()
    assert (
        make_memory_split(5).fingerprint() == make_memory_split(5).fingerprint() != make_memory_split(6).fingerprint()
    )


def test_fingerprint_depends_on_the_original_labels_alone(folder: ImageFolderSplit) -> None:
    splits: list[ImageFolderSplit | InMemorySplit] = [folder, make_memory_split(11)]
    for split in splits:
        assert split.labels is not None
        unlabeled, relabeled = replace(split, labels=None), replace(split, labels=split.labels.flip(0))
        assert len({split.fingerprint(), unlabeled.fingerprint(), relabeled.fingerprint()}) == 3
        assert split.with_labels(split.labels + 1).fingerprint() == unlabeled.fingerprint()


def test_file_fingerprint_overwritten_file_changes_it_but_not_the_fingerprint(folder: ImageFolderSplit) -> None:
    of_names, of_files = folder.fingerprint(), folder.file_fingerprint()
    assert folder.file_fingerprint() == of_files
    content, written = folder.paths[4].read_bytes(), folder.paths[4].stat().st_mtime_ns
    folder.paths[4].write_bytes(content)
    os.utime(folder.paths[4], ns=(written, written + 1))
    later = folder.file_fingerprint()
    folder.paths[4].write_bytes(content + b"\0")
    os.utime(folder.paths[4], ns=(written, written))
    assert len({of_files, later, folder.file_fingerprint()}) == 3
    assert folder.fingerprint() == of_names


def test_file_fingerprint_deleted_file_raises_with_its_name(folder: ImageFolderSplit) -> None:
    folder.paths[4].unlink()
    with pytest.raises(GapError, match=r"4\.png"):
        folder.file_fingerprint()


def test_dataset_describe_gives_counts_size_source_and_fingerprints() -> None:
    data = Dataset(
        "toy",
        make_memory_split(5),
        make_memory_split(2),
        make_memory_split(3),
        3,
        (4, 5),
        None,
        7,
        "made up",
        "by hand",
    )
    described = data.describe()
    assert described["images"] == {"train": 5, "validation": 2, "test": 3}
    assert described["size"] == [4, 5] and described["source"] == "made up" and described["division"] == "by hand"
    assert described["sha256"] == {
        "train": data.train.fingerprint(),
        "validation": data.validation.fingerprint(),
        "test": data.test.fingerprint(),
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_in_memory_split_batches_on_cuda_reuse_one_copy() -> None:
    split = make_memory_split(10)
    ((images, labels),) = split.batches([torch.tensor([7, 2])], "cuda")
    assert images.is_cuda and labels.is_cuda and labels.tolist() == [0, 2]
    assert torch.equal(images.cpu(), split.images[[7, 2]].float() / 255)
    (device_cache,) = split.device_cache.values()
    list(split.with_labels(torch.zeros(10)).batches([torch.tensor([1])], "cuda"))
    assert [held.data_ptr() for held in split.device_cache.values()] == [device_cache.data_ptr()]
