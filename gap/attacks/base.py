"""The protocol of attacks: a call from images to adversarial images."""

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

    Takes a classifier (pixels in [0, 1] to logits), images N x C x H x W in [0, 1] and N integer labels. Returns
    adversarial images of the same shape, detached, in [0, 1], inside the attack's budget. Restores the classifier's
    mode, gradients and hooks.
    """

    @property
    def name(self) -> str: ...

    @property
    def budget(self) -> Budget | None:
        """The bound on the perturbations; None for an unbounded attack."""
        ...

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class SavedAttack:
    """The base of attacks that can be saved in a folder.

    Attributes:
        artifact: the artifact of the attack; None for one that was neither trained nor loaded.
        history: the metrics during the training, where the attack was trained in this process.
    """

    artifact: Artifact | None = field(default=None, repr=False)
    history: Sequence[dict[str, Any]] = field(default=(), repr=False)

    def save(self, folder: Path | str) -> None:
        """Save the attack in a folder, from which `gap.load_attack` and the command line load it.

        Raises GapError where the folder holds files that gap did not write.
        """
        if self.artifact is None:
            raise GapError("only an attack that was trained or loaded can be saved")
        self.artifact.save(folder)
