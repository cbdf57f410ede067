"""Class traversal: pictures that walk towards a class, as a classifier sees it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
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
from gap.imagery.results import Drawing
from gap.models.feature_extractor import LOGITS, FeatureExtractor
from gap.report.traversal_frames import TraversalFrames, key_frames, traversal_frames
from gap.report.video import save_video
from gap.threat import Budget


@dataclass(frozen=True, eq=False)
class Traversal(Drawing):
    """Images on their way to a class.

    Attributes:
        images: T x N x C x H x W in [0, 1], the first ones among them.
        probabilities: of the classes, T x N x K.
        class_names: the names of the classes; numbers by default.
        title: the name of the classifier.
    """

    images: Tensor
    probabilities: Tensor
    class_names: Sequence[str] = ()
    title: str = ""

    def to_pil(self) -> Image.Image:
        """Key frames, one line for each image."""
        return key_frames([self._frames()], self._names())

    def save(self, path: str | Path, *, fps: int = 20) -> None:
        """Save a video (.mp4 or .gif), or the key frames (.png). Raises GapError for another suffix."""
        if Path(path).suffix.lower() == ".png":
            super().save(path)
        else:
            save_video(traversal_frames([self._frames()], self._names()), Path(path), fps=fps)

    def _frames(self) -> TraversalFrames:
        return TraversalFrames(self.title, self.images, self.probabilities)

    def _names(self) -> Sequence[str]:
        return self.class_names or [str(index) for index in range(self.probabilities.shape[2])]


def traverse_images(
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
