"""What an attack is: one call, from images to adversarial images."""

from typing import Protocol

from torch import Tensor, nn

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
