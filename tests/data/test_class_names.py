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


def made_of(labels: Sequence[int], names: Sequence[str] | None, *, of_folder: bool = True) -> Dataset:
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


def in_silence(data: Dataset, classes: int, names: tuple[str, ...] | None) -> Dataset:
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
def test_indices_of_a_name_spelled_otherwise_are_those_of_its_class(
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
def test_indices_in_imagenet_are_found_by_wordnet_id_or_first_synonym(
    imagenet: tuple[str, ...], name: str, indices: list[int]
) -> None:
    assert ClassNames(imagenet).indices(name) == indices


def test_indices_in_a_thousand_other_classes_know_no_wordnet_id(imagenet: tuple[str, ...]) -> None:
    assert ClassNames(imagenet[::-1]).indices("n01440764") == []


def test_find_difference_names_the_first_class_that_differs(imagenet: tuple[str, ...]) -> None:
    assert find_difference(("cat", "hot dog", "owl"), ("Cat", "hot_dog", "OWL")) is None
    assert find_difference(PETS, ("cat", "owl", "dog")) == 1
    assert find_difference(PETS, ("cat", "dog", "wolf")) == 2
    of_torchvision = ResNet18_Weights.DEFAULT.meta["categories"]
    assert find_difference(imagenet, of_torchvision) is None and find_difference(of_torchvision, imagenet) is None
    swapped = [*of_torchvision[:7], of_torchvision[8], of_torchvision[7], *of_torchvision[9:]]
    assert find_difference(imagenet, swapped) == 7


def test_match_classes_of_a_subset_in_another_order_gives_the_classifiers_labels() -> None:
    with pytest.warns(GapWarning, match=r"by name: Owl is class 2 \(owl\), dog is class 1$"):
        data = match_classes(made_of([0, 1, 1, 0], ["Owl", "dog"]), "net", 3, PETS)
    assert labels_of(data) == [2, 1, 1, 2] and data.classes == 3 and data.class_names == PETS


def test_match_classes_changes_the_fingerprint_with_the_labels_alone() -> None:
    data = made_of([0, 1, 1, 0], ["owl", "dog"])
    with pytest.warns(GapWarning):
        matched = match_classes(data, "net", 3, PETS)
    assert matched.describe()["sha256"] == made_of([2, 1, 1, 2], PETS).describe()["sha256"]
    same = in_silence(made_of([0, 1], ["cat", "dog"]), 3, PETS)
    assert same.describe()["sha256"] == made_of([0, 1], ["cat", "dog"]).describe()["sha256"]


def test_match_classes_of_the_same_names_is_silent() -> None:
    assert labels_of(in_silence(made_of([2, 0], PETS), 3, PETS)) == [2, 0]
    assert labels_of(in_silence(made_of([1, 0], ["CAT", "Dog"]), 3, PETS)) == [1, 0]


def test_match_classes_that_the_classifier_does_not_know_are_refused() -> None:
    with pytest.raises(GapError) as refusal:
        match_classes(made_of([0, 1, 2], ["dog", "fox", "wolf"]), "net", 3, PETS)
    assert str(refusal.value) == (
        "pictures has 3 classes, of which net does not know 'fox' and 1 more (it knows 3 classes: cat, dog, owl);"
        " rename the folder (or the label in labels.csv), or, to attack it, use `labels` predicted"
    )


def test_match_classes_of_data_by_name_that_is_unknown_asks_for_other_data() -> None:
    with pytest.raises(GapError, match=r"does not know 'dress' and 1 more .*; use data with its classes, or"):
        match_classes(made_of([0, 1], ["dress", "shirt"], of_folder=False), "net", 3, PETS)


def test_match_classes_of_an_ambiguous_name_is_refused(imagenet: tuple[str, ...]) -> None:
    with pytest.raises(GapError, match="'crane', which may be each of the classes 134, 517 of net; rename the folder"):
        match_classes(made_of([0], ["crane"]), "net", 1000, imagenet)


def test_match_classes_says_long_mappings_in_short(imagenet: tuple[str, ...]) -> None:
    names = ["axolotl", *(ImageNetInfo("imagenet-1k").label_names()[500:600])]
    with pytest.warns(GapWarning, match=r"by name: axolotl is class 29 \(axolotl, mud puppy") as said:
        data = match_classes(made_of([0, 100], names), "net", 1000, imagenet)
    assert labels_of(data) == [29, 599]
    (warning,) = said
    assert str(warning.message).count(" is class ") == 6 and str(warning.message).endswith(", ...")


@pytest.mark.parametrize("class_names", [None, (*"abcdefghijkl",)])
def test_match_classes_of_numbers_that_are_no_names_are_indices(class_names: tuple[str, ...] | None) -> None:
    with pytest.warns(GapWarning, match="are numbers, taken as class indices of net, the first being 0: 2 is class 2"):
        data = match_classes(made_of([0, 2, 1], ["2", "9", "11"]), "net", 12, class_names)
    assert labels_of(data) == [2, 11, 9] and data.classes == 12 and data.class_names == class_names


def test_match_classes_of_numbers_beyond_the_classes_are_no_indices() -> None:
    with pytest.raises(GapError, match="net does not know '2' and 1 more "):
        match_classes(made_of([0, 1], ["2", "3"]), "net", 3, PETS)


def test_match_classes_of_numbers_some_of_which_are_names_are_all_names() -> None:
    digits = tuple(str(number) for number in range(1, 11))
    with pytest.warns(GapWarning, match="by name: 3 is class 2, 9 is class 8$"):
        assert labels_of(match_classes(made_of([0, 1], ["3", "9"]), "net", 10, digits)) == [2, 8]
    with pytest.raises(GapError, match="does not know '0' "):
        match_classes(made_of([0, 1], ["0", "9"]), "net", 10, digits)


def test_match_classes_of_digits_by_name_are_no_indices() -> None:
    with pytest.raises(GapError, match="does not know '0' and 2 more "):
        match_classes(made_of([0, 1, 2], ["0", "1", "2"], of_folder=False), "net", 3, PETS)


def test_match_classes_without_names_says_that_the_order_is_taken() -> None:
    with pytest.warns(GapWarning, match="net does not know the names of its classes; .*: cat is class 0, dog is cl"):
        data = match_classes(made_of([2, 0], PETS), "net", 3, None)
    assert labels_of(data) == [2, 0] and data.class_names == PETS


def test_match_classes_without_names_is_silent_about_numbers_in_order_and_data_by_name() -> None:
    digits = made_of([1, 0], ["0", "1"])
    assert in_silence(digits, 2, None) == digits
    by_name = made_of([1, 0, 2], PETS, of_folder=False)
    assert in_silence(by_name, 3, None) == by_name


def test_match_classes_of_a_table_of_indices_are_names_where_all_are() -> None:
    names = ("5", "7", "30")
    with pytest.warns(GapWarning, match="by name: 5 is class 0, 30 is class 2$"):
        data = match_classes(made_of([30, 5, 5], None), "net", 3, names)
    assert labels_of(data) == [2, 0, 0] and data.classes == 3
    indices = made_of([2, 0, 1], None)
    assert in_silence(indices, 3, names) == indices
    assert in_silence(indices, 3, PETS) == indices


def of_python(labels: Sequence[int], names: Sequence[str] | None) -> Dataset:
    return replace(made_of(labels, names, of_folder=False), labels_index_model=True, labels_may_be_names=False)


def test_match_classes_of_data_in_python_goes_by_name() -> None:
    with pytest.warns(GapWarning, match="by name: owl is class 2, dog is class 1$"):
        data = match_classes(of_python([0, 1, 1], ["owl", "dog"]), "net", 3, PETS)
    assert labels_of(data) == [2, 1, 1] and data.class_names == PETS
    with pytest.raises(GapError, match=r"does not know 'fox' .*; use data with its classes, or a pair of images and l"):
        match_classes(of_python([0], ["fox"]), "net", 3, PETS)
    with pytest.raises(GapError, match="'Pet', which may be each of the classes 0, 1 of net; rename the class to the"):
        match_classes(of_python([0], ["Pet"]), "net", 3, ("pet", "PET", "owl"))


def test_match_classes_of_data_in_python_keeps_indices_where_one_side_has_no_names() -> None:
    unnamed = of_python([1, 2], None)
    assert in_silence(unnamed, 3, ("1", "2", "3")) == unnamed
    named = of_python([2, 0], PETS)
    assert in_silence(named, 3, None) == named
    with pytest.warns(
        GapWarning, match="net does not know the names of its classes; .*: cat is class 0, dog is class "
    ):
        assert match_classes(named, "net", 10, None) == named


def test_match_classes_of_lists_that_may_mean_the_same_changes_no_label(imagenet: tuple[str, ...]) -> None:
    """Catches: two classes of ImageNet that are both called crane, as Hugging Face's set has them, in the way."""
    names = [name.partition(",")[0] for name in imagenet]
    assert names.count("crane") == 2
    data = in_silence(of_python([517, 134], names), 1000, imagenet)
    assert labels_of(data) == [517, 134] and data.class_names == imagenet
