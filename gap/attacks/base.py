"""What an attack is: one call, from images to adversarial images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from gap.core.artifact import Artifact
from gap.core.errors import GapError
from gap.threat import Budget


class Attack(Protocol):
    """Turns images into adversarial images.

    Takes a classifier (pixels in [0, 1] to logits), images N x C x H x W in [0, 1] and N integer labels;
    returns adversarial images of the same shape, detached, in [0, 1], inside the attack's budget, and leaves the
    classifier as it was found: its mode, its gradients, its hooks.
    """

    @property
    def name(self) -> str: ...

    @property
    def budget(self) -> Budget | None:
        """What the attack stays inside; None where it has no bound."""
        ...

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class SavedAttack:
    """What attacks have that can be kept in a folder.

    Attributes:
        artifact: what the attack was made of; None for one that was never trained or loaded.
        history: the metrics along the training, where it was trained in this process.
    """

    artifact: Artifact | None = field(default=None, repr=False)
    history: Sequence[dict[str, Any]] = field(default=(), repr=False)

    def save(self, folder: Path | str) -> None:
        """Keep the attack in a folder, from which `gap.load_attack` and the command line take it.

        Raises GapError where the folder holds anything that gap did not leave.
        """
        if self.artifact is None:
            raise GapError("only an attack that was trained or loaded can be saved")
        self.artifact.save(folder)
