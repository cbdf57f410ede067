import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from gap.classifiers.classifier import Classifier, load_classifier
from gap.classifiers.options import DataOptions
from gap.classifiers.task import is_at_chance_level, load_task, name_classes, warn_if_at_chance
from gap.core.artifact import save_artifact
from gap.core.errors import GapError, GapWarning
from gap.data.dataset import InMemorySplit

Complaints = Callable[..., list[str]]


def saved(
    folder: Path,
    size: tuple[int, int] = (28, 28),
    classes: int = 10,
    class_names: tuple[str, ...] | None = None,
    **card: Any,
) -> str:
    """A folder with a classifier of gray images of exactly this size."""
    made = load_classifier("cifar-resnet18-narrow", channels=1, size=size, classes=classes)
    made.spec = replace(made.spec, class_names=class_names)
    save_artifact(folder, "classifier", made.network.state_dict(), {"classifier": made.describe(), **card})
    return str(folder)


def class_folders(root: Path, *names: str) -> DataOptions:
    """A folder for each class, with one picture."""
    for name in names:
        (root / name).mkdir(parents=True)
        Image.effect_noise((28, 28), 80).save(root / name / "1.png")
    return DataOptions(data=f"folder:{root}")


def with_test_accuracy(accuracy: float, images: int = 1000) -> dict[str, Any]:
    """What the card of a classifier with this accuracy has besides."""
    return {
        "data": {"name": "the old data", "images": {"test": images}},
        "metrics": {"test": {"accuracy": accuracy}},
    }


def small(folder: Path, **card: Any) -> str:
    """A folder with a small classifier."""
    made = load_classifier("mnist-cnn")
    save_artifact(folder, "classifier", made.network.state_dict(), {"classifier": made.describe(), **card})
    return str(folder)


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch) -> Complaints:
    """What `warn_if_at_chance` says of a classifier that is right on this share of so many pictures of ten classes."""

    def say(classifier: Classifier, share: float, images: int = 1000) -> list[str]:
        split = InMemorySplit(torch.zeros(images, 1, 28, 28, dtype=torch.uint8), torch.arange(images) % 10)
        monkeypatch.setattr("gap.classifiers.task.accuracy", lambda *_: share)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            warn_if_at_chance(classifier, split, "cpu", "the new data")
        return [str(warning.message) for warning in said]

    return say


def labeled(root: Path, *labels: object) -> DataOptions:
    """A folder of pictures with these labels in its labels.csv."""
    root.mkdir()
    for number in range(len(labels)):
        Image.effect_noise((28, 28), 80).save(root / f"{number}.png")
    rows = [f"{number}.png,{label}" for number, label in enumerate(labels)]
    (root / "labels.csv").write_text("\n".join(["file,label", *rows]))
    return DataOptions(data=f"folder:{root}")


@pytest.mark.parametrize(
    ("labels", "share", "expected"),
    [
        (torch.arange(1000) % 10, 0.11, True),
        (torch.arange(1000) % 10, 0.15, False),
        ((torch.arange(1000) % 10).where(torch.arange(1000) > 300, 1), 0.37, True),
        ((torch.arange(1000) % 10).where(torch.arange(1000) > 300, 1), 0.45, False),
        (None, 0.11, True),
        (None, 0.15, False),
    ],
)
def test_always_saying_the_commonest_class_is_chance(labels: Tensor | None, share: float, expected: bool) -> None:
    """With 301 images made to be of class 1, 37% of all are."""
    split = InMemorySplit(torch.zeros(1000, 1, 2, 2, dtype=torch.uint8), labels)
    assert is_at_chance_level(share, 10, split) == expected


