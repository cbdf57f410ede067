from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gap.data.folder import load_folder
from gap.data.named import load_data
from gap.data.splits import Dataset, FolderSplit, in_order
from gap.errors import GapError

DOT = Image.fromarray(np.full((3, 3), 128, dtype=np.uint8))


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        DOT.save(root / name)
    return root


def numbered(folder: str, count: int) -> list[str]:
    return [f"{folder}/{number:03}.png" for number in range(count)]


def load(root: Path) -> Dataset:
    return load_folder(root, 1, (3, 3))


def names(split: object, root: Path) -> list[str]:
    assert isinstance(split, FolderSplit)
    return [path.relative_to(root).as_posix() for path in split.paths]


def labels_by_name(data: Dataset, root: Path) -> dict[str, int]:
    labels = {}
    for split in (data.train, data.validation, data.test):
        assert split.labels is not None
        labels.update(zip(names(split, root), split.labels.tolist(), strict=True))
    return labels


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 60))
def test_splits_are_disjoint_and_cover_everything(tmp_path: Path, count: int) -> None:
    root = tmp_path / str(count)
    root.mkdir(exist_ok=True)
    for number in range(count):
        (root / f"{number:03}.png").touch()
    data = load(root)
    parts = [names(split, root) for split in (data.train, data.validation, data.test)]
    assert sorted(name for part in parts for name in part) == [f"{number:03}.png" for number in range(count)]
    assert len(data.test) == (count if count < 5 else round(count / 5))
    assert count < 5 or len(data.train) > len(data.validation) > 0


def test_the_division_is_the_same_each_time_and_not_by_name(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{number:03}.png" for number in range(40)))
    first, second = load(tmp_path), load(tmp_path)
    assert first == second and first.describe() == second.describe()
    assert names(first.test, tmp_path) not in (
        [f"{n:03}.png" for n in range(8)],
        [f"{n:03}.png" for n in range(32, 40)],
    )


def test_class_folders(tmp_path: Path) -> None:
    fill(tmp_path, *numbered("cat", 12), *numbered("ant/deep", 8))
    data = load(tmp_path)
    assert data.class_names == ("ant", "cat") and data.classes == 2
    assert (len(data.train), len(data.validation), len(data.test)) == (15, 1, 4)
    assert all(label == name.startswith("cat") for name, label in labels_by_name(data, tmp_path).items())


def test_unlabelled(tmp_path: Path) -> None:
    data = load(fill(tmp_path, *(f"{number}.png" for number in range(10))))
    assert data.classes is None and data.class_names is None and data.train.labels is None
    ((images, labels),) = data.test.batches(in_order(data.test, 8))
    assert images.shape == (2, 1, 3, 3) and labels.tolist() == [-1, -1]


def test_train_and_test_folders(tmp_path: Path) -> None:
    fill(tmp_path, *numbered("train/a", 20), *numbered("train/b", 20), *numbered("test/b", 3))
    data = load(tmp_path)
    assert sorted(names(data.test, tmp_path)) == numbered("test/b", 3)
    assert (len(data.train), len(data.validation)) == (38, 2)
    assert sorted(names(data.train, tmp_path) + names(data.validation, tmp_path)) == (
        numbered("train/a", 20) + numbered("train/b", 20)
    )
    assert all(label == ("/b/" in name) for name, label in labels_by_name(data, tmp_path).items())


def test_train_val_and_test_folders_are_kept(tmp_path: Path) -> None:
    fill(tmp_path, *numbered("train/a", 9), *numbered("val/a", 4), *numbered("test/a", 5))
    data = load(tmp_path)
    assert [sorted(names(split, tmp_path)) for split in (data.train, data.validation, data.test)] == [
        numbered("train/a", 9),
        numbered("val/a", 4),
        numbered("test/a", 5),
    ]


def test_val_alone_is_the_test(tmp_path: Path) -> None:
    data = load(fill(tmp_path, *numbered("train/a", 9), *numbered("val/a", 4)))
    assert sorted(names(data.test, tmp_path)) == numbered("val/a", 4) and len(data.validation) == 1


def test_the_first_test_pictures_are_of_several_classes(tmp_path: Path) -> None:
    fill(tmp_path, *numbered("train/a", 2), *numbered("train/b", 2), *numbered("test/a", 20), *numbered("test/b", 20))
    labels = load(tmp_path).test.labels
    assert labels is not None and labels[:10].unique().tolist() == [0, 1]


def test_table_of_integers(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.png", "sub/c.png")
    (tmp_path / "labels.csv").write_text("label,file\n4,b.png\n0,a.png\n7,sub/c.png\n")
    data = load(tmp_path)
    assert labels_by_name(data, tmp_path) == {"a.png": 0, "b.png": 4, "sub/c.png": 7}
    assert data.class_names is None and data.classes == 8 and data.indexed


def test_table_of_names(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbffile,label\r\na.png,dog\r\nb.png,cat\r\nc.png,7\r\n")
    data = load(tmp_path)
    assert data.class_names == ("7", "cat", "dog") and not data.indexed
    assert labels_by_name(data, tmp_path) == {"a.png": 2, "b.png": 1, "c.png": 0}


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("file,label\na.png,1\n", r"no label for b\.png"),
        ("file,label\na.png,1\nb.png,2\nz.png,3\n", r"labels z\.png, which is not"),
        ("file,label\na.png,1\nb.png,2\n/etc/passwd,3\n", r"labels /etc/passwd, which is not"),
        ("file,label\na.png,1\nb.png,2\n../z.png,3\n", r"labels \.\./z\.png, which is not"),
        ("name,class\na.png,1\n", r"row 2 lacks"),
        ("file,label\na.png\nb.png,1\n", r"row 2 lacks"),
        ("", r"no label for a\.png"),
        ("file,label\na.png,\xff\n", r"cannot be read"),
        ("file,label\na.png,0\nb.png,99999999999999999999\n", r"has the label 9+;"),
    ],
)
def test_table_that_does_not_fit(tmp_path: Path, table: str, complaint: str) -> None:
    fill(tmp_path, "a.png", "b.png")
    (tmp_path / "labels.csv").write_bytes(table.encode("latin-1"))
    with pytest.raises(GapError, match=complaint):
        load(tmp_path)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    def refused(root: Path, complaint: str) -> None:
        with pytest.raises(GapError, match=complaint) as refusal:
            load(root)
        assert "\n" not in str(refusal.value)

    refused(tmp_path / "lost", "lost is missing")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty holds no pictures")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "is not a folder")
    fill(tmp_path / "hollow", "a/1.png")
    (tmp_path / "hollow" / "b").mkdir()
    refused(tmp_path / "hollow", "b holds no pictures")
    refused(fill(tmp_path / "mixed", "a/1.png", "2.png"), r"both folders and pictures \(2\.png\)")
    refused(fill(tmp_path / "alone", "train/a/1.png"), "neither test/ nor val/")
    refused(fill(tmp_path / "flat", "train/1.png", "test/1.png"), "train has no folders")
    refused(fill(tmp_path / "odd", "train/a/1.png", "test/images/1.png"), "images is a class that the training")


def test_channels_and_size_must_be_known(tmp_path: Path) -> None:
    fill(tmp_path, "a.png")
    for given_facts in ({}, {"channels": 1}, {"size": (3, 3)}):
        with pytest.raises(GapError, match="name a classifier"):
            load_data(f"folder:{tmp_path}", **given_facts)
    assert load_data(f"folder:{tmp_path}", channels=1, size=(3, 3)).name == f"folder:{tmp_path}"
