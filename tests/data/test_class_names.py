import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from timm.data import ImageNetInfo
from torchvision.models import ResNet18_Weights

from gap.core.errors import GapError, GapWarning
from gap.data.class_names import ClassNames, find_difference, match_classes, sort_names
from gap.data.dataset import Dataset, InMemorySplit

PETS = ("cat", "dog", "owl")


def make_dataset(labels: Sequence[int], names: Sequence[str] | None, *, of_folder: bool = True) -> Dataset:
    split = InMemorySplit(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), torch.tensor(labels))
    return Dataset(
        name="pictures",
        train=split,
        validation=split,
        test=split,
        channels=1,
        size=(2, 2),
        class_names=tuple(names) if names else None,
        classes=len(names) if names else max(labels) + 1,
        source="",
        labels_index_model=names is None,
        labels_may_be_names=names is None,
        sorted_classes=of_folder and names is not None,
    )


def labels_of(data: Dataset) -> list[int]:
    assert all(split.labels is not None for split in data.splits.values())
    (labels,) = {tuple(split.labels.tolist()) for split in data.splits.values() if split.labels is not None}
    return list(labels)


def match_without_warning(data: Dataset, classes: int, names: tuple[str, ...] | None) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return match_classes(data, "net", classes, names)


@pytest.fixture(scope="module")
def imagenet() -> tuple[str, ...]:
    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(index) for index in range(1000))


def test_sort_names_numbers_by_value_and_words_as_text() -> None:
    assert sort_names(["10", "9", "011", "2"]) == ("2", "9", "10", "011")
    assert sort_names(["b10", "b9", "a"]) == ("a", "b10", "b9")
    assert sort_names(["10", "9", "x"]) == ("10", "9", "x")


@pytest.mark.parametrize(
    ("names", "name", "indices"),
    [
        (("cat", "hot dog"), "Hot_Dog", [1]),
        (("cat", "hot dog"), "hot-dog", [1]),
        (("T-shirt/top", "Ankle boot"), "t_shirt_top", [0]),
        (("0", "1", "12"), "012", [2]),
        (("Cardigan", "cardigan"), "cardigan", [1]),
        (("Cardigan", "cardigan"), "CARDIGAN", [0, 1]),
        (("-1", "0"), "1", []),
        (("+", "-"), "-", [1]),
        (("cat", "dog"), "catdog", []),
        ((unicodedata.normalize("NFC", "café"), "bar"), unicodedata.normalize("NFD", "Café"), [0]),
        (("n01440764", "n01443537"), "n01443537_goldfish", [1]),
        (("n01440764_tench", "n01443537-goldfish"), "n01440764", [0]),
    ],
)
def test_class_names_indices_other_spelling_of_a_name_is_found(
    names: tuple[str, ...], name: str, indices: list[int]
) -> None:
    assert ClassNames(names).indices(name) == indices


@pytest.mark.parametrize(
    ("name", "indices"),
    [
        ("n01440764", [0]),
        ("n01440764_tench", [0]),
        ("N01440764 Tinca", [0]),
        ("tench", [0]),
        ("great-white_shark", [2]),
        ("cardigan", [474]),
        ("Cardigan", [264]),
        ("maillot", [638]),
        ("maillot_tank_suit", [639]),
        ("crane_bird", [134]),
        ("n03126707", [517]),
        ("crane", [134, 517]),
        ("n99999999", []),
        ("wolf", []),
    ],
)
def test_class_names_indices_imagenet_wordnet_id_or_first_synonym_is_found(
    imagenet: tuple[str, ...], name: str, indices: list[int]
) -> None:
    assert ClassNames(imagenet).indices(name) == indices


def test_class_names_indices_thousand_other_classes_have_no_wordnet_id(imagenet: tuple[str, ...]) -> None:
    assert ClassNames(imagenet[::-1]).indices("n01440764") == []


