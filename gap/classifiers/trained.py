"""What a training of a classifier returns."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gap.classifiers.classifier import Classifier
from gap.core.artifact import Artifact


@dataclass(frozen=True, eq=False)
class TrainedClassifier:
    """A classifier that was trained.

    Attributes:
        classifier: the classifier, in eval mode.
        artifact: what is saved of it: its weights and its card.
        history: the metrics along the training, a row every 20 steps and after each epoch.
    """

    classifier: Classifier
    artifact: Artifact = field(repr=False)
    history: Sequence[dict[str, Any]] = field(default=(), repr=False)

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The last metrics on validation images, and on test images where there are any."""
        metrics: dict[str, dict[str, float]] = self.artifact.card["metrics"]
        return metrics

    def save(self, folder: Path | str) -> None:
        """Keep weights and card in a folder, from which `gap.load_classifier` and the command line take them.

        A network of one's own is loaded as `FILE.py:FACTORY@FOLDER`. Raises GapError where the folder holds anything
        that gap did not leave.
        """
        self.artifact.save(folder)
