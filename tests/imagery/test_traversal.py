"""Traversals raise the logit, stay within their budget, and restore the classifier."""

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
def test_traverse_images_ends_at_the_class_within_the_budget(pictures, budget: Budget | None) -> None:
    target, images = classifier(copy.deepcopy(pictures.net)).train(), pictures.images[:8]
    classes = (pictures.labels[:8] + 1) % 4
    before = copy.deepcopy(target.state_dict())
    traversal = traverse_images(target, images, classes, budget=budget, steps=20)
    assert traversal.images.shape == (21, 8, 1, 12, 12) and traversal.probabilities.shape == (21, 8, 4)
    assert torch.equal(traversal.images[0], images)
    assert traversal.images.min() >= 0 and traversal.images.max() <= 1
    ball = budget or default_budget(images)
    for images_at_step in traversal.images:
        assert ball.norm_of(images_at_step - images).max() <= ball.epsilon * (1 + 1e-5)
    assert (traversal.probabilities[-1].argmax(dim=1) == classes).all()
    probabilities = traversal.probabilities[:, torch.arange(8), classes]
    assert (probabilities[-1] > probabilities[0] + 0.2).all()
    assert torch.allclose(traversal.probabilities.sum(dim=2), torch.ones(21, 8))
    assert target.training and all(weight.grad is None for weight in target.parameters())
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_traverse_images_reports_progress_and_checks_memory_first(pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    target, images, reports = classifier(pictures.net), pictures.images[:3], []
    classes = torch.tensor([0, 1, 2])
    traverse_images(target, images, classes, steps=4, tell=reports.append)
    assert [progress.activations.images.shape for progress in reports] == [images.shape] * 5
    monkeypatch.setattr("gap.imagery.memory.available", lambda device: 1e3)
    with pytest.raises(GapError, match="3 drawings of 12 x 12 pixels"):
        traverse_images(target, images, classes, steps=4, tell=reports.append)
    assert len(reports) == 5


def test_normalized_gradient_descent_steps_have_one_length_and_are_reported(pictures) -> None:
    reports: list[OptimizationProgress] = []
    init, target = torch.full((2, 1, 12, 12), 0.5), torch.full((2, 1, 12, 12), 0.6)
    canvas = PixelCanvas(init)
    normalized_gradient_descent(
        canvas, PixelDistance(target), lambda images: {}, steps=4, size=0.2, tell=reports.append
    )
    assert [progress.step for progress in reports] == [0, 1, 2, 3, 4]
    lengths = [
        (b.activations.images - a.activations.images).flatten(1).norm(dim=1) for a, b in itertools.pairwise(reports)
    ]
    assert torch.allclose(torch.stack(lengths), torch.tensor(0.2), atol=1e-5)
    values = torch.stack([progress.values for progress in reports])
    assert (values[1:] < values[:-1]).all()
    assert torch.equal(canvas.init, init)


def test_traverse_images_classifier_without_gradient_raises() -> None:
    class Rounding(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :4].round().detach()

    with pytest.raises(GapError, match="no gradient"):
        traverse_images(classifier(Rounding()), torch.rand(1, 1, 12, 12), torch.tensor([1]), steps=2)