def test_find_difference_gives_the_first_class_that_differs(imagenet: tuple[str, ...]) -> None:
    assert find_difference(("cat", "hot dog", "owl"), ("Cat", "hot_dog", "OWL")) is None
    assert find_difference(PETS, ("cat", "owl", "dog")) == 1
    assert find_difference(PETS, ("cat", "dog", "wolf")) == 2
    of_torchvision = ResNet18_Weights.DEFAULT.meta["categories"]
    assert find_difference(imagenet, of_torchvision) is None and find_difference(of_torchvision, imagenet) is None
    swapped = [*of_torchvision[:7], of_torchvision[8], of_torchvision[7], *of_torchvision[9:]]
    assert find_difference(imagenet, swapped) == 7


def test_match_classes_subset_in_another_order_gives_the_labels_of_the_classifier() -> None:
    with pytest.warns(GapWarning, match=r"by name: Owl is class 2 \(owl\), dog is class 1$"):
        data = match_classes(make_dataset([0, 1, 1, 0], ["Owl", "dog"]), "net", 3, PETS)
    assert labels_of(data) == [2, 1, 1, 2] and data.classes == 3 and data.class_names == PETS


def test_match_classes_fingerprint_depends_on_the_final_labels_alone() -> None:
    data = make_dataset([0, 1, 1, 0], ["owl", "dog"])
    with pytest.warns(GapWarning):
        matched = match_classes(data, "net", 3, PETS)
    assert matched.describe()["sha256"] == make_dataset([2, 1, 1, 2], PETS).describe()["sha256"]
    same = match_without_warning(make_dataset([0, 1], ["cat", "dog"]), 3, PETS)
    assert same.describe()["sha256"] == make_dataset([0, 1], ["cat", "dog"]).describe()["sha256"]


def test_match_classes_same_names_give_no_warning() -> None:
    assert labels_of(match_without_warning(make_dataset([2, 0], PETS), 3, PETS)) == [2, 0]
    assert labels_of(match_without_warning(make_dataset([1, 0], ["CAT", "Dog"]), 3, PETS)) == [1, 0]


def test_match_classes_class_unknown_to_the_classifier_is_refused() -> None:
    with pytest.raises(GapError) as error:
        match_classes(make_dataset([0, 1, 2], ["dog", "fox", "wolf"]), "net", 3, PETS)
    assert str(error.value) == (
        "pictures has 3 classes, of which net does not know 'fox' and 1 more (it knows 3 classes: cat, dog, owl);"
        " rename the folder (or the label in labels.csv), or, to attack it, use `labels` predicted"
    )


def test_match_classes_published_data_with_unknown_class_asks_for_other_data() -> None:
    with pytest.raises(GapError, match=r"does not know 'dress' and 1 more .*; use data with its classes, or"):
        match_classes(make_dataset([0, 1], ["dress", "shirt"], of_folder=False), "net", 3, PETS)


def test_match_classes_ambiguous_name_is_refused(imagenet: tuple[str, ...]) -> None:
    with pytest.raises(GapError, match="'crane', which may be each of the classes 134, 517 of net; rename the folder"):
        match_classes(make_dataset([0], ["crane"]), "net", 1000, imagenet)


def test_match_classes_long_mapping_is_abbreviated_in_the_warning(imagenet: tuple[str, ...]) -> None:
    names = ["axolotl", *(ImageNetInfo("imagenet-1k").label_names()[500:600])]
    with pytest.warns(GapWarning, match=r"by name: axolotl is class 29 \(axolotl, mud puppy") as warned:
        data = match_classes(make_dataset([0, 100], names), "net", 1000, imagenet)
    assert labels_of(data) == [29, 599]
    (warning,) = warned
    assert str(warning.message).count(" is class ") == 6 and str(warning.message).endswith(", ...")


@pytest.mark.parametrize("class_names", [None, (*"abcdefghijkl",)])
def test_match_classes_numbers_that_are_no_class_names_are_indices(class_names: tuple[str, ...] | None) -> None:
    with pytest.warns(GapWarning, match="are numbers, taken as class indices of net, the first being 0: 2 is class 2"):
        data = match_classes(make_dataset([0, 2, 1], ["2", "9", "11"]), "net", 12, class_names)
    assert labels_of(data) == [2, 11, 9] and data.classes == 12 and data.class_names == class_names


def test_match_classes_number_beyond_the_last_class_is_refused() -> None:
    with pytest.raises(GapError, match="net does not know '2' and 1 more "):
        match_classes(make_dataset([0, 1], ["2", "3"]), "net", 3, PETS)


