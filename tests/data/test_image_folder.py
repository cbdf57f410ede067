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


def write_images(root: Path, *relative_names: str) -> Path:
    for name in relative_names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        DOT.save(root / name)
    return root


def numbered_names(folder: str, count: int) -> list[str]:
    return [f"{folder}/{number:03}.png" for number in range(count)]


def load(root: Path) -> Dataset:
    return load_folder(root, 1, (3, 3))


def relative_names(split: object, root: Path) -> list[str]:
    assert isinstance(split, ImageFolderSplit)
    return [path.relative_to(root).as_posix() for path in split.paths]


def labels_by_name(data: Dataset, root: Path) -> dict[str, int]:
    labels = {}
    for split in (data.train, data.validation, data.test):
        assert split.labels is not None
        labels.update(zip(relative_names(split, root), split.labels.tolist(), strict=True))
    return labels


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 60))
def test_load_folder_flat_images_are_split_into_disjoint_complete_parts(tmp_path: Path, count: int) -> None:
    root = tmp_path / str(count)
    root.mkdir(exist_ok=True)
    for number in range(count):
        (root / f"{number:03}.png").touch()
    data = load(root)
    parts = [relative_names(split, root) for split in (data.train, data.validation, data.test)]
    assert sorted(name for part in parts for name in part) == [f"{number:03}.png" for number in range(count)]
    assert len(data.test) == (count if count < 5 else round(count / 5))
    assert count < 5 or len(data.train) > len(data.validation) > 0


