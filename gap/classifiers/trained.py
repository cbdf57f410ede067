"""The result of training a classifier."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gap.classifiers.classifier import Classifier
from gap.core.artifact import Artifact


@dataclass(frozen=True, eq=False)
class TrainedClassifier:
    """A trained classifier.

    Attributes:
        classifier: the classifier, in eval mode.
        artifact: its weights and its card, as they are saved.
        history: the metrics during the training, a row every 20 steps and after each epoch.
    """

    classifier: Classifier
    artifact: Artifact = field(repr=False)
    history: Sequence[dict[str, Any]] = field(default=(), repr=False)

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The last metrics on the validation images, and those on the test images, if any."""
        metrics: dict[str, dict[str, float]] = self.artifact.card["metrics"]
        return metrics

    def save(self, folder: Path | str) -> None:
        """Save weights and card in a folder, from which `gap.load_classifier` and the command line load them.

        A network of your own code is loaded as `FILE.py:FACTORY@FOLDER`. Raises GapError where the folder holds files
        that gap did not write.
        """
        self.artifact.save(folder)
