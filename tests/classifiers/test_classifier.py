"""load_classifier and Classifier: names, factories, weights, normalizers, cards."""

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
INPUT_SHAPE = {"channels": 3, "size": (2, 2)}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_load_classifier_builtin_name_gives_its_spec() -> None:
    classifier = load_classifier("mnist-cnn")
    assert classifier.spec == ClassifierSpec(1, (28, 28), 10, (0.0,), (1.0,))
    assert (classifier.name, classifier.architecture, classifier.training) == ("mnist-cnn", "mnist-cnn", False)
    assert load_classifier("cifar-resnet18-narrow", channels=1, size=(9, 8), classes=4).spec.classes == 4


def test_load_classifier_torchvision_without_weights_gives_its_spec() -> None:
    classifier = load_classifier("torchvision:resnet18@none", size=(32, 32))
    assert classifier.spec.size == (32, 32)
    assert classifier.spec.classes == 1000
    assert isinstance(classifier.network, torchvision.models.ResNet)
    assert classifier.spec.mean == (0.485, 0.456, 0.406)


def test_load_classifier_timm_without_weights_gives_its_spec() -> None:
    classifier = load_classifier("timm:resnet18@none")
    assert (classifier.spec.channels, classifier.spec.size, classifier.spec.classes) == (3, (224, 224), 1000)
    assert classifier.spec.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("factory", ["net", "Net", "ready"])
def test_load_classifier_factory_in_a_file_is_used(source: Path, factory: str) -> None:
    classifier = load_classifier(f"{source}:{factory}", **INPUT_SHAPE)
    assert classifier.spec == ClassifierSpec(3, (2, 2), 3)
    assert classifier(torch.rand(5, 3, 2, 2)).shape == (5, 3)