def test_load_folder_random_split_is_repeatable_and_not_by_name(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{number:03}.png" for number in range(40)))
    first, second = load(tmp_path), load(tmp_path)
    assert first == second and first.describe() == second.describe()
    assert relative_names(first.test, tmp_path) not in (
        [f"{n:03}.png" for n in range(8)],
        [f"{n:03}.png" for n in range(32, 40)],
    )


def test_load_folder_class_folders_give_labels_and_class_names(tmp_path: Path) -> None:
    write_images(tmp_path, *numbered_names("cat", 12), *numbered_names("ant/deep", 8))
    data = load(tmp_path)
    assert data.class_names == ("ant", "cat") and data.classes == 2
    assert (len(data.train), len(data.validation), len(data.test)) == (15, 1, 4)
    assert all(label == name.startswith("cat") for name, label in labels_by_name(data, tmp_path).items())


def test_load_folder_flat_images_have_no_labels(tmp_path: Path) -> None:
    data = load(write_images(tmp_path, *(f"{number}.png" for number in range(10))))
    assert data.classes is None and data.class_names is None and data.train.labels is None
    ((images, labels),) = data.test.batches(sequential_batches(data.test, 8))
    assert images.shape == (2, 1, 3, 3) and labels.tolist() == [-1, -1]


def test_load_folder_train_and_test_folders_validation_is_split_from_train(tmp_path: Path) -> None:
    write_images(tmp_path, *numbered_names("train/a", 20), *numbered_names("train/b", 20), *numbered_names("test/b", 3))
    data = load(tmp_path)
    assert sorted(relative_names(data.test, tmp_path)) == numbered_names("test/b", 3)
    assert (len(data.train), len(data.validation)) == (38, 2)
    assert sorted(relative_names(data.train, tmp_path) + relative_names(data.validation, tmp_path)) == (
        numbered_names("train/a", 20) + numbered_names("train/b", 20)
    )
    assert all(label == ("/b/" in name) for name, label in labels_by_name(data, tmp_path).items())


def test_load_folder_train_val_and_test_folders_are_kept(tmp_path: Path) -> None:
    write_images(tmp_path, *numbered_names("train/a", 9), *numbered_names("val/a", 4), *numbered_names("test/a", 5))
    data = load(tmp_path)
    assert [sorted(relative_names(split, tmp_path)) for split in (data.train, data.validation, data.test)] == [
        numbered_names("train/a", 9),
        numbered_names("val/a", 4),
        numbered_names("test/a", 5),
    ]


def test_load_folder_val_without_test_is_the_test_split(tmp_path: Path) -> None:
    data = load(write_images(tmp_path, *numbered_names("train/a", 9), *numbered_names("val/a", 4)))
    assert sorted(relative_names(data.test, tmp_path)) == numbered_names("val/a", 4) and len(data.validation) == 1


def test_load_folder_first_test_images_are_of_several_classes(tmp_path: Path) -> None:
    """Catches: an evaluation of the first images of a test split that has one class alone, sorted by folder."""
    write_images(
        tmp_path,
        *numbered_names("train/a", 2),
        *numbered_names("train/b", 2),
        *numbered_names("test/a", 20),
        *numbered_names("test/b", 20),
    )
    labels = load(tmp_path).test.labels
    assert labels is not None and labels[:10].unique().tolist() == [0, 1]


def test_load_folder_table_of_integers_gives_class_indices(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png", "sub/c.png")
    (tmp_path / "labels.csv").write_text("label,file\n4,b.png\n0,a.png\n7,sub/c.png\n")
    data = load(tmp_path)
    assert labels_by_name(data, tmp_path) == {"a.png": 0, "b.png": 4, "sub/c.png": 7}
    assert data.class_names is None and data.classes == 8 and data.labels_index_model


def test_load_folder_table_of_names_gives_sorted_class_names(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png", "c.png")
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
def test_load_folder_invalid_table_is_refused_with_the_reason(tmp_path: Path, table: str, complaint: str) -> None:
    write_images(tmp_path, "a.png", "b.png")
    (tmp_path / "labels.csv").write_bytes(table.encode("latin-1"))
    with pytest.raises(GapError, match=complaint):
        load(tmp_path)


def test_load_folder_unusable_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    def assert_refused(root: Path, complaint: str) -> None:
        with pytest.raises(GapError, match=complaint) as error:
            load(root)
        assert "\n" not in str(error.value)

    assert_refused(tmp_path / "lost", "lost is missing")
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", "empty holds no pictures")
    (tmp_path / "file").touch()
    assert_refused(tmp_path / "file", "is not a folder")
    write_images(tmp_path / "hollow", "a/1.png")
    (tmp_path / "hollow" / "b").mkdir()
    (tmp_path / "hollow" / "a" / "1.png").unlink()
    assert_refused(tmp_path / "hollow", "hollow holds no pictures")
    assert_refused(write_images(tmp_path / "mixed", "a/1.png", "2.png"), r"both folders and pictures \(2\.png\)")
    assert_refused(write_images(tmp_path / "alone", "train/a/1.png"), "neither test/ nor val/")
    assert_refused(write_images(tmp_path / "flat", "train/1.png", "test/1.png"), "train has no folders")
    assert_refused(
        write_images(tmp_path / "odd", "train/a/1.png", "test/images/1.png"), "images is a class that the training"
    )


def test_load_folder_numeric_class_folders_are_sorted_by_value(tmp_path: Path) -> None:
    for number in range(12):
        write_images(tmp_path, *numbered_names(str(number), 5))
    data = load(tmp_path)
    assert data.class_names == tuple(map(str, range(12))) and data.sorted_classes
    assert all(label == int(Path(name).parent.name) for name, label in labels_by_name(data, tmp_path).items())


def test_load_folder_numeric_folders_in_train_and_test_are_sorted_by_value(tmp_path: Path) -> None:
    for number in (2, 9, 10):
        write_images(tmp_path, *numbered_names(f"train/{number}", 5), *numbered_names(f"test/{number}", 2))
    data = load(tmp_path)
    order = {"2": 0, "9": 1, "10": 2}
    assert all(label == order[Path(name).parent.name] for name, label in labels_by_name(data, tmp_path).items())


@pytest.mark.parametrize(
    "folder", ["__MACOSX", ".ipynb_checkpoints", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "__pycache__"]
)
def test_load_folder_system_folders_and_files_are_ignored(tmp_path: Path, folder: str) -> None:
    write_images(tmp_path, *numbered_names("cat", 5), f"{folder}/cat/1.png", f"cat/{folder}/1.png", "cat/._1.png")
    (tmp_path / "cat" / "Thumbs.db").touch()
    (tmp_path / ".DS_Store").touch()
    data = load(tmp_path)
    assert data.class_names == ("cat",) and sorted(labels_by_name(data, tmp_path)) == numbered_names("cat", 5)


def test_load_folder_system_folders_next_to_flat_images_are_ignored(tmp_path: Path) -> None:
    data = load(write_images(tmp_path, "1.png", "@eaDir/1.png", "__MACOSX/1.png"))
    assert data.class_names is None and relative_names(data.test, tmp_path) == ["1.png"]


def test_load_folder_empty_class_folders_are_dropped_with_a_warning(tmp_path: Path) -> None:
    write_images(tmp_path, *numbered_names("ant", 5), *numbered_names("cat", 5))
    (tmp_path / "bee").mkdir()
    (tmp_path / "cow" / "@eaDir").mkdir(parents=True)
    (tmp_path / "cow" / "notes.txt").touch()
    with pytest.warns(GapWarning, match="hold no pictures and are left out: bee, cow$"):
        data = load(tmp_path)
    assert data.class_names == ("ant", "cat") and data.classes == 2


def test_load_folder_empty_class_folders_in_train_and_test_are_dropped_with_a_warning(tmp_path: Path) -> None:
    write_images(tmp_path, *numbered_names("train/a", 5), *numbered_names("train/b", 5), "test/b/1.png")
    for empty in ("train/c", "test/a", "test/c"):
        (tmp_path / empty).mkdir()
    with pytest.warns(GapWarning) as warned:
        data = load(tmp_path)
    assert sorted(str(warning.message).rpartition(": ")[2] for warning in warned) == ["a, c", "c"]
    assert data.class_names == ("a", "b") and data.test.labels is not None and data.test.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Train", "VAL", "Test"), ("training", "validation", "testing"), ("TRAIN", "valid", "TEST")],
)
def test_load_folder_split_folders_with_other_names_or_case_are_recognized(
    tmp_path: Path, train: str, val: str, test: str
) -> None:
    write_images(
        tmp_path, *numbered_names(f"{train}/a", 9), *numbered_names(f"{val}/a", 4), *numbered_names(f"{test}/a", 5)
    )
    data = load(tmp_path)
    assert data.class_names == ("a",)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [9, 4, 5]
    assert relative_names(data.test, tmp_path)[0].startswith(test)


def test_load_folder_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "train/a/1.png", "Test/a/1.png", "val/a/1.png", "valid/a/1.png")
    with pytest.raises(GapError, match=r"/val and \S+/valid both hold the val pictures"):
        load(tmp_path)


def test_load_folder_split_folders_without_train_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "val/a/1.png", "test/a/1.png")
    with pytest.raises(GapError, match=r"has val/ but no train/; add it, or name \S+/val$"):
        load(tmp_path)


