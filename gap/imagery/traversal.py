"""Class traversal: images that are moved towards a class by the gradient of its logit."""

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
    """The result of a class traversal.

    Attributes:
        images: T x N x C x H x W in [0, 1]; the first are the initial images.
        probabilities: the probabilities of the classes, T x N x K.
        class_names: the names of the classes; numbers by default.
        title: the name of the classifier.
    """

    images: Tensor
    probabilities: Tensor
    class_names: Sequence[str] = ()
    title: str = ""

    def to_pil(self) -> Image.Image:
        """The key frames, in one row for each image."""
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
    """Move images (N x C x H x W in [0, 1]) along the gradient of the logits of N classes (integers).

    All steps have the same L2 norm, and images stay inside the budget, by default an L2 ball of a quarter of the
    largest distance between two images. For a hardened classifier the images come to look like the class. For a
    standard one they hardly change before the classifier predicts the class with high confidence. The result is on the
    CPU. Raises GapError when the classifier passes no gradient, and before the first step when there is not enough
    memory.
    """
    budget = budget or default_budget(images)
    canvas = PixelCanvas(images, budget)
    extractors = MultiFeatureExtractor({"": FeatureExtractor(classifier.network, [LOGITS], run=classifier)})
    frames: list[Tensor] = []
    probabilities: list[Tensor] = []

    def record(progress: OptimizationProgress) -> None:
        frames.append(progress.activations.images.detach().to("cpu", copy=True))
        probabilities.append(progress.activations.layers[LOGITS].detach().float().softmax(dim=1).cpu())
        tell(progress)

    check_memory(extractors, images, (images.shape[2], images.shape[3]))
    with extractors.frozen():
        normalized_gradient_descent(
            canvas, Logit(classes), extractors, steps=steps, size=step_length(budget, images, steps), tell=record
        )
    return Traversal(torch.stack(frames), torch.stack(probabilities))
