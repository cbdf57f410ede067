"""The robustness of a layer, where it is known exactly, and on networks that differ."""

import pytest
import torch
from torch import nn

from gap.classifiers.classifier import Classifier, ClassifierSpec
from gap.core.errors import GapError
from gap.evaluation.layer_robustness import layer_robustness
from gap.threat import Budget


def linear(scale: float) -> Classifier:
    """Its layer `0` is the image, scaled."""
    first = nn.Conv2d(1, 1, 1)
    nn.init.constant_(first.weight, scale)
    nn.init.zeros_(first.bias)
    network = nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.Linear(36, 3))
    return Classifier(network, ClassifierSpec(1, (6, 6), 3), name="net", architecture="net")


@pytest.fixture
def images() -> torch.Tensor:
    """Far enough from black and white that nothing is clipped."""
    return 0.4 + 0.2 * torch.rand(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("budget", "length"), [(Budget("l2", 0.3), 0.3), (Budget("linf", 0.05), 0.05 * 6)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_layer_robustness_linear_layer_moves_by_the_budget(
    images: torch.Tensor, budget: Budget, length: float, scale: float
) -> None:
    (result,) = layer_robustness(linear(scale), ["0"], images, budget, batch_size=5)
    distance = (images - images.roll(1, dims=0)).flatten(1).norm(dim=1).mean().item()
    assert result.value == pytest.approx(length / distance, rel=0.01)
    assert result.low < result.value < result.high < result.low * 1.3


def test_layer_robustness_saturated_layer_moves_less(images: torch.Tensor) -> None:
    network = linear(1.0)
    network.network[0].bias.data.fill_(-0.5)
    network.network[0].weight.data.fill_(1.0)
    network.network[1] = nn.Hardtanh(-0.02, 0.02)
    first, second = layer_robustness(network, ["0", "1"], images, Budget("l2", 2.0))
    assert second.value < 0.5 * first.value


def test_layer_robustness_restores_the_classifier_and_the_random_state(images: torch.Tensor) -> None:
    classifier = linear(1.0).train()
    torch.manual_seed(5)
    layer_robustness(classifier, ["0"], images, Budget("l2", 0.3), steps=2)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert classifier.training and all(weight.requires_grad for weight in classifier.parameters())


def test_layer_robustness_one_image_raises(images: torch.Tensor) -> None:
    with pytest.raises(GapError, match="two or more"):
        layer_robustness(linear(1.0), ["0"], images[:1], Budget("l2", 0.3))


def test_layer_robustness_equal_images_raise(images: torch.Tensor) -> None:
    with pytest.raises(GapError, match="the same for every picture"):
        layer_robustness(linear(1.0), ["0"], images[:1].repeat(3, 1, 1, 1), Budget("l2", 0.3))