def test_match_classes_numbers_of_which_some_are_class_names_are_all_names() -> None:
    digits = tuple(str(number) for number in range(1, 11))
    with pytest.warns(GapWarning, match="by name: 3 is class 2, 9 is class 8$"):
        assert labels_of(match_classes(make_dataset([0, 1], ["3", "9"]), "net", 10, digits)) == [2, 8]
    with pytest.raises(GapError, match="does not know '0' "):
        match_classes(make_dataset([0, 1], ["0", "9"]), "net", 10, digits)


def test_match_classes_digits_of_published_data_are_not_taken_as_indices() -> None:
    with pytest.raises(GapError, match="does not know '0' and 2 more "):
        match_classes(make_dataset([0, 1, 2], ["0", "1", "2"], of_folder=False), "net", 3, PETS)


def test_match_classes_classifier_without_names_warns_that_the_order_is_used() -> None:
    with pytest.warns(GapWarning, match="net does not know the names of its classes; .*: cat is class 0, dog is cl"):
        data = match_classes(make_dataset([2, 0], PETS), "net", 3, None)
    assert labels_of(data) == [2, 0] and data.class_names == PETS


def test_match_classes_classifier_without_names_numbers_in_order_give_no_warning() -> None:
    digits = make_dataset([1, 0], ["0", "1"])
    assert match_without_warning(digits, 2, None) == digits
    by_name = make_dataset([1, 0, 2], PETS, of_folder=False)
    assert match_without_warning(by_name, 3, None) == by_name


def test_match_classes_integers_of_a_table_are_names_if_all_are_class_names() -> None:
    names = ("5", "7", "30")
    with pytest.warns(GapWarning, match="by name: 5 is class 0, 30 is class 2$"):
        data = match_classes(make_dataset([30, 5, 5], None), "net", 3, names)
    assert labels_of(data) == [2, 0, 0] and data.classes == 3
    indices = make_dataset([2, 0, 1], None)
    assert match_without_warning(indices, 3, names) == indices
    assert match_without_warning(indices, 3, PETS) == indices


def make_python_dataset(labels: Sequence[int], names: Sequence[str] | None) -> Dataset:
    return replace(make_dataset(labels, names, of_folder=False), labels_index_model=True, labels_may_be_names=False)


def test_match_classes_python_data_is_matched_by_name() -> None:
    with pytest.warns(GapWarning, match="by name: owl is class 2, dog is class 1$"):
        data = match_classes(make_python_dataset([0, 1, 1], ["owl", "dog"]), "net", 3, PETS)
    assert labels_of(data) == [2, 1, 1] and data.class_names == PETS
    with pytest.raises(GapError, match=r"does not know 'fox' .*; use data with its classes, or a pair of images and l"):
        match_classes(make_python_dataset([0], ["fox"]), "net", 3, PETS)
    with pytest.raises(GapError, match="'Pet', which may be each of the classes 0, 1 of net; rename the class to the"):
        match_classes(make_python_dataset([0], ["Pet"]), "net", 3, ("pet", "PET", "owl"))


def test_match_classes_python_data_names_missing_on_one_side_keeps_the_indices() -> None:
    unnamed = make_python_dataset([1, 2], None)
    assert match_without_warning(unnamed, 3, ("1", "2", "3")) == unnamed
    named = make_python_dataset([2, 0], PETS)
    assert match_without_warning(named, 3, None) == named
    with pytest.warns(
        GapWarning, match="net does not know the names of its classes; .*: cat is class 0, dog is class "
    ):
        assert match_classes(named, "net", 10, None) == named


def test_match_classes_lists_with_equivalent_names_keep_the_labels(imagenet: tuple[str, ...]) -> None:
    """Catches: a refusal because two classes of ImageNet are called crane, as in the set of Hugging Face."""
    names = [name.partition(",")[0] for name in imagenet]
    assert names.count("crane") == 2
    data = match_without_warning(make_python_dataset([517, 134], names), 1000, imagenet)
    assert labels_of(data) == [517, 134] and data.class_names == imagenet
