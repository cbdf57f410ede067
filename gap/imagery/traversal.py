"""Class traversal: pictures that walk towards a class, as a classifier sees it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gap.classifiers.classifier import Classifier
from gap.imagery.backbone import MultiFeatureExtractor
from gap.imagery.canvas import PixelCanvas
from gap.imagery.losses import Logit
from gap.imagery.memory import check_memory
from gap.imagery.optimize import (
    OptimizationProgress,
    default_budget,
    no_callback,
    normalized_gradient_descent,
    step_length,
)
from gap.models.feature_extractor import LOGITS, FeatureExtractor
from gap.threat import Budget


@dataclass(frozen=True)
class Traversal:
    """The pictures of a walk, T x N x C x H x W in [0, 1], the start among them, and their probabilities, T x N x K."""

    pictures: Tensor
    probabilities: Tensor


def traverse(
    classifier: Classifier,
    images: Tensor,
    classes: Tensor,
    *,
    budget: Budget | None = None,
    steps: int = 60,
    tell: Callable[[OptimizationProgress], None] = no_callback,
) -> Traversal:
    """Walk images (N x C x H x W in [0, 1]) up the logit of a class for each (N integers), before the softmax.

    Steps have one L2 length; with an L2 budget they end inside it, by default a quarter of the largest distance between
    two pictures. On a hardened classifier the pictures come to look like the class; on a standard one they hardly
    change before it is sure. The walk is kept on the CPU. Raises GapError when the classifier passes no gradient, and
    before it begins where memory will not suffice.
    """
    budget = budget or default_budget(images)
    canvas = PixelCanvas(images, budget)
    extractors = MultiFeatureExtractor({"": FeatureExtractor(classifier.network, [LOGITS], run=classifier)})
    pictures: list[Tensor] = []
    probabilities: list[Tensor] = []

    def keep(progress: OptimizationProgress) -> None:
        pictures.append(progress.activations.images.detach().to("cpu", copy=True))
        probabilities.append(progress.activations.layers[LOGITS].detach().float().softmax(dim=1).cpu())
        tell(progress)

    check_memory(extractors, images, (images.shape[2], images.shape[3]))
    with extractors.frozen():
        normalized_gradient_descent(
            canvas, Logit(classes), extractors, steps=steps, size=step_length(budget, images, steps), tell=keep
        )
    return Traversal(torch.stack(pictures), torch.stack(probabilities))
