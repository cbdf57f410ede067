"""R of a layer, where it is known, and on networks that differ."""

import pytest
import torch
from torch import nn

from gap.classifiers.classifier import Classifier, ClassifierSpec
from gap.core.errors import GapError
from gap.evaluation.layer_robustness import layer_robustness
from gap.threat import Budget


def linear(scale: float) -> Classifier:
    """Its layer `0` is the picture, scaled."""
    first = nn.Conv2d(1, 1, 1)
    nn.init.constant_(first.weight, scale)
    nn.init.zeros_(first.bias)
    network = nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.Linear(36, 3))
    return Classifier(network, ClassifierSpec(1, (6, 6), 3), name="net", architecture="net")


@pytest.fixture
def images() -> torch.Tensor:
    """Far enough from black and white that nothing is cut off."""
    return 0.4 + 0.2 * torch.rand(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("budget", "length"), [(Budget("l2", 0.3), 0.3), (Budget("linf", 0.05), 0.05 * 6)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_the_picture_itself_moves_by_the_budget(
    images: torch.Tensor, budget: Budget, length: float, scale: float
) -> None:
    (found,) = layer_robustness(linear(scale), ["0"], images, budget, batch_size=5)
    apart = (images - images.roll(1, dims=0)).flatten(1).norm(dim=1).mean().item()
    assert found.value == pytest.approx(length / apart, rel=0.01)
    assert found.low < found.value < found.high < found.low * 1.3


def test_a_layer_that_saturates_is_moved_less(images: torch.Tensor) -> None:
    network = linear(1.0)
    network.network[0].bias.data.fill_(-0.5)
    network.network[0].weight.data.fill_(1.0)
    network.network[1] = nn.Hardtanh(-0.02, 0.02)
    first, second = layer_robustness(network, ["0", "1"], images, Budget("l2", 2.0))
    assert second.value < 0.5 * first.value


def test_the_classifier_and_the_random_numbers_are_left_as_they_were(images: torch.Tensor) -> None:
    classifier = linear(1.0).train()
    torch.manual_seed(5)
    layer_robustness(classifier, ["0"], images, Budget("l2", 0.3), steps=2)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert classifier.training and all(weight.requires_grad for weight in classifier.parameters())


def test_one_picture_is_too_few(images: torch.Tensor) -> None:
    with pytest.raises(GapError, match="two or more"):
        layer_robustness(linear(1.0), ["0"], images[:1], Budget("l2", 0.3))


def test_the_same_pictures_cannot_be_compared(images: torch.Tensor) -> None:
    with pytest.raises(GapError, match="the same for every picture"):
        layer_robustness(linear(1.0), ["0"], images[:1].repeat(3, 1, 1, 1), Budget("l2", 0.3))
