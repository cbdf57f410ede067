"""Initializers of inner attacks: random noise, the output of a generator, or a universal perturbation.

A trainable initializer is updated from the gradient of the attack's loss with respect to the initial images. The first
gradient step, or the training of the classifier, computes that gradient anyway, so the update needs no additional pass
of the classifier.
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
    """Gives the initial images (N x C x H x W in [0, 1]) of an attack within a budget. Trainable ones have a module."""

    module: OptimizedModule | None = None

    @abstractmethod
    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        """The initial images in [0, 1], with a graph to the weights of the module, if there is one."""

    def update(self, start: Tensor, gradient: Tensor, backward: Backward) -> None:  # noqa: B027  # not all are trainable
        """Update the module from `gradient`, the gradient of the attack's loss with respect to the images `start`."""

    def reset_member(self, turn: int) -> None:  # noqa: B027  # only populations have members
        """Reinitialize one member of a population."""


class RandomInit(Initializer):
    """Uniform noise in the budget's ball, scaled by `radius_scale`."""

    def __init__(self, radius_scale: float = 1.0) -> None:
        self.radius_scale = radius_scale

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        return (images + self.radius_scale * budget.sample(images)).clamp(0, 1)


class AttackInit(Initializer):
    """The adversarial images of an attack object, projected onto the budget."""

    def __init__(self, attack: Attack) -> None:
        self.attack = attack

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        adversarial = self.attack(classifier, images, labels).detach()
        return (images + budget.project(adversarial - images)).clamp(0, 1)


class LearnedInit(Initializer):
    """The base of initializers with a trainable network. `noise` is the share of the budget of additional noise."""

    module: OptimizedModule

    def __init__(self, module: OptimizedModule, noise: float = 0.0) -> None:
        self.module = module
        self.noise = noise

    @abstractmethod
    def initialize(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        """The initial images of the network, inside the budget and [0, 1]."""

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        initial = self.initialize(classifier, images, labels, budget)
        if not self.noise:
            return initial
        noise = self.noise * budget.sample(images)
        return (images + budget.project(initial - images + noise)).clamp(0, 1)

    def update(self, start: Tensor, gradient: Tensor, backward: Backward) -> None:
        """One step of the network along the gradient, which is scaled to an L2 norm of 1 for each image."""
        normalized = gradient / L2.length(gradient).clamp_min(1e-12).view(-1, 1, 1, 1)
        self.module.update((start * normalized).sum() / len(start), backward)


class GeneratorPopulation(nn.Module):
    """A population of `count` generators, made by `make`. Each generator gets a part of every batch.

    The weights of reset members are random, with a seed that is fixed at construction.
    """

    def __init__(self, make: Callable[[], nn.Module], count: int = 1) -> None:
        super().__init__()
        self.make = make
        self.members = nn.ModuleList(make() for _ in range(count))
        with torch.random.fork_rng():
            self.seed = int(torch.randint(2**31, ()))

    def forward(self, images: Tensor) -> Tensor:
        parts = images.tensor_split(len(self.members))
        # With several processes, every member must take part in the backward pass, also one without images.
        outputs = [
            member(part) if len(part) else member(images[:1])[:0]
            for member, part in zip(self.members, parts, strict=True)
        ]
        return torch.cat(outputs)

    def reset_member(self, turn: int) -> nn.Module:
        """Reinitialize the member `turn` modulo their number, equally on every process, and return it."""
        member = self.members[turn % len(self.members)]
        with torch.random.fork_rng():
            torch.manual_seed(self.seed + turn)
            member.load_state_dict(self.make().state_dict())
        return member


class GeneratorInit(LearnedInit):
    """The tanh-bounded output of a generator, or of a population of generators."""

    def reset_member(self, turn: int) -> None:
        population = self.module.unwrapped
        assert isinstance(population, GeneratorPopulation)
        for weight in population.reset_member(turn).parameters():
            self.module.optimizer.state.pop(weight, None)

    def initialize(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        return budget.apply(images, self.module.network(images))


class GradientGeneratorInit(GeneratorInit):
    """A generator whose input is the image and the classifier's input gradient, scaled to a mean square of 1."""

    def initialize(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        _, gradient = loss_gradient(classifier, images, None, Criterion(labels), capped_cross_entropy)
        gradient = L2.steepest(gradient) * images[0].numel() ** 0.5
        raw = self.module.network(torch.cat([images, gradient / 4 + 0.5], dim=1))[:, : images.shape[1]]
        return budget.apply(images, raw)


class PerturbationBank(nn.Module):
    """The unbounded values of several perturbations, count x C x H x W. Called with the index for each image."""

    def __init__(self, count: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(count, channels, *size))

    def forward(self, indices: Tensor) -> Tensor:
        return self.raw[indices]


class UniversalInit(LearnedInit):
    """One of several universal perturbations, chosen at random for each image."""

    def initialize(self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
        count = len(next(self.module.unwrapped.parameters()))
        indices = torch.randint(count, (len(images),), device=images.device)
        return (images + budget.bound(self.module.network(indices))).clamp(0, 1)