@pytest.mark.parametrize("classes", [("invalid", "valid"), ("bus", "train"), ("resting", "training")])
def test_load_folder_classes_with_names_of_splits_are_classes(tmp_path: Path, classes: tuple[str, ...]) -> None:
    for name in classes:
        write_images(tmp_path, *numbered_names(name, 5))
    assert load(tmp_path).class_names == classes


def test_load_folder_train_folder_next_to_other_folders_is_no_class(tmp_path: Path) -> None:
    write_images(tmp_path, "train/a/1.png", "more/a/1.png")
    with pytest.raises(GapError, match="has train/ but neither test/ nor val/"):
        load(tmp_path)


def test_load_folder_table_next_to_a_folder_named_test_is_read(tmp_path: Path) -> None:
    write_images(tmp_path, "test/1.png")
    (tmp_path / "labels.csv").write_text("file,label\ntest/1.png,cat\n")
    assert load(tmp_path).class_names == ("cat",)


def test_load_data_folder_without_channels_or_size_asks_for_a_classifier(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    for given_facts in ({}, {"channels": 1}, {"size": (3, 3)}):
        with pytest.raises(GapError, match="name a classifier"):
            load_data(f"folder:{tmp_path}", **given_facts)
    assert load_data(f"folder:{tmp_path}", channels=1, size=(3, 3)).name == f"folder:{tmp_path}"