def test_without_images_nothing_is_better_than_chance() -> None:
    empty = InMemorySplit(torch.zeros(0, 1, 2, 2, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    assert is_at_chance_level(0.0, 10, empty)


def test_integers_are_indices_of_a_classifier_with_more_classes(tmp_path: Path) -> None:
    task = load_task([saved(tmp_path / "ten")], labeled(tmp_path / "data", 0, 7, 3))
    assert task.data.classes == task.classes == 10
    assert task.data.test.labels is not None and sorted(task.data.test.labels.tolist()) == [0, 3, 7]


def test_an_index_that_the_classifier_does_not_have(tmp_path: Path) -> None:
    data = labeled(tmp_path / "data", 0, 10)
    with pytest.raises(GapError, match=r"has the label 10, but .*ten knows the classes 0 to 9"):
        load_task([saved(tmp_path / "ten")], data)
    predicted = load_task([saved(tmp_path / "ten")], data.model_copy(update={"labels": "predicted"}))
    assert predicted.data.classes == 10


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1@none", "timm:test_byobnet@none"])
def test_a_fresh_network_of_a_library_has_the_classes_of_the_data(name: str, tmp_path: Path) -> None:
    task = load_task([name], labeled(tmp_path / "data", "cat", "dog", "owl"))
    (classifier,) = task.classifiers
    assert classifier.spec.classes == classifier(torch.rand(2, 3, 64, 64)).shape[1] == 3
    save_artifact(
        tmp_path / "made", "classifier", classifier.network.state_dict(), {"classifier": classifier.describe()}
    )
    assert load_classifier(tmp_path / "made").fingerprint() == classifier.fingerprint()


def test_names_of_fewer_classes_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(GapError, match=r"knows 10 classes, but .* has 2"):
        load_task([saved(tmp_path / "ten")], labeled(tmp_path / "data", "cat", "dog"))


def test_an_ensemble_of_several_sizes_gets_the_images_of_the_first(tmp_path: Path) -> None:
    names = [saved(tmp_path / "first"), saved(tmp_path / "second", size=(16, 20))]
    with pytest.warns(GapWarning, match="second gets the images of 28x28 resized to 16x20"):
        task = load_task(names, DataOptions())
    ((images, _),) = task.data.test.batches([torch.arange(3)])
    assert images.shape == (3, 1, 28, 28)
    images.requires_grad_()
    for classifier in task.classifiers:
        (gradient,) = torch.autograd.grad(classifier(images).logsumexp(dim=1).sum(), images)
        assert gradient.abs().sum() > 0


def test_later_classifiers_that_take_any_size_take_that_of_the_first(tmp_path: Path) -> None:
    with pytest.warns(GapWarning, match="mnist-5k is given to .*first as 1x16x20"):
        task = load_task([saved(tmp_path / "first", size=(16, 20)), "cifar-resnet18-narrow"], DataOptions())
    assert [classifier.spec.size for classifier in task.classifiers] == [(16, 20), (16, 20)]


def test_classifiers_of_other_classes_are_attacked_apart(tmp_path: Path) -> None:
    with pytest.raises(GapError, match="differ in channels or classes"):
        load_task([saved(tmp_path / "ten"), saved(tmp_path / "four", classes=4)], DataOptions())


def test_a_normalizer_goes_to_those_that_have_none(tmp_path: Path) -> None:
    """Images as the user's network has learned to take them, beside a network that normalizes itself."""
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    own, mine = saved(tmp_path / "ten"), f"{tmp_path / 'mine.py'}:net"
    asked = DataOptions(mean=[0.25], std=[0.5])
    for names in ([own, mine], [mine, own]):
        spec = {each.name: each.spec for each in load_task(names, asked).classifiers}
        assert (spec[mine].mean, spec[mine].std) == ((0.25,), (0.5,))
        assert spec[own] == load_classifier(own).spec
    made = load_classifier(mine, channels=1, size=(28, 28))
    save_artifact(tmp_path / "made", "classifier", made.network.state_dict(), {"classifier": made.describe()})
    normalizer_known, other = load_task([f"{mine}@{tmp_path / 'made'}", mine], asked).classifiers
    assert normalizer_known.spec.mean is None and other.spec.mean == (0.25,)
    with pytest.raises(GapError, match="ten and mnist-cnn have their own normalizers, or none;"):
        load_task([own, "mnist-cnn"], asked)


def test_load_setting_matches_class_folders_to_the_classifiers_names(tmp_path: Path) -> None:
    named = saved(tmp_path / "net", classes=3, class_names=("owl", "dog", "cat"))
    with pytest.warns(GapWarning, match="by name: cat is class 2, owl is class 0$"):
        data = load_task([named], class_folders(tmp_path / "data", "cat", "owl")).data
    assert data.test.labels is not None and sorted(data.test.labels.tolist()) == [0, 2]
    assert data.classes == 3 and data.class_names == ("owl", "dog", "cat")


def test_load_setting_matches_a_table_of_names_to_the_classifiers_names(tmp_path: Path) -> None:
    named = saved(tmp_path / "net", classes=3, class_names=("owl", "dog", "cat"))
    with pytest.warns(GapWarning, match="by name: cat is class 2, owl is class 0$"):
        data = load_task([named], labeled(tmp_path / "data", "owl", "cat", "owl")).data
    assert data.test.labels is not None and sorted(data.test.labels.tolist()) == [0, 0, 2]


def test_load_setting_of_classes_that_the_classifier_does_not_know_is_refused(tmp_path: Path) -> None:
    named = saved(tmp_path / "net", classes=2, class_names=("cat", "dog"))
    wolves = class_folders(tmp_path / "data", "dog", "wolf")
    with pytest.raises(GapError, match=r"has 2 classes, of which .*net does not know 'wolf' .*`labels` predicted"):
        load_task([named], wolves)
    predicted = load_task([named], wolves.model_copy(update={"labels": "predicted"})).data
    assert predicted.class_names == ("cat", "dog")


def test_load_setting_of_data_by_name_of_other_classes_is_refused(tmp_path: Path) -> None:
    letters = saved(tmp_path / "letters", class_names=tuple("abcdefghij"))
    with pytest.raises(GapError, match="letters does not know '0' and 9 more"):
        load_task([letters], DataOptions())


def test_load_setting_of_data_by_name_in_another_order_is_matched(tmp_path: Path) -> None:
    reverse = saved(tmp_path / "digits", class_names=tuple("9876543210"))
    with pytest.warns(GapWarning, match=r"mnist-5k are matched to .* by name: 0 is class 9, "):
        data = load_task([reverse], DataOptions()).data
    assert data.test.labels is not None and data.test.labels[:10].tolist() == list(range(9, -1, -1))


def test_load_setting_of_an_unnamed_classifier_says_the_order_of_folders(tmp_path: Path) -> None:
    unnamed = saved(tmp_path / "net", classes=2)
    with pytest.warns(GapWarning, match="net does not know the names .*: cat is class 0, dog is class 1$"):
        load_task([unnamed], class_folders(tmp_path / "data", "dog", "cat"))


def test_load_setting_of_a_fresh_network_takes_any_classes_in_silence(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "data", "3", "1", "7")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = load_task(["cifar-resnet18-narrow"], data.model_copy(update={"input": "1x28x28"}))
    assert task.classes == 3 and task.data.class_names == ("1", "3", "7")


def test_load_setting_matches_by_the_classifier_of_an_ensemble_that_knows_names(tmp_path: Path) -> None:
    names = [saved(tmp_path / "unnamed", classes=2), saved(tmp_path / "net", classes=2, class_names=("dog", "cat"))]
    with pytest.warns(GapWarning, match="those of .*net by name: cat is class 1, dog is class 0$"):
        load_task(names, class_folders(tmp_path / "data", "cat", "dog"))


def test_load_setting_of_an_ensemble_in_another_order_of_classes_is_refused(tmp_path: Path) -> None:
    first = saved(tmp_path / "first", classes=3, class_names=("cat", "dog", "owl"))
    same = saved(tmp_path / "same", classes=3, class_names=("Cat", "Dog", "Owl"))
    other = saved(tmp_path / "other", classes=3, class_names=("cat", "owl", "dog"))
    data = class_folders(tmp_path / "data", "cat", "dog", "owl")
    load_task([first, same], data)
    with pytest.raises(GapError, match=r"first and .*other differ in the order .*: class 1 is 'dog' .* and 'owl' for"):
        load_task([first, same, other], data.model_copy(update={"labels": "predicted"}))


def test_a_fresh_network_of_a_thousand_classes_does_not_know_their_names() -> None:
    assert load_classifier("timm:test_byobnet@none", classes=1000).spec.class_names is None


def test_name_classes_keeps_the_names_that_a_classifier_has(tmp_path: Path) -> None:
    data = load_task(["mnist-cnn"], DataOptions()).data
    fresh, named = load_classifier("mnist-cnn"), load_classifier(saved(tmp_path / "a", class_names=tuple("abcdefghij")))
    for classifier in (fresh, named):
        name_classes(classifier, data)
    assert fresh.spec.class_names == tuple("0123456789") and named.spec.class_names == tuple("abcdefghij")


def test_warn_if_chance_says_what_accuracy_the_card_tells(tmp_path: Path, complaints: Complaints) -> None:
    (line,) = complaints(load_classifier(small(tmp_path / "net", **with_test_accuracy(0.98))), 0.6)
    assert "is right on 60.0% of the new data and had 98.0% on the test images of the old data" in line
    assert "other data" in line and "another order" in line and "`mean`/`std`" in line


def test_warn_if_chance_says_both_in_one_line(tmp_path: Path, complaints: Complaints) -> None:
    (line,) = complaints(load_classifier(small(tmp_path / "net", **with_test_accuracy(0.98))), 0.1)
    assert "10.0% of the new data, no better than chance, and had 98.0%" in line


@pytest.mark.parametrize(
    ("recorded", "recorded_images", "share", "images", "warned"),
    [
        (0.70, 1000, 0.61, 1000, False),
        (0.70, 1000, 0.59, 1000, True),
        (0.70, 1000, 0.55, 40, False),
        (0.70, 40, 0.58, 1000, False),
        (0.70, 1000, 0.90, 1000, False),
    ],
)
def test_warn_if_chance_is_silent_within_ten_points_or_sampling_noise(
    tmp_path: Path,
    complaints: Complaints,
    recorded: float,
    recorded_images: int,
    share: float,
    images: int,
    warned: bool,
) -> None:
    classifier = load_classifier(small(tmp_path / "net", **with_test_accuracy(recorded, recorded_images)))
    assert bool(complaints(classifier, share, images)) == warned


@pytest.mark.parametrize("card", [{}, {"metrics": {"test": {}}}, {"metrics": None, "data": {"name": "x"}}])
def test_warn_if_chance_without_a_recorded_accuracy_is_silent(
    tmp_path: Path, complaints: Complaints, card: dict[str, Any]
) -> None:
    assert not complaints(load_classifier(small(tmp_path / "net", **card)), 0.6)


def test_warn_if_chance_believes_a_card_of_these_weights_alone(tmp_path: Path, complaints: Complaints) -> None:
    name = small(tmp_path / "net", **with_test_accuracy(0.98))
    card = yaml.safe_load((tmp_path / "net" / "card.yaml").read_text())
    card["classifier"]["fingerprint"] = "0" * 16
    (tmp_path / "net" / "card.yaml").write_text(yaml.safe_dump(card))
    assert not complaints(load_classifier(name), 0.6)


def test_warn_if_chance_believes_the_card_whatever_the_normalizer(tmp_path: Path, complaints: Complaints) -> None:
    weights = f"mnist-cnn@{small(tmp_path / 'net', **with_test_accuracy(0.98))}/model.safetensors"
    (line,) = complaints(load_classifier(weights, mean=[0.3], std=[0.2]), 0.6)
    assert "had 98.0%" in line
