"""Export of classifiers: equal logits at any batch size, and files that the libraries load."""

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
    """A classifier with a normalizer and updated statistics of batch normalization."""
    torch.manual_seed(0)
    loaded = load_classifier("cifar-resnet18-narrow", size=(16, 16), classes=5)
    loaded.train()(torch.rand(16, 3, 16, 16))
    return loaded.eval()


@torch.no_grad()
def test_export_onnx_gives_the_same_logits_at_any_batch_size(classifier: Classifier, tmp_path: Path) -> None:
    export(classifier, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    for count in (1, 7):
        images = torch.rand(count, 3, 16, 16)
        (logits,) = session.run(None, {"images": images.numpy()})
        assert torch.allclose(torch.from_numpy(logits), classifier(images), atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@torch.no_grad()
def test_export_torchscript_gives_the_same_logits_at_any_batch_size(classifier: Classifier, tmp_path: Path) -> None:
    export(classifier, tmp_path / "net.ts")
    loaded = torch.jit.load(str(tmp_path / "net.ts"))
    for count in (1, 7):
        images = torch.rand(count, 3, 16, 16)
        assert torch.allclose(loaded(images), classifier(images), atol=1e-4)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_export_state_dict_is_that_of_the_network(classifier: Classifier, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    assert "normalized by mean" in export(classifier, path)
    state = safetensors.torch.load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    loaded = load_classifier("cifar-resnet18-narrow", size=(16, 16), classes=5)
    loaded.network.load_state_dict(state)
    assert loaded.fingerprint() == classifier.fingerprint()


@torch.no_grad()
def test_export_state_dict_loads_into_torchvision_and_timm(tmp_path: Path) -> None:
    for library, name, library_network in (
        ("tv", "torchvision:squeezenet1_1@none", torchvision.models.squeezenet1_1(num_classes=5)),
        ("timm", "timm:test_byobnet@none", timm.create_model("test_byobnet", num_classes=5)),
    ):
        exported = load_classifier(name, classes=5)
        export(exported, tmp_path / f"{library}.pt")
        library_network.load_state_dict(torch.load(tmp_path / f"{library}.pt", weights_only=True))
        images = torch.rand(2, 3, *exported.spec.size)
        assert torch.allclose(library_network.eval()(exported.normalize(images)), exported(images), atol=1e-5)


class BatchSizeDependent(nn.Module):
    """A network whose logits depend on the batch size, which tracing cannot record."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :3] * (1.0 if len(images) == 2 else -1.0)


@pytest.mark.parametrize("suffix", [".ts", ".onnx"])
def test_export_different_logits_raises_and_leaves_no_file(suffix: str, tmp_path: Path) -> None:
    network = Classifier(BatchSizeDependent(), ClassifierSpec(1, (4, 4), 3), name="odd", architecture="odd")
    with pytest.raises(GapError, match=r"other logits than the network itself|fails on 5 images"):
        export(network, tmp_path / f"net{suffix}")
    assert not list(tmp_path.iterdir())


def test_export_unknown_suffix_raises_an_error_with_the_formats(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(GapError, match=r"net.bin says no format; end it in .onnx, .ts, .safetensors, .pt"):
        export(classifier, tmp_path / "net.bin")