def test_load_classifier_factory_in_a_package_of_the_current_folder_is_used(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = source.parent / "gap_test_nets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "net.py").write_text(SOURCE)
    monkeypatch.chdir(source.parent)
    before = list(sys.path)
    assert load_classifier("gap_test_nets.net:Net", **INPUT_SHAPE).spec.classes == 3
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
def test_load_classifier_unknown_name_raises_a_one_line_error(name: str, message: str) -> None:
    with pytest.raises(GapError, match=message) as error:
        load_classifier(name, **INPUT_SHAPE)
    assert "\n" not in str(error.value)


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
def test_load_classifier_factory_of_no_classifier_raises_gap_error(source: Path, factory: str, message: str) -> None:
    with pytest.raises(GapError, match=message):
        load_classifier(f"{source}:{factory}", **INPUT_SHAPE)


def test_load_classifier_missing_or_wrong_input_shape_raises_gap_error(source: Path) -> None:
    with pytest.raises(GapError, match="add `input` CxHxW"):
        load_classifier(f"{source}:net")
    with pytest.raises(GapError, match="fails on 2 images of 3x5x5"):
        load_classifier(f"{source}:net", channels=3, size=(5, 5))
    with pytest.raises(GapError, match="returns 3 classes where 4 were expected"):
        load_classifier(f"{source}:net", classes=4, **INPUT_SHAPE)


def test_load_classifier_network_with_softmax_warns(source: Path) -> None:
    with pytest.warns(GapWarning, match="seems to return probabilities"):
        load_classifier(f"{source}:softmax", **INPUT_SHAPE)


def test_classifier_with_mean_and_std_normalizes_its_images() -> None:
    spec = ClassifierSpec(3, (2, 2), 12, (0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
    classifier = Classifier(nn.Flatten(), spec, name="flat", architecture="flat")
    images = torch.rand(4, 3, 2, 2)
    expected = torch.stack([(images[:, 0] - 0.1) / 0.5, images[:, 1] - 0.2, (images[:, 2] - 0.3) / 2], dim=1)
    assert torch.allclose(classifier(images), expected.flatten(1))
    assert not classifier.state_dict()


def test_load_classifier_mean_and_std_options_normalize_the_images(source: Path) -> None:
    name = f"{source}:ready"
    plain = load_classifier(name, **INPUT_SHAPE)
    normalized = load_classifier(name, **INPUT_SHAPE, mean=[0.5], std=[0.25, 0.5, 1.0])
    normalized.network.load_state_dict(plain.network.state_dict())
    images = torch.rand(4, 3, 2, 2)
    scaled = (images - 0.5) / torch.tensor([0.25, 0.5, 1.0]).view(1, 3, 1, 1)
    assert torch.allclose(normalized(images), plain(scaled), atol=1e-6)
    assert normalized.spec.std == (0.25, 0.5, 1.0)


def test_load_classifier_second_normalizer_raises_unless_lenient() -> None:
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
def test_load_classifier_invalid_normalizer_raises_gap_error(
    source: Path, mean: list[float], std: list[float] | None, message: str
) -> None:
    with pytest.raises(GapError, match=message):
        load_classifier(f"{source}:net", **INPUT_SHAPE, mean=mean, std=std)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_load_classifier_weights_file_is_loaded_and_a_wrong_one_raises(tmp_path: Path, suffix: str) -> None:
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
def test_load_classifier_weights_of_another_architecture_raises_gap_error(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    state = dict(load_classifier("mnist-cnn").network.state_dict())
    change(state)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(GapError, match=message):
        load_classifier(f"mnist-cnn@{tmp_path / 'weights.pt'}")


class _PickledCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.path,)


def test_load_classifier_pickle_with_code_raises_and_does_not_run_it(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(pickle.dumps({"weight": _PickledCode(tmp_path / "trap")}, protocol=2))
    with pytest.raises(GapError, match="opening it could run anything"):
        load_classifier(f"mnist-cnn@{tmp_path / 'weights.pt'}")
    assert not (tmp_path / "trap").exists()


def test_fingerprint_changes_with_the_weights_and_not_with_the_memory_format() -> None:
    classifier = load_classifier("cifar-resnet18-narrow")
    same = load_classifier("cifar-resnet18-narrow")
    same.network.load_state_dict(classifier.network.state_dict())
    before = classifier.fingerprint()
    assert same.to(memory_format=torch.channels_last).fingerprint() == before
    with torch.no_grad():
        next(same.network.buffers())[0] += 1e-3
    assert same.fingerprint() != before == classifier.fingerprint()


def test_load_classifier_saved_artifact_gives_the_same_classifier(tmp_path: Path) -> None:
    original = load_classifier("cifar-resnet18-narrow", size=(16, 16), classes=7)
    save_artifact(tmp_path, "classifier", original.network.state_dict(), {"classifier": original.describe()})
    loaded = load_classifier(tmp_path)
    assert loaded.spec == original.spec
    assert loaded.fingerprint() == original.fingerprint()
    assert loaded.architecture == "cifar-resnet18-narrow"
    assert loaded.name == str(tmp_path)


def test_classifier_label_without_class_name_is_the_index() -> None:
    spec = ClassifierSpec(1, (1, 1), 3, class_names=("cat", "dog"))
    classifier = Classifier(nn.Flatten(), spec, name="x", architecture="x")
    assert [classifier.label(index) for index in range(3)] == ["cat", "dog", "2"]


@pytest.mark.parametrize(
    ("channels", "classes", "message"),
    [(3, 10, "takes 1-channel images, but pictures has 3"), (1, 7, "knows 10 classes, but pictures has 7")],
)
def test_check_compatible_other_channels_or_classes_raises_gap_error(channels: int, classes: int, message: str) -> None:
    with pytest.raises(GapError, match=message):
        check_compatible(load_classifier("mnist-cnn"), channels=channels, classes=classes, data="pictures")


def test_check_compatible_label_index_above_the_classes_raises_gap_error() -> None:
    classifier = load_classifier("mnist-cnn")
    for classes in (1, 7, 10):
        check_compatible(classifier, channels=1, classes=classes, data="pictures", labels_index_model=True)
    with pytest.raises(GapError, match="pictures has the label 10, but mnist-cnn knows the classes 0 to 9"):
        check_compatible(classifier, channels=1, classes=11, data="pictures", labels_index_model=True)


def test_classifier_images_of_another_size_are_resized_with_gradients() -> None:
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
def test_load_classifier_damaged_card_raises_a_one_line_error_with_the_key(
    tmp_path: Path, change: dict[str, object], key: str
) -> None:
    original = load_classifier("mnist-cnn")
    card = change if "classifier" in change else {"classifier": original.describe() | change}
    save_artifact(tmp_path, "classifier", {}, card)
    with pytest.raises(GapError, match=f"^{tmp_path / 'card.yaml'} is damaged at {key}: .*") as error:
        load_classifier(tmp_path)
    assert "\n" not in str(error.value)


def test_load_classifier_card_without_classifier_raises_gap_error(tmp_path: Path) -> None:
    save_artifact(tmp_path, "classifier", {}, {})
    with pytest.raises(GapError, match="is damaged at classifier: field required"):
        load_classifier(tmp_path)


@pytest.mark.parametrize("suffix", ["", "/model.safetensors"])
def test_load_classifier_code_with_folder_takes_weights_and_spec_of_the_folder(
    source: Path, tmp_path: Path, suffix: str
) -> None:
    original = load_classifier(f"{source}:net", **INPUT_SHAPE, mean=[0.5], std=[0.25])
    (tmp_path / "made").mkdir()
    save_artifact(tmp_path / "made", "classifier", original.network.state_dict(), {"classifier": original.describe()})
    loaded = load_classifier(f"{source}:net@{tmp_path / 'made'}{suffix}")
    assert loaded.fingerprint() == original.fingerprint() and loaded.spec == original.spec
    assert artifact_dir_of(loaded) == tmp_path / "made"
    images = torch.rand(2, 3, 2, 2)
    assert torch.equal(loaded(images), original(images))


def test_artifact_dir_of_finds_only_the_folder_of_the_same_classifier(tmp_path: Path) -> None:
    """Catches: the card of folder `b` taken for that of `run@b`, or a card used with another normalizer."""
    original, other = load_classifier("mnist-cnn"), load_classifier("mnist-cnn")
    for name, classifier in (("run@b", original), ("b", other)):
        (tmp_path / name).mkdir()
        save_artifact(
            tmp_path / name, "classifier", classifier.network.state_dict(), {"classifier": classifier.describe()}
        )
    weights = f"mnist-cnn@{tmp_path / 'b' / 'model.safetensors'}"
    assert artifact_dir_of(load_classifier(tmp_path / "run@b")) == tmp_path / "run@b"
    assert artifact_dir_of(load_classifier(weights)) == tmp_path / "b"
    assert artifact_dir_of(load_classifier(weights, mean=[0.5], std=[0.5])) is None
    assert artifact_dir_of(original) is None


def test_load_classifier_code_named_only_by_a_card_is_not_run(tmp_path: Path) -> None:
    code_file = tmp_path / "trap.py"
    code_file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    spec = {"channels": 1, "size": [8, 8], "classes": 2, "mean": None, "std": None, "class_names": None}
    card = {
        "kind": "classifier",
        "classifier": {"name": "mine", "fingerprint": "0", "architecture": f"{code_file}:Net", **spec},
    }
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "card.yaml").write_text(yaml.safe_dump(card))
    with pytest.raises(GapError, match=r"only a card names is not run; write .*trap\.py:Net@.*made$"):
        load_classifier(tmp_path / "made")
    assert not (tmp_path / "ran").exists()
