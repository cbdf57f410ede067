"""Walks climb the logit, stay within their budget, and leave the classifier as they found it."""

import copy
import itertools

import pytest
import torch
from torch import nn

from gap.classifiers.classifier import Classifier, ClassifierSpec
from gap.core.errors import GapError
from gap.imagery.canvas import PixelCanvas
from gap.imagery.objectives import PixelDistance
from gap.imagery.optimize import OptimizationProgress, default_budget, normalized_gradient_descent
from gap.imagery.traversal import traverse_images
from gap.threat import Budget


def classifier(net: nn.Module) -> Classifier:
    return Classifier(net, ClassifierSpec(1, (12, 12), 4), name="net", architecture="net")


@pytest.mark.parametrize("budget", [Budget("l2", 1.5), Budget("linf", 0.2), None], ids=str)
def test_a_walk_ends_at_its_class_inside_the_budget(pictures, budget: Budget | None) -> None:
    walker, images = classifier(copy.deepcopy(pictures.net)).train(), pictures.images[:8]
    classes = (pictures.labels[:8] + 1) % 4
    before = copy.deepcopy(walker.state_dict())
    walk = traverse_images(walker, images, classes, budget=budget, steps=20)
    assert walk.images.shape == (21, 8, 1, 12, 12) and walk.probabilities.shape == (21, 8, 4)
    assert torch.equal(walk.images[0], images)
    assert walk.images.min() >= 0 and walk.images.max() <= 1
    within = budget or default_budget(images)
    for moment in walk.images:
        assert within.norm_of(moment - images).max() <= within.epsilon * (1 + 1e-5)
    assert (walk.probabilities[-1].argmax(dim=1) == classes).all()
    reached = walk.probabilities[:, torch.arange(8), classes]
    assert (reached[-1] > reached[0] + 0.2).all()
    assert torch.allclose(walk.probabilities.sum(dim=2), torch.ones(21, 8))
    assert walker.training and all(weight.grad is None for weight in walker.parameters())
    assert all(torch.equal(value, before[name]) for name, value in walker.state_dict().items())


def test_a_walk_is_heard_and_its_memory_said_before(pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    walker, images, heard = classifier(pictures.net), pictures.images[:3], []
    classes = torch.tensor([0, 1, 2])
    traverse_images(walker, images, classes, steps=4, tell=heard.append)
    assert [progress.activations.images.shape for progress in heard] == [images.shape] * 5
    monkeypatch.setattr("gap.imagery.memory.available", lambda device: 1e3)
    with pytest.raises(GapError, match="3 drawings of 12 x 12 pixels"):
        traverse_images(walker, images, classes, steps=4, tell=heard.append)
    assert len(heard) == 5


def test_steps_have_one_length_and_are_heard(pictures) -> None:
    heard: list[OptimizationProgress] = []
    init, target = torch.full((2, 1, 12, 12), 0.5), torch.full((2, 1, 12, 12), 0.6)
    canvas = PixelCanvas(init)
    normalized_gradient_descent(canvas, PixelDistance(target), lambda images: {}, steps=4, size=0.2, tell=heard.append)
    assert [progress.step for progress in heard] == [0, 1, 2, 3, 4]
    lengths = [
        (b.activations.images - a.activations.images).flatten(1).norm(dim=1) for a, b in itertools.pairwise(heard)
    ]
    assert torch.allclose(torch.stack(lengths), torch.tensor(0.2), atol=1e-5)
    values = torch.stack([progress.values for progress in heard])
    assert (values[1:] < values[:-1]).all()
    assert torch.equal(canvas.init, init)


def test_a_classifier_without_a_gradient_is_said_to_be_one() -> None:
    class Steps(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :4].round().detach()

    with pytest.raises(GapError, match="no gradient"):
        traverse_images(classifier(Steps()), torch.rand(1, 1, 12, 12), torch.tensor([1]), steps=2)
