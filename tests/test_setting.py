from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from gap.artefact import save_artefact
from gap.classifier import load_classifier
from gap.data.splits import MemorySplit
from gap.errors import GapError, GapWarning
from gap.setting import DataOptions, is_chance, load_setting


def saved(folder: Path, size: tuple[int, int] = (28, 28), classes: int = 10) -> str:
    """A folder with a classifier of grey images of exactly this size."""
    made = load_classifier("cifar-resnet18-narrow", channels=1, size=size, classes=classes)
    save_artefact(folder, "classifier", made.network.state_dict(), {"classifier": made.describe()})
    return str(folder)


def labelled(root: Path, *labels: object) -> DataOptions:
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
    split = MemorySplit(torch.zeros(1000, 1, 2, 2, dtype=torch.uint8), labels)
    assert is_chance(share, 10, split) == expected


def test_without_images_nothing_is_better_than_chance() -> None:
    empty = MemorySplit(torch.zeros(0, 1, 2, 2, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    assert is_chance(0.0, 10, empty)


def test_integers_are_indices_of_a_classifier_with_more_classes(tmp_path: Path) -> None:
    setting = load_setting([saved(tmp_path / "ten")], labelled(tmp_path / "data", 0, 7, 3))
    assert setting.data.classes == setting.classes == 10
    assert setting.data.test.labels is not None and sorted(setting.data.test.labels.tolist()) == [0, 3, 7]


def test_an_index_that_the_classifier_does_not_have(tmp_path: Path) -> None:
    data = labelled(tmp_path / "data", 0, 10)
    with pytest.raises(GapError, match=r"has the label 10, but .*ten knows the classes 0 to 9"):
        load_setting([saved(tmp_path / "ten")], data)
    predicted = load_setting([saved(tmp_path / "ten")], data.model_copy(update={"labels": "predicted"}))
    assert predicted.data.classes == 10


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1@none", "timm:test_byobnet@none"])
def test_a_fresh_network_of_a_library_has_the_classes_of_the_data(name: str, tmp_path: Path) -> None:
    setting = load_setting([name], labelled(tmp_path / "data", "cat", "dog", "owl"))
    (classifier,) = setting.classifiers
    assert classifier.facts.classes == classifier(torch.rand(2, 3, 64, 64)).shape[1] == 3
    save_artefact(
        tmp_path / "made", "classifier", classifier.network.state_dict(), {"classifier": classifier.describe()}
    )
    assert load_classifier(tmp_path / "made").fingerprint() == classifier.fingerprint()


def test_names_of_fewer_classes_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(GapError, match=r"knows 10 classes, but .* has 2"):
        load_setting([saved(tmp_path / "ten")], labelled(tmp_path / "data", "cat", "dog"))


def test_an_ensemble_of_several_sizes_gets_the_images_of_the_first(tmp_path: Path) -> None:
    names = [saved(tmp_path / "first"), saved(tmp_path / "second", size=(16, 20))]
    with pytest.warns(GapWarning, match="second gets the images of 28x28 resized to 16x20"):
        setting = load_setting(names, DataOptions())
    ((images, _),) = setting.data.test.batches([torch.arange(3)])
    assert images.shape == (3, 1, 28, 28)
    images.requires_grad_()
    for classifier in setting.classifiers:
        (gradient,) = torch.autograd.grad(classifier(images).logsumexp(dim=1).sum(), images)
        assert gradient.abs().sum() > 0


def test_later_classifiers_that_take_any_size_take_that_of_the_first(tmp_path: Path) -> None:
    with pytest.warns(GapWarning, match="mnist-5k is given to .*first as 1x16x20"):
        setting = load_setting([saved(tmp_path / "first", size=(16, 20)), "cifar-resnet18-narrow"], DataOptions())
    assert [classifier.facts.size for classifier in setting.classifiers] == [(16, 20), (16, 20)]


def test_classifiers_of_other_classes_are_attacked_apart(tmp_path: Path) -> None:
    with pytest.raises(GapError, match="differ in channels or classes"):
        load_setting([saved(tmp_path / "ten"), saved(tmp_path / "four", classes=4)], DataOptions())


def test_a_normaliser_goes_to_those_that_have_none(tmp_path: Path) -> None:
    """Images as the user's network has learned to take them, beside a network that normalises itself."""
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    own, mine = saved(tmp_path / "ten"), f"{tmp_path / 'mine.py'}:net"
    asked = DataOptions(mean=[0.25], std=[0.5])
    for names in ([own, mine], [mine, own]):
        facts = {each.name: each.facts for each in load_setting(names, asked).classifiers}
        assert (facts[mine].mean, facts[mine].std) == ((0.25,), (0.5,))
        assert facts[own] == load_classifier(own).facts
    made = load_classifier(mine, channels=1, size=(28, 28))
    save_artefact(tmp_path / "made", "classifier", made.network.state_dict(), {"classifier": made.describe()})
    settled, other = load_setting([f"{mine}@{tmp_path / 'made'}", mine], asked).classifiers
    assert settled.facts.mean is None and other.facts.mean == (0.25,)
    with pytest.raises(GapError, match="ten and mnist-cnn have their own normalisers, or none;"):
        load_setting([own, "mnist-cnn"], asked)
