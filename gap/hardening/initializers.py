"""Where an attack in training starts: at random, at what a generator makes, or at a universal perturbation.

A start that learns is moved by the gradient of the attack's loss at the place where it put the images. Whoever takes
gradient steps from there, or trains the classifier on it, has that gradient already: learning costs no pass of the
classifier.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gap.attacks.base import Attack
from gap.attacks.gradient import loss_gradient
from gap.attacks.losses import Criterion, capped_cross_entropy
from gap.threat import L2, Budget
from gap.training.task import Backward, OptimizedModule


class Initializer(ABC):
    """Puts images (N x C x H x W in [0, 1]) where an attack within a budget begins; those that learn have a module."""

    module: OptimizedModule | None = None

    @abstractmethod
    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        """The starting points in [0, 1]; with a graph to the module's weights where there is one."""

    def update(self, start: Tensor, gradient: Tensor, backward: Backward) -> None:  # noqa: B027  # chance learns nothing
        """Learn from `gradient`, that of the attack's loss by the images at `start`."""

    def reset_member(self, turn: int) -> None:  # noqa: B027  # only populations are renewed
        """Start one member of a population anew."""


class RandomInit(Initializer):
    """Uniform in the budget's ball, or, with `radius_scale`, in a ball that many times as large."""

    def __init__(self, radius_scale: float = 1.0) -> None:
        self.radius_scale = radius_scale

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        return (images + self.radius_scale * budget.sample(images)).clamp(0, 1)


class AttackInit(Initializer):
    """What an attack of the user's own makes of the images, projected onto the budget."""

    def __init__(self, attack: Attack) -> None:
        self.attack = attack

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        adversarial = self.attack(classifier, images, labels).detach()
        return (images + budget.project(adversarial - images)).clamp(0, 1)


class LearnedInit(Initializer):
    """A start that a network finds; `noise` is the share of the budget mixed in at random."""

    module: OptimizedModule

    def __init__(self, module: OptimizedModule, noise: float = 0.0) -> None:
        self.module = module
        self.noise = noise

    @abstractmethod
    def initialize(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        """Where the network puts the images, inside the budget and [0, 1]."""

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        placed = self.initialize(classifier, images, labels, budget)
        if not self.noise:
            return placed
        noise = self.noise * budget.sample(images)
        return (images + budget.project(placed - images + noise)).clamp(0, 1)

    def update(self, start: Tensor, gradient: Tensor, backward: Backward) -> None:
        """Move the network down the gradient, that of each image scaled to length 1."""
        even = gradient / L2.length(gradient).clamp_min(1e-12).view(-1, 1, 1, 1)
        self.module.update((start * even).sum() / len(start), backward)


class GeneratorPopulation(nn.Module):
    """A population of `count` generators that `make` makes: each takes its part of a batch.

    What they are renewed to depends on where the global random numbers stand when the population is made."""

    def __init__(self, make: Callable[[], nn.Module], count: int = 1) -> None:
        super().__init__()
        self.make = make
        self.members = nn.ModuleList(make() for _ in range(count))
        with torch.random.fork_rng():
            self.seed = int(torch.randint(2**31, ()))

    def forward(self, images: Tensor) -> Tensor:
        parts = images.tensor_split(len(self.members))
        # Several processes wait for the gradients of all: a member without images gets none of one image's.
        made = [
            member(part) if len(part) else member(images[:1])[:0]
            for member, part in zip(self.members, parts, strict=True)
        ]
        return torch.cat(made)

    def reset_member(self, turn: int) -> nn.Module:
        """Make one member anew, each in its turn, the same on every process; return it."""
        member = self.members[turn % len(self.members)]
        with torch.random.fork_rng():
            torch.manual_seed(self.seed + turn)
            member.load_state_dict(self.make().state_dict())
        return member


class GeneratorInit(LearnedInit):
    """What a generator, or a population of them, makes of the images, tanh-bounded."""

    def reset_member(self, turn: int) -> None:
        population = self.module.unwrapped
        assert isinstance(population, GeneratorPopulation)
        for weight in population.reset_member(turn).parameters():
            self.module.optimizer.state.pop(weight, None)

    def initialize(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        return budget.apply(images, self.module.network(images))


class GradientGeneratorInit(GeneratorInit):
    """A generator fed the image and the classifier's input gradient there, scaled to a mean square of 1: one pass."""

    def initialize(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        _, gradient = loss_gradient(classifier, images, None, Criterion(labels), capped_cross_entropy)
        gradient = L2.steepest(gradient) * images[0].numel() ** 0.5
        raw = self.module.network(torch.cat([images, gradient / 4 + 0.5], dim=1))[:, : images.shape[1]]
        return budget.apply(images, raw)


class PerturbationBank(nn.Module):
    """The raw outputs of several perturbations, count x C x H x W; called with which of them each image gets."""

    def __init__(self, count: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(count, channels, *size))

    def forward(self, which: Tensor) -> Tensor:
        return self.raw[which]


class UniversalInit(LearnedInit):
    """One of several perturbations for all images, drawn for each."""

    def initialize(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        count = len(next(self.module.unwrapped.parameters()))
        which = torch.randint(count, (len(images),), device=images.device)
        return (images + budget.bound(self.module.network(which))).clamp(0, 1)
