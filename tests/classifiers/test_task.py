"""load_task: classifiers and data that fit, class names, and warnings of accuracy at chance level."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from gap.classifiers.classifier import Classifier, ClassifierSpec, load_classifier
from gap.classifiers.options import DataOptions
from gap.classifiers.task import is_at_chance_level, load_task, name_classes, warn_if_at_chance
from gap.core.artifact import save_artifact
from gap.core.errors import GapError, GapWarning
from gap.data.dataset import InMemorySplit

ChanceWarnings = Callable[..., list[str]]


def save_classifier(
    folder: Path,
    size: tuple[int, int] = (28, 28),
    classes: int = 10,
    class_names: tuple[str, ...] | None = None,
    **card: Any,
) -> str:
    """A folder with a classifier of gray images of exactly this size."""
    classifier = load_classifier("cifar-resnet18-narrow", channels=1, size=size, classes=classes)
    classifier.spec = replace(classifier.spec, class_names=class_names)
    save_artifact(folder, "classifier", classifier.network.state_dict(), {"classifier": classifier.describe(), **card})
    return str(folder)


def class_folders(root: Path, *names: str) -> DataOptions:
    """A folder for each class, with one image."""
    for name in names:
        (root / name).mkdir(parents=True)
        Image.effect_noise((28, 28), 80).save(root / name / "1.png")
    return DataOptions(data=f"folder:{root}")


def with_test_accuracy(accuracy: float, images: int = 1000) -> dict[str, Any]:
    """The fields of a card that record this accuracy on the test images."""
    return {
        "data": {"name": "the old data", "images": {"test": images}},
        "metrics": {"test": {"accuracy": accuracy}},
    }


def save_small_classifier(folder: Path, **card: Any) -> str:
    """A folder with a small classifier."""
    classifier = load_classifier("mnist-cnn")
    save_artifact(folder, "classifier", classifier.network.state_dict(), {"classifier": classifier.describe(), **card})
    return str(folder)


@pytest.fixture
def chance_warnings(monkeypatch: pytest.MonkeyPatch) -> ChanceWarnings:
    """The warnings of `warn_if_at_chance` for a classifier with this accuracy on so many images of ten classes."""

    def collect(classifier: Classifier, accuracy: float, images: int = 1000) -> list[str]:
        split = InMemorySplit(torch.zeros(images, 1, 28, 28, dtype=torch.uint8), torch.arange(images) % 10)
        monkeypatch.setattr("gap.classifiers.task.accuracy", lambda *_: accuracy)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_if_at_chance(classifier, split, "cpu", "the new data")
        return [str(warning.message) for warning in caught]

    return collect


def labeled_folder(root: Path, *labels: object) -> DataOptions:
    """A folder of images with these labels in its labels.csv."""
    root.mkdir()
    for number in range(len(labels)):
        Image.effect_noise((28, 28), 80).save(root / f"{number}.png")
    rows = [f"{number}.png,{label}" for number, label in enumerate(labels)]
    (root / "labels.csv").write_text("\n".join(["file,label", *rows]))
    return DataOptions(data=f"folder:{root}")


@pytest.mark.parametrize(
    ("labels", "accuracy", "expected"),
    [
        (torch.arange(1000) % 10, 0.11, True),
        (torch.arange(1000) % 10, 0.15, False),
        ((torch.arange(1000) % 10).where(torch.arange(1000) > 300, 1), 0.37, True),
        ((torch.arange(1000) % 10).where(torch.arange(1000) > 300, 1), 0.45, False),
        (None, 0.11, True),
        (None, 0.15, False),
    ],
)
def test_is_at_chance_level_accuracy_of_the_majority_class_is_chance(
    labels: Tensor | None, accuracy: float, expected: bool
) -> None:
    """Catches: a chance level of 1 / classes where one class is more frequent. Here 37% of the images are class 1."""
    split = InMemorySplit(torch.zeros(1000, 1, 2, 2, dtype=torch.uint8), labels)
    assert is_at_chance_level(accuracy, 10, split) == expected


def test_is_at_chance_level_without_images_is_true() -> None:
    empty = InMemorySplit(torch.zeros(0, 1, 2, 2, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    assert is_at_chance_level(0.0, 10, empty)


def test_load_task_integer_labels_are_indices_of_a_classifier_with_more_classes(tmp_path: Path) -> None:
    task = load_task([save_classifier(tmp_path / "ten")], labeled_folder(tmp_path / "data", 0, 7, 3))
    assert task.data.classes == task.classes == 10
    assert task.data.test.labels is not None and sorted(task.data.test.labels.tolist()) == [0, 3, 7]


def test_load_task_label_index_above_the_classes_raises_unless_predicted(tmp_path: Path) -> None:
    data = labeled_folder(tmp_path / "data", 0, 10)
    with pytest.raises(GapError, match=r"has the label 10, but .*ten knows the classes 0 to 9"):
        load_task([save_classifier(tmp_path / "ten")], data)
    predicted = load_task([save_classifier(tmp_path / "ten")], data.model_copy(update={"labels": "predicted"}))
    assert predicted.data.classes == 10


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1@none", "timm:test_byobnet@none"])
def test_load_task_untrained_library_network_has_the_classes_of_the_data(name: str, tmp_path: Path) -> None:
    task = load_task([name], labeled_folder(tmp_path / "data", "cat", "dog", "owl"))
    (classifier,) = task.classifiers
    assert classifier.spec.classes == classifier(torch.rand(2, 3, 64, 64)).shape[1] == 3
    save_artifact(
        tmp_path / "made", "classifier", classifier.network.state_dict(), {"classifier": classifier.describe()}
    )
    assert load_classifier(tmp_path / "made").fingerprint() == classifier.fingerprint()


def test_load_task_fewer_named_classes_raises_gap_error(tmp_path: Path) -> None:
    with pytest.raises(GapError, match=r"knows 10 classes, but .* has 2"):
        load_task([save_classifier(tmp_path / "ten")], labeled_folder(tmp_path / "data", "cat", "dog"))


def test_load_task_ensemble_of_several_sizes_gets_images_of_the_first_size(tmp_path: Path) -> None:
    names = [save_classifier(tmp_path / "first"), save_classifier(tmp_path / "second", size=(16, 20))]
    with pytest.warns(GapWarning, match="second gets the images of 28x28 resized to 16x20"):
        task = load_task(names, DataOptions())
    ((images, _),) = task.data.test.batches([torch.arange(3)])
    assert images.shape == (3, 1, 28, 28)
    images.requires_grad_()
    for classifier in task.classifiers:
        (gradient,) = torch.autograd.grad(classifier(images).logsumexp(dim=1).sum(), images)
        assert gradient.abs().sum() > 0


def test_load_task_later_classifier_of_any_size_takes_that_of_the_first(tmp_path: Path) -> None:
    with pytest.warns(GapWarning, match="mnist-5k is given to .*first as 1x16x20"):
        task = load_task([save_classifier(tmp_path / "first", size=(16, 20)), "cifar-resnet18-narrow"], DataOptions())
    assert [classifier.spec.size for classifier in task.classifiers] == [(16, 20), (16, 20)]


def test_load_task_ensemble_with_other_classes_raises_gap_error(tmp_path: Path) -> None:
    with pytest.raises(GapError, match="differ in channels or classes"):
        load_task([save_classifier(tmp_path / "ten"), save_classifier(tmp_path / "four", classes=4)], DataOptions())


def test_load_task_mean_and_std_go_only_to_classifiers_without_normalizer(tmp_path: Path) -> None:
    """Catches: a normalizer from the options that replaces that of a network which normalizes by itself."""
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    own_normalizer, without_normalizer = save_classifier(tmp_path / "ten"), f"{tmp_path / 'mine.py'}:net"
    options = DataOptions(mean=[0.25], std=[0.5])
    for names in ([own_normalizer, without_normalizer], [without_normalizer, own_normalizer]):
        spec = {classifier.name: classifier.spec for classifier in load_task(names, options).classifiers}
        assert (spec[without_normalizer].mean, spec[without_normalizer].std) == ((0.25,), (0.5,))
        assert spec[own_normalizer] == load_classifier(own_normalizer).spec
    original = load_classifier(without_normalizer, channels=1, size=(28, 28))
    save_artifact(tmp_path / "made", "classifier", original.network.state_dict(), {"classifier": original.describe()})
    from_folder, other = load_task(
        [f"{without_normalizer}@{tmp_path / 'made'}", without_normalizer], options
    ).classifiers
    assert from_folder.spec.mean is None and other.spec.mean == (0.25,)
    with pytest.raises(GapError, match="ten and mnist-cnn have their own normalizers, or none;"):
        load_task([own_normalizer, "mnist-cnn"], options)


def test_load_task_class_folders_are_matched_to_the_class_names(tmp_path: Path) -> None:
    named = save_classifier(tmp_path / "net", classes=3, class_names=("owl", "dog", "cat"))
    with pytest.warns(GapWarning, match="by name: cat is class 2, owl is class 0$"):
        data = load_task([named], class_folders(tmp_path / "data", "cat", "owl")).data
    assert data.test.labels is not None and sorted(data.test.labels.tolist()) == [0, 2]
    assert data.classes == 3 and data.class_names == ("owl", "dog", "cat")


def test_load_task_label_table_is_matched_to_the_class_names(tmp_path: Path) -> None:
    named = save_classifier(tmp_path / "net", classes=3, class_names=("owl", "dog", "cat"))
    with pytest.warns(GapWarning, match="by name: cat is class 2, owl is class 0$"):
        data = load_task([named], labeled_folder(tmp_path / "data", "owl", "cat", "owl")).data
    assert data.test.labels is not None and sorted(data.test.labels.tolist()) == [0, 0, 2]


def test_load_task_unknown_class_folder_raises_unless_predicted(tmp_path: Path) -> None:
    named = save_classifier(tmp_path / "net", classes=2, class_names=("cat", "dog"))
    wolves = class_folders(tmp_path / "data", "dog", "wolf")
    with pytest.raises(GapError, match=r"has 2 classes, of which .*net does not know 'wolf' .*`labels` predicted"):
        load_task([named], wolves)
    predicted = load_task([named], wolves.model_copy(update={"labels": "predicted"})).data
    assert predicted.class_names == ("cat", "dog")


def test_load_task_named_data_of_other_classes_raises_gap_error(tmp_path: Path) -> None:
    letters = save_classifier(tmp_path / "letters", class_names=tuple("abcdefghij"))
    with pytest.raises(GapError, match="letters does not know '0' and 9 more"):
        load_task([letters], DataOptions())


def test_load_task_named_data_in_another_order_is_matched_by_name(tmp_path: Path) -> None:
    reverse = save_classifier(tmp_path / "digits", class_names=tuple("9876543210"))
    with pytest.warns(GapWarning, match=r"mnist-5k are matched to .* by name: 0 is class 9, "):
        data = load_task([reverse], DataOptions()).data
    assert data.test.labels is not None and data.test.labels[:10].tolist() == list(range(9, -1, -1))


def test_load_task_classifier_without_class_names_warns_with_the_order_of_folders(tmp_path: Path) -> None:
    unnamed = save_classifier(tmp_path / "net", classes=2)
    with pytest.warns(GapWarning, match="net does not know the names .*: cat is class 0, dog is class 1$"):
        load_task([unnamed], class_folders(tmp_path / "data", "dog", "cat"))


def test_load_task_untrained_network_takes_any_classes_without_warning(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "data", "3", "1", "7")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = load_task(["cifar-resnet18-narrow"], data.model_copy(update={"input": "1x28x28"}))
    assert task.classes == 3 and task.data.class_names == ("1", "3", "7")


def test_load_task_ensemble_is_matched_by_the_member_with_class_names(tmp_path: Path) -> None:
    names = [
        save_classifier(tmp_path / "unnamed", classes=2),
        save_classifier(tmp_path / "net", classes=2, class_names=("dog", "cat")),
    ]
    with pytest.warns(GapWarning, match="those of .*net by name: cat is class 1, dog is class 0$"):
        load_task(names, class_folders(tmp_path / "data", "cat", "dog"))


def test_load_task_ensemble_with_another_class_order_raises_gap_error(tmp_path: Path) -> None:
    first = save_classifier(tmp_path / "first", classes=3, class_names=("cat", "dog", "owl"))
    same = save_classifier(tmp_path / "same", classes=3, class_names=("Cat", "Dog", "Owl"))
    other = save_classifier(tmp_path / "other", classes=3, class_names=("cat", "owl", "dog"))
    data = class_folders(tmp_path / "data", "cat", "dog", "owl")
    load_task([first, same], data)
    with pytest.raises(GapError, match=r"first and .*other differ in the order .*: class 1 is 'dog' .* and 'owl' for"):
        load_task([first, same, other], data.model_copy(update={"labels": "predicted"}))


def test_load_classifier_untrained_network_of_1000_classes_has_no_class_names() -> None:
    """Catches: the names of ImageNet for a network that was not trained on it."""
    assert load_classifier("timm:test_byobnet@none", classes=1000).spec.class_names is None


def test_name_classes_existing_names_are_kept(tmp_path: Path) -> None:
    data = load_task(["mnist-cnn"], DataOptions()).data
    unnamed = load_classifier("mnist-cnn")
    named = load_classifier(save_classifier(tmp_path / "a", class_names=tuple("abcdefghij")))
    for classifier in (unnamed, named):
        name_classes(classifier, data)
    assert unnamed.spec.class_names == tuple("0123456789") and named.spec.class_names == tuple("abcdefghij")


def test_warn_if_at_chance_below_the_recorded_accuracy_names_both_accuracies(
    tmp_path: Path, chance_warnings: ChanceWarnings
) -> None:
    (line,) = chance_warnings(load_classifier(save_small_classifier(tmp_path / "net", **with_test_accuracy(0.98))), 0.6)
    assert "has an accuracy of 60.0% on the new data and had 98.0% on the test images of the old data" in line
    assert "the order of the classes" in line and "`mean`, `std`" in line


def test_warn_if_at_chance_chance_level_and_recorded_accuracy_give_one_warning(
    tmp_path: Path, chance_warnings: ChanceWarnings
) -> None:
    (line,) = chance_warnings(load_classifier(save_small_classifier(tmp_path / "net", **with_test_accuracy(0.98))), 0.1)
    assert "10.0% on the new data, no better than chance, and had 98.0%" in line


@pytest.mark.parametrize(
    ("recorded", "recorded_images", "accuracy", "images", "warned"),
    [
        (0.70, 1000, 0.61, 1000, False),
        (0.70, 1000, 0.59, 1000, True),
        (0.70, 1000, 0.55, 40, False),
        (0.70, 40, 0.58, 1000, False),
        (0.70, 1000, 0.90, 1000, False),
    ],
)
def test_warn_if_at_chance_within_ten_points_or_sampling_noise_gives_no_warning(
    tmp_path: Path,
    chance_warnings: ChanceWarnings,
    recorded: float,
    recorded_images: int,
    accuracy: float,
    images: int,
    warned: bool,
) -> None:
    classifier = load_classifier(
        save_small_classifier(tmp_path / "net", **with_test_accuracy(recorded, recorded_images))
    )
    assert bool(chance_warnings(classifier, accuracy, images)) == warned


@pytest.mark.parametrize("card", [{}, {"metrics": {"test": {}}}, {"metrics": None, "data": {"name": "x"}}])
def test_warn_if_at_chance_without_recorded_accuracy_gives_no_warning(
    tmp_path: Path, chance_warnings: ChanceWarnings, card: dict[str, Any]
) -> None:
    assert not chance_warnings(load_classifier(save_small_classifier(tmp_path / "net", **card)), 0.6)


def test_warn_if_at_chance_many_images_uses_a_sample_of_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a pass over a large test set before an attack on few images, or a sample of the first class alone."""
    monkeypatch.setattr("gap.classifiers.task.TRIAL_IMAGES", 200)
    labels = torch.arange(1000) // 100
    split = InMemorySplit((labels * 20).to(torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4).contiguous(), labels)
    levels: list[Tensor] = []

    class Level(nn.Module):
        """The class is the gray level, so that the accuracy is 1."""

        def forward(self, images: Tensor) -> Tensor:
            levels.append((images[:, 0, 0, 0] * 255 / 20).round().long())
            return nn.functional.one_hot(levels[-1], 10).float()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_at_chance(Classifier(Level(), ClassifierSpec(1, (4, 4), 10)), split, "cpu", "levels")
    assert len(torch.cat(levels)) == 200 and len(torch.cat(levels).unique()) == 10


def test_warn_if_at_chance_card_of_other_weights_is_ignored(tmp_path: Path, chance_warnings: ChanceWarnings) -> None:
    name = save_small_classifier(tmp_path / "net", **with_test_accuracy(0.98))
    card = yaml.safe_load((tmp_path / "net" / "card.yaml").read_text())
    card["classifier"]["fingerprint"] = "0" * 16
    (tmp_path / "net" / "card.yaml").write_text(yaml.safe_dump(card))
    assert not chance_warnings(load_classifier(name), 0.6)


def test_warn_if_at_chance_card_is_used_with_another_normalizer(
    tmp_path: Path, chance_warnings: ChanceWarnings
) -> None:
    weights = f"mnist-cnn@{save_small_classifier(tmp_path / 'net', **with_test_accuracy(0.98))}/model.safetensors"
    (line,) = chance_warnings(load_classifier(weights, mean=[0.3], std=[0.2]), 0.6)
    assert "had 98.0%" in line
