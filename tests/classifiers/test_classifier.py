import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
import yaml
from torch import nn

from gap.classifiers.classifier import Classifier, ClassifierSpec, artifact_dir_of, check_compatible, load_classifier
from gap.core.artifact import save_artifact
from gap.core.errors import GapError, GapWarning

SOURCE = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(12, 3))

ready = net()

def softmax():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Softmax(dim=1))

class Words(Net):
    def forward(self, images):
        return "logits"

class Pair(Net):
    def forward(self, images):
        return super().forward(images), images

class Nan(Net):
    def forward(self, images):
        return super().forward(images) * float("nan")

class Wrong(Net):
    def forward(self, images):
        return images

def number():
    return 3
"""
LIKE = {"channels": 3, "size": (2, 2)}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_ours_by_name() -> None:
    classifier = load_classifier("mnist-cnn")
    assert classifier.spec == ClassifierSpec(1, (28, 28), 10, (0.0,), (1.0,))
    assert (classifier.name, classifier.architecture, classifier.training) == ("mnist-cnn", "mnist-cnn", False)
    assert load_classifier("cifar-resnet18-narrow", channels=1, size=(9, 8), classes=4).spec.classes == 4


def test_torchvision_without_weights() -> None:
    classifier = load_classifier("torchvision:resnet18@none", size=(32, 32))
    assert classifier.spec.size == (32, 32)
    assert classifier.spec.classes == 1000
    assert isinstance(classifier.network, torchvision.models.ResNet)
    assert classifier.spec.mean == (0.485, 0.456, 0.406)


def test_timm_without_weights() -> None:
    classifier = load_classifier("timm:resnet18@none")
    assert (classifier.spec.channels, classifier.spec.size, classifier.spec.classes) == (3, (224, 224), 1000)
    assert classifier.spec.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("factory", ["net", "Net", "ready"])
def test_a_factory_in_a_file(source: Path, factory: str) -> None:
    classifier = load_classifier(f"{source}:{factory}", **LIKE)
    assert classifier.spec == ClassifierSpec(3, (2, 2), 3)
    assert classifier(torch.rand(5, 3, 2, 2)).shape == (5, 3)


def test_a_factory_in_a_package_of_the_current_folder(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = source.parent / "gap_test_nets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "net.py").write_text(SOURCE)
    monkeypatch.chdir(source.parent)
    before = list(sys.path)
    assert load_classifier("gap_test_nets.net:Net", **LIKE).spec.classes == 3
    assert sys.path[: len(before)] == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnist-cn", "unknown classifier 'mnist-cn'; did you mean mnist-cnn"),
        ("torchvision:resnet81@none", "unknown torchvision classifier 'resnet81'; did you mean .*resnet18"),
        ("torchvision:resnet18@IMAGENET1K_V7", "unknown weights .*did you mean IMAGENET1K_V1"),
        ("timm:resnet81s@none", "unknown timm classifier"),
        ("timm:resnet18@a1_in1k", "part of the name"),
        ("mnist-cnn@nowhere.safetensors", "there is no weights file 'nowhere.safetensors' for mnist-cnn"),
        ("nowhere.py:net", "there is no file nowhere.py"),
        ("no_such_module_of_gap:net", "cannot import no_such_module_of_gap"),
        ("./nowhere", "there is no classifier at ./nowhere"),
    ],
)
def test_names_nobody_knows(name: str, message: str) -> None:
    with pytest.raises(GapError, match=message) as refused:
        load_classifier(name, **LIKE)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nett", "unknown factory in .*did you mean .*net"),
        ("number", "gave a int, not a torch.nn.Module"),
        ("Words", "returns a str without logits"),
        ("Nan", "returns NaN"),
        ("Wrong", "returns the shape"),
    ],
)
def test_what_is_no_classifier(source: Path, factory: str, message: str) -> None:
    with pytest.raises(GapError, match=message):
        load_classifier(f"{source}:{factory}", **LIKE)


def test_what_it_takes_must_be_said_and_right(source: Path) -> None:
    with pytest.raises(GapError, match="add `input` CxHxW"):
        load_classifier(f"{source}:net")
    with pytest.raises(GapError, match="fails on 2 images of 3x5x5"):
        load_classifier(f"{source}:net", channels=3, size=(5, 5))
    with pytest.raises(GapError, match="returns 3 classes where 4 were expected"):
        load_classifier(f"{source}:net", classes=4, **LIKE)


def test_a_softmax_is_warned_about(source: Path) -> None:
    with pytest.warns(GapWarning, match="seems to return probabilities"):
        load_classifier(f"{source}:softmax", **LIKE)


def test_the_normalizer_is_inside() -> None:
    spec = ClassifierSpec(3, (2, 2), 12, (0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
    classifier = Classifier(nn.Flatten(), spec, name="flat", architecture="flat")
    images = torch.rand(4, 3, 2, 2)
    expected = torch.stack([(images[:, 0] - 0.1) / 0.5, images[:, 1] - 0.2, (images[:, 2] - 0.3) / 2], dim=1)
    assert torch.allclose(classifier(images), expected.flatten(1))
    assert not classifier.state_dict()


def test_a_normalizer_can_be_given(source: Path) -> None:
    name = f"{source}:ready"
    plain, given = load_classifier(name, **LIKE), load_classifier(name, **LIKE, mean=[0.5], std=[0.25, 0.5, 1.0])
    given.network.load_state_dict(plain.network.state_dict())
    images = torch.rand(4, 3, 2, 2)
    scaled = (images - 0.5) / torch.tensor([0.25, 0.5, 1.0]).view(1, 3, 1, 1)
    assert torch.allclose(given(images), plain(scaled), atol=1e-6)
    assert given.spec.std == (0.25, 0.5, 1.0)


def test_a_second_normalizer_is_refused() -> None:
    own = load_classifier("mnist-cnn").spec
    with pytest.raises(GapError, match="mnist-cnn has its own normalizer"):
        load_classifier("mnist-cnn", mean=[0.9])
    assert load_classifier("mnist-cnn", mean=[0.9], lenient=True).spec == own
    assert load_classifier("mnist-cnn", mean=own.mean, std=own.std).spec == own


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.1, 0.2], None, "`mean` has 2 values for 3"),
        ([0.1], [0.0], "must be positive"),
        ([float("nan")], None, "finite"),
    ],
)
def test_normalizers_that_cannot_be(source: Path, mean: list[float], std: list[float] | None, message: str) -> None:
    with pytest.raises(GapError, match=message):
        load_classifier(f"{source}:net", **LIKE, mean=mean, std=std)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    first, second = load_classifier("mnist-cnn"), load_classifier("mnist-cnn")
    assert first.fingerprint() != second.fingerprint()
    path = tmp_path / f"weights.{suffix}"
    (safetensors.torch.save_file if suffix == "safetensors" else torch.save)(first.network.state_dict(), path)
    loaded = load_classifier(f"mnist-cnn@{path}")
    assert loaded.fingerprint() == first.fingerprint()
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(loaded(images), first(images))
    with pytest.raises(GapError, match=r"another architecture: it lacks conv1.weight \(\d+ in all\)"):
        load_classifier(f"cifar-resnet18-narrow@{path}")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(GapError, match=r"not a whole weights file|more than tensors"):
        load_classifier(f"mnist-cnn@{path}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("7.bias"), r"it lacks 7.bias \(1 in all\)"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda state: state.update({"0.bias": torch.zeros(11)}), "another shape for 0.bias"),
    ],
)
def test_weights_of_another_architecture(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    state = dict(load_classifier("mnist-cnn").network.state_dict())
    change(state)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(GapError, match=message):
        load_classifier(f"mnist-cnn@{tmp_path / 'weights.pt'}")


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.path,)


def test_a_pickle_that_carries_code_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(pickle.dumps({"weight": _Runs(tmp_path / "trap")}, protocol=2))
    with pytest.raises(GapError, match="opening it could run anything"):
        load_classifier(f"mnist-cnn@{tmp_path / 'weights.pt'}")
    assert not (tmp_path / "trap").exists()


def test_the_fingerprint_is_of_the_weights() -> None:
    classifier = load_classifier("cifar-resnet18-narrow")
    same = load_classifier("cifar-resnet18-narrow")
    same.network.load_state_dict(classifier.network.state_dict())
    before = classifier.fingerprint()
    assert same.to(memory_format=torch.channels_last).fingerprint() == before
    with torch.no_grad():
        next(same.network.buffers())[0] += 1e-3
    assert same.fingerprint() != before == classifier.fingerprint()


def test_a_saved_artifact_is_the_same_classifier(tmp_path: Path) -> None:
    made = load_classifier("cifar-resnet18-narrow", size=(16, 16), classes=7)
    save_artifact(tmp_path, "classifier", made.network.state_dict(), {"classifier": made.describe()})
    loaded = load_classifier(tmp_path)
    assert loaded.spec == made.spec
    assert loaded.fingerprint() == made.fingerprint()
    assert loaded.architecture == "cifar-resnet18-narrow"
    assert loaded.name == str(tmp_path)


def test_labels_have_names_where_known() -> None:
    spec = ClassifierSpec(1, (1, 1), 3, class_names=("cat", "dog"))
    classifier = Classifier(nn.Flatten(), spec, name="x", architecture="x")
    assert [classifier.label(index) for index in range(3)] == ["cat", "dog", "2"]


@pytest.mark.parametrize(
    ("channels", "classes", "message"),
    [(3, 10, "takes 1-channel images, but pictures has 3"), (1, 7, "knows 10 classes, but pictures has 7")],
)
def test_data_that_does_not_fit(channels: int, classes: int, message: str) -> None:
    with pytest.raises(GapError, match=message):
        check_compatible(load_classifier("mnist-cnn"), channels=channels, classes=classes, data="pictures")


def test_indices_of_fewer_classes_fit_and_of_more_do_not() -> None:
    classifier = load_classifier("mnist-cnn")
    for classes in (1, 7, 10):
        check_compatible(classifier, channels=1, classes=classes, data="pictures", labels_index_model=True)
    with pytest.raises(GapError, match="pictures has the label 10, but mnist-cnn knows the classes 0 to 9"):
        check_compatible(classifier, channels=1, classes=11, data="pictures", labels_index_model=True)


def test_images_of_another_size_are_resized_with_gradients() -> None:
    spec = ClassifierSpec(1, (2, 2), 4)
    classifier = Classifier(nn.Flatten(), spec, name="flat", architecture="flat")
    images = torch.rand(3, 1, 4, 4, requires_grad=True)
    flat = torch.full((1, 1, 8, 6), 0.25)
    assert torch.allclose(classifier(flat), torch.full((1, 4), 0.25))
    classifier(images).sum().backward()
    assert images.grad is not None and (images.grad > 0).all()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"classifier": None}, "classifier"),
        ({"classifier": ["mnist-cnn"]}, "classifier"),
        ({"architecture": 3}, "classifier.architecture"),
        ({"size": 28}, "classifier.size"),
        ({"size": [28, 0]}, "classifier.size.1"),
        ({"classes": "ten"}, "classifier.classes"),
        ({"mean": "none"}, "classifier.mean"),
        ({"class_names": [["zero"]]}, "classifier.class_names.0"),
    ],
)
def test_a_card_that_is_garbled(tmp_path: Path, change: dict[str, object], key: str) -> None:
    made = load_classifier("mnist-cnn")
    told = change if "classifier" in change else {"classifier": made.describe() | change}
    save_artifact(tmp_path, "classifier", {}, told)
    with pytest.raises(GapError, match=f"^{tmp_path / 'card.yaml'} is damaged at {key}: .*") as refused:
        load_classifier(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_card_that_says_nothing_of_its_classifier(tmp_path: Path) -> None:
    save_artifact(tmp_path, "classifier", {}, {})
    with pytest.raises(GapError, match="is damaged at classifier: field required"):
        load_classifier(tmp_path)


@pytest.mark.parametrize("behind", ["", "/model.safetensors"])
def test_code_that_the_user_names_takes_weights_and_facts_of_a_folder(
    source: Path, tmp_path: Path, behind: str
) -> None:
    made = load_classifier(f"{source}:net", **LIKE, mean=[0.5], std=[0.25])
    (tmp_path / "made").mkdir()
    save_artifact(tmp_path / "made", "classifier", made.network.state_dict(), {"classifier": made.describe()})
    again = load_classifier(f"{source}:net@{tmp_path / 'made'}{behind}")
    assert again.fingerprint() == made.fingerprint() and again.spec == made.spec
    assert artifact_dir_of(again) == tmp_path / "made"
    images = torch.rand(2, 3, 2, 2)
    assert torch.equal(again(images), made(images))


def test_only_the_card_of_that_very_classifier_is_found(tmp_path: Path) -> None:
    made, other = load_classifier("mnist-cnn"), load_classifier("mnist-cnn")
    for name, each in (("run@b", made), ("b", other)):
        (tmp_path / name).mkdir()
        save_artifact(tmp_path / name, "classifier", each.network.state_dict(), {"classifier": each.describe()})
    weights = f"mnist-cnn@{tmp_path / 'b' / 'model.safetensors'}"
    assert artifact_dir_of(load_classifier(tmp_path / "run@b")) == tmp_path / "run@b"
    assert artifact_dir_of(load_classifier(weights)) == tmp_path / "b"
    assert artifact_dir_of(load_classifier(weights, mean=[0.5], std=[0.5])) is None
    assert artifact_dir_of(made) is None


def test_code_that_only_a_card_names_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    spec = {"channels": 1, "size": [8, 8], "classes": 2, "mean": None, "std": None, "class_names": None}
    card = {
        "kind": "classifier",
        "classifier": {"name": "mine", "fingerprint": "0", "architecture": f"{trap}:Net", **spec},
    }
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "card.yaml").write_text(yaml.safe_dump(card))
    with pytest.raises(GapError, match=r"only a card names is not run; write .*trap\.py:Net@.*made$"):
        load_classifier(tmp_path / "made")
    assert not (tmp_path / "ran").exists()
