"""Where an attack in training starts: at random, at what a generator makes, or at a universal perturbation.

A start that learns is moved by the gradient of the attack's loss at the place where it put the images. Whoever takes
gradient steps from there, or trains the classifier on it, has that gradient already: learning costs no pass of the
classifier.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from gap.attacks.gradient import loss_gradient, steepest, uniform_in_ball
from gap.attacks.losses import Goal, Loss
from gap.budget import Budget, measure
from gap.training.job import Backward, Player


class Start(ABC):
    """Puts images (N x C x H x W in [0, 1]) where an attack begins, inside a budget and [0, 1]."""

    player: Player | None = None

    @abstractmethod
    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        """The starting points; with a graph to the player's weights where there is a player."""

    def learn(self, start: Tensor, gradient: Tensor, backward: Backward) -> None:
        """Move the player down `gradient`, that of the attack's loss by the images at `start`, each scaled alike."""
        if self.player is not None and start.requires_grad:
            even = gradient / measure(gradient, "l2").clamp_min(1e-12).view(-1, 1, 1, 1)
            self.player.learn((start * even).sum() / len(start), backward)


class RandomStart(Start):
    """Uniform in the budget's ball, or, with `reach`, in a ball that many times as large."""

    def __init__(self, reach: float = 1.0) -> None:
        self.reach = reach

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        return (images + self.reach * uniform_in_ball(budget, images)).clamp(0, 1)


class GeneratorStart(Start):
    """What a generator makes of the images, tanh-bounded; `noise` is the share of the budget mixed in at random."""

    def __init__(self, player: Player, noise: float = 0.0) -> None:
        self.player = player
        self.noise = noise

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        assert self.player is not None
        return _noisy(budget.perturb(images, self.player.network(images)), images, budget, self.noise)


class FedGeneratorStart(GeneratorStart):
    """A generator fed the image and the classifier's input gradient there, scaled to a mean square of 1: one pass."""

    def __init__(self, player: Player, loss: Loss, noise: float = 0.0) -> None:
        super().__init__(player, noise)
        self.loss = loss

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        assert self.player is not None
        _, gradient = loss_gradient(classifier, images, None, Goal(labels), self.loss)
        gradient = steepest(gradient, "l2") * images[0].numel() ** 0.5
        raw = self.player.network(torch.cat([images, gradient / 4 + 0.5], dim=1))[:, : images.shape[1]]
        return _noisy(budget.perturb(images, raw), images, budget, self.noise)


class Universals(nn.Module):
    """The raw outputs of several perturbations, count x C x H x W; called with which of them each image gets."""

    def __init__(self, count: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(count, channels, *size))

    def forward(self, which: Tensor) -> Tensor:
        return self.raw[which]


class UniversalStart(Start):
    """One of several perturbations for all images, drawn for each; `noise` as above."""

    def __init__(self, player: Player, noise: float = 0.0) -> None:
        self.player = player
        self.noise = noise

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        assert self.player is not None
        count = len(next(self.player.bare.parameters()))
        which = torch.randint(count, (len(images),), device=images.device)
        moved = (images + budget.bound(self.player.network(which))).clamp(0, 1)
        return _noisy(moved, images, budget, self.noise)


def _noisy(moved: Tensor, images: Tensor, budget: Budget, share: float) -> Tensor:
    """Uniform noise of a share of the budget on top, projected back into the whole of it."""
    if not share:
        return moved
    noise = share * uniform_in_ball(budget, images)
    return (images + budget.project(moved - images + noise)).clamp(0, 1)
