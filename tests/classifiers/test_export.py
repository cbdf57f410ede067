"""Exported classifiers say what the network says, at any number of images, and load where they are meant to."""

from pathlib import Path

import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

from gap.classifiers.classifier import Classifier, ClassifierSpec, load_classifier
from gap.classifiers.export import export
from gap.core.errors import GapError


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """With norms that have seen something, and a normalizer."""
    torch.manual_seed(0)
    made = load_classifier("cifar-resnet18-narrow", size=(16, 16), classes=5)
    made.train()(torch.rand(16, 3, 16, 16))
    return made.eval()


@torch.no_grad()
def test_onnx(classifier: Classifier, tmp_path: Path) -> None:
    export(classifier, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    for count in (1, 7):
        images = torch.rand(count, 3, 16, 16)
        (logits,) = session.run(None, {"images": images.numpy()})
        assert torch.allclose(torch.from_numpy(logits), classifier(images), atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@torch.no_grad()
def test_torchscript(classifier: Classifier, tmp_path: Path) -> None:
    export(classifier, tmp_path / "net.ts")
    loaded = torch.jit.load(str(tmp_path / "net.ts"))
    for count in (1, 7):
        images = torch.rand(count, 3, 16, 16)
        assert torch.allclose(loaded(images), classifier(images), atol=1e-4)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_state_dict_is_that_of_the_network(classifier: Classifier, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    assert "normalized by mean" in export(classifier, path)
    state = safetensors.torch.load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    again = load_classifier("cifar-resnet18-narrow", size=(16, 16), classes=5)
    again.network.load_state_dict(state)
    assert again.fingerprint() == classifier.fingerprint()


@torch.no_grad()
def test_the_libraries_load_the_state_dict_of_theirs(tmp_path: Path) -> None:
    for library, name, theirs in (
        ("tv", "torchvision:squeezenet1_1@none", torchvision.models.squeezenet1_1(num_classes=5)),
        ("timm", "timm:test_byobnet@none", timm.create_model("test_byobnet", num_classes=5)),
    ):
        ours = load_classifier(name, classes=5)
        export(ours, tmp_path / f"{library}.pt")
        theirs.load_state_dict(torch.load(tmp_path / f"{library}.pt", weights_only=True))
        images = torch.rand(2, 3, *ours.spec.size)
        assert torch.allclose(theirs.eval()(ours.normalize(images)), ours(images), atol=1e-5)


class Chance(nn.Module):
    """What it says of an image depends on how many there are: no tracing can follow it."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :3] * (1.0 if len(images) == 2 else -1.0)


@pytest.mark.parametrize("suffix", [".ts", ".onnx"])
def test_an_export_that_says_something_else_is_not_kept(suffix: str, tmp_path: Path) -> None:
    odd = Classifier(Chance(), ClassifierSpec(1, (4, 4), 3), name="odd", architecture="odd")
    with pytest.raises(GapError, match=r"other logits than the network itself|fails on 5 images"):
        export(odd, tmp_path / f"net{suffix}")
    assert not list(tmp_path.iterdir())


def test_a_file_without_a_format(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(GapError, match=r"net.bin says no format; end it in .onnx, .ts, .safetensors, .pt"):
        export(classifier, tmp_path / "net.bin")
