from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gap.core.errors import GapError, GapWarning
from gap.data.dataset import Dataset, ImageFolderSplit, sequential_batches
from gap.data.image_folder import load_folder
from gap.data.registry import load_data

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
    assert isinstance(split, ImageFolderSplit)
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


def test_unlabeled(tmp_path: Path) -> None:
    data = load(fill(tmp_path, *(f"{number}.png" for number in range(10))))
    assert data.classes is None and data.class_names is None and data.train.labels is None
    ((images, labels),) = data.test.batches(sequential_batches(data.test, 8))
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
    assert data.class_names is None and data.classes == 8 and data.labels_index_model


def test_table_of_names(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbffile,label\r\na.png,dog\r\nb.png,cat\r\nc.png,7\r\n")
    data = load(tmp_path)
    assert data.class_names == ("7", "cat", "dog") and not data.labels_index_model
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
    (tmp_path / "hollow" / "a" / "1.png").unlink()
    refused(tmp_path / "hollow", "hollow holds no pictures")
    refused(fill(tmp_path / "mixed", "a/1.png", "2.png"), r"both folders and pictures \(2\.png\)")
    refused(fill(tmp_path / "alone", "train/a/1.png"), "neither test/ nor val/")
    refused(fill(tmp_path / "flat", "train/1.png", "test/1.png"), "train has no folders")
    refused(fill(tmp_path / "odd", "train/a/1.png", "test/images/1.png"), "images is a class that the training")


def test_class_folders_of_numbers_are_numbered_by_value(tmp_path: Path) -> None:
    for number in range(12):
        fill(tmp_path, *numbered(str(number), 5))
    data = load(tmp_path)
    assert data.class_names == tuple(map(str, range(12))) and data.sorted_classes
    assert all(label == int(Path(name).parent.name) for name, label in labels_by_name(data, tmp_path).items())


def test_train_and_test_folders_of_numbers_are_numbered_by_value(tmp_path: Path) -> None:
    for number in (2, 9, 10):
        fill(tmp_path, *numbered(f"train/{number}", 5), *numbered(f"test/{number}", 2))
    data = load(tmp_path)
    order = {"2": 0, "9": 1, "10": 2}
    assert all(label == order[Path(name).parent.name] for name, label in labels_by_name(data, tmp_path).items())


@pytest.mark.parametrize(
    "folder", ["__MACOSX", ".ipynb_checkpoints", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "__pycache__"]
)
def test_folders_of_an_operating_system_are_passed_over(tmp_path: Path, folder: str) -> None:
    fill(tmp_path, *numbered("cat", 5), f"{folder}/cat/1.png", f"cat/{folder}/1.png", "cat/._1.png")
    (tmp_path / "cat" / "Thumbs.db").touch()
    (tmp_path / ".DS_Store").touch()
    data = load(tmp_path)
    assert data.class_names == ("cat",) and sorted(labels_by_name(data, tmp_path)) == numbered("cat", 5)


def test_folders_of_an_operating_system_beside_flat_pictures_are_passed_over(tmp_path: Path) -> None:
    data = load(fill(tmp_path, "1.png", "@eaDir/1.png", "__MACOSX/1.png"))
    assert data.class_names is None and names(data.test, tmp_path) == ["1.png"]


def test_class_folder_without_pictures_is_left_out_with_a_warning(tmp_path: Path) -> None:
    fill(tmp_path, *numbered("ant", 5), *numbered("cat", 5))
    (tmp_path / "bee").mkdir()
    (tmp_path / "cow" / "@eaDir").mkdir(parents=True)
    (tmp_path / "cow" / "notes.txt").touch()
    with pytest.warns(GapWarning, match="hold no pictures and are left out: bee, cow$"):
        data = load(tmp_path)
    assert data.class_names == ("ant", "cat") and data.classes == 2


def test_train_and_test_class_folders_without_pictures_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, *numbered("train/a", 5), *numbered("train/b", 5), "test/b/1.png")
    for empty in ("train/c", "test/a", "test/c"):
        (tmp_path / empty).mkdir()
    with pytest.warns(GapWarning) as said:
        data = load(tmp_path)
    assert sorted(str(warning.message).rpartition(": ")[2] for warning in said) == ["a, c", "c"]
    assert data.class_names == ("a", "b") and data.test.labels is not None and data.test.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Train", "VAL", "Test"), ("training", "validation", "testing"), ("TRAIN", "valid", "TEST")],
)
def test_split_folders_are_known_by_other_names_in_any_case(tmp_path: Path, train: str, val: str, test: str) -> None:
    fill(tmp_path, *numbered(f"{train}/a", 9), *numbered(f"{val}/a", 4), *numbered(f"{test}/a", 5))
    data = load(tmp_path)
    assert data.class_names == ("a",)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [9, 4, 5]
    assert names(data.test, tmp_path)[0].startswith(test)


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.png", "Test/a/1.png", "val/a/1.png", "valid/a/1.png")
    with pytest.raises(GapError, match=r"/val and \S+/valid both hold the val pictures"):
        load(tmp_path)


def test_split_folders_without_train_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, "val/a/1.png", "test/a/1.png")
    with pytest.raises(GapError, match=r"has val/ but no train/; add it, or name \S+/val$"):
        load(tmp_path)


@pytest.mark.parametrize("classes", [("invalid", "valid"), ("bus", "train"), ("resting", "training")])
def test_classes_that_have_names_of_splits_are_classes(tmp_path: Path, classes: tuple[str, ...]) -> None:
    for name in classes:
        fill(tmp_path, *numbered(name, 5))
    assert load(tmp_path).class_names == classes


def test_train_folder_beside_other_folders_is_no_class(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.png", "more/a/1.png")
    with pytest.raises(GapError, match="has train/ but neither test/ nor val/"):
        load(tmp_path)


def test_table_beside_a_folder_named_test_is_read(tmp_path: Path) -> None:
    fill(tmp_path, "test/1.png")
    (tmp_path / "labels.csv").write_text("file,label\ntest/1.png,cat\n")
    assert load(tmp_path).class_names == ("cat",)


def test_channels_and_size_must_be_known(tmp_path: Path) -> None:
    fill(tmp_path, "a.png")
    for given_facts in ({}, {"channels": 1}, {"size": (3, 3)}):
        with pytest.raises(GapError, match="name a classifier"):
            load_data(f"folder:{tmp_path}", **given_facts)
    assert load_data(f"folder:{tmp_path}", channels=1, size=(3, 3)).name == f"folder:{tmp_path}"
