"""Training a generator: the forms an attack can take, and the job that the training loop runs for each."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.nn import functional as F

from gap.attacks.criteria import GoalMaker
from gap.attacks.generator.model import make_image
from gap.attacks.losses import NEED_CLEAN, Loss
from gap.core.gradients import check_differentiable
from gap.threat import NORMS, Budget, Norm
from gap.training.task import Backward, Job, Player

# How fast the weight of the magnitude follows what the batches show, as a share per step.
WEIGHT_RATE = 0.02
# The shares of the training after which the worse half of a universal perturbation's noises goes; at the last, all but
# one do.
CUTS = (0.1, 0.15, 0.25)
# How much of a noise's score is what it was a step before, once there were as many steps as make a mean of that.
MEMORY = 0.98
# The magnitude aimed at, as a share of the one asked for: batches scatter, and the mean asked for is a promise.
MAGNITUDE_AIM = 0.97


class AttackJob(Job):
    """A generator against frozen classifiers: the mean of an adversarial loss over images and classifiers.

    What becomes of the generator's output, and what else its loss holds, is for the forms below.
    """

    def __init__(
        self,
        player: Player,
        classifiers: Sequence[nn.Module],
        goal: GoalMaker,
        loss: Loss,
        augmentation: Callable[[Tensor], Tensor] = nn.Identity(),  # noqa: B008  # holds no state
    ) -> None:
        self.players = {"generator": player}
        self.classifiers = list(classifiers)
        self.goal = goal
        self.loss = loss
        self.augmentation = augmentation

    @abstractmethod
    def adversarial(self, images: Tensor) -> Tensor:
        """The generator's adversarial images, with gradients."""

    def step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        return self.learn(self.augmentation(images), labels, backward)

    def learn(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        """Learn from one batch of augmented images; return scalar figures."""
        losses, figures = self.attack_losses(images, labels, self.adversarial(images))
        loss = losses.mean()
        self.players["generator"].learn(loss, backward)
        return {"loss": loss, **figures}

    def attack_losses(self, images: Tensor, labels: Tensor, adversarial: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Each image's adversarial loss (N), and the accuracy of the first classifier under attack."""
        clean = self._clean_logits(images)
        goal = self.goal(_consensus(clean), labels)
        attacked = [classifier(adversarial) for classifier in self.classifiers]
        for logits in attacked if adversarial.requires_grad else ():  # one member of an ensemble would go unnoticed
            check_differentiable(logits)
        losses = [self.loss(after, before, goal) for after, before in zip(attacked, clean, strict=True)]
        accuracy = (attacked[0].argmax(dim=1) == labels).float().mean()
        return torch.stack(losses).mean(dim=0), {"accuracy_under_attack": accuracy}

    @torch.no_grad()
    def _clean_logits(self, images: Tensor) -> list[Tensor | None]:
        """Each classifier's logits of the clean images where the goal or the loss asks for them: a pass is not free."""
        if self.goal.needs_clean or self.loss in NEED_CLEAN:
            return [classifier(images) for classifier in self.classifiers]
        return [None] * len(self.classifiers)

    def judge(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What the first classifier makes of each image. With a target, the open images are those not labelled so
        already, and only they can reach it."""
        adversarial = self.adversarial(images)
        clean, attacked = [classifier(images) for classifier in self.classifiers], self.classifiers[0](adversarial)
        goal = self.goal(_consensus(clean), labels)
        perturbation = adversarial - images
        figures = {
            "accuracy_under_attack": attacked.argmax(dim=1) == labels,
            "fooling_rate": attacked.argmax(dim=1) != clean[0].argmax(dim=1),
            **{name: norm.length(perturbation) for name, norm in NORMS.items()},
        }
        if not goal.targeted:
            return figures
        is_open = goal.classes != labels
        return figures | {"target_reached": goal.met(attacked) & is_open, "target_open": is_open}

    @torch.no_grad()
    def pictures(self, images: Tensor) -> Mapping[str, Tensor]:
        network = self.players["generator"].network
        was = network.training
        network.eval()
        adversarial = self.adversarial(images)
        network.train(was)
        return {"clean": images, "perturbed": adversarial}


class ThresholdedJob(AttackJob):
    """The generator's output, tanh-bounded to a budget, added to the image and clamped."""

    def __init__(self, budget: Budget, *rest: Any) -> None:
        super().__init__(*rest)
        self.budget = budget

    def adversarial(self, images: Tensor) -> Tensor:
        return self.budget.perturb(images, self.players["generator"].network(images))


class UniversalJob(AttackJob):
    """One perturbation for all images, the generator's output on its noise, tanh-bounded to a budget.

    Which noise it is decides much: of several, each fools its part of every batch, and the worse half goes at each of
    `CUTS` until one is left.
    """

    def __init__(self, budget: Budget, steps: int, *rest: Any) -> None:
        super().__init__(*rest)
        self.budget = budget
        self.steps = steps
        self.taken = 0
        noises = len(self.players["generator"].network.get_buffer("noise"))
        self.standing = torch.arange(noises)
        self.scores = torch.zeros(noises)

    def adversarial(self, images: Tensor) -> Tensor:
        """Image i gets the perturbation of the noise i, counted round and round among those standing."""
        perturbations = self.perturbations()
        return (images + perturbations[torch.arange(len(images)) % len(perturbations)]).clamp(0, 1)

    def perturbations(self) -> Tensor:
        """One for each noise that stands, inside the budget: K x C x H x W."""
        return self.budget.bound(self.players["generator"].network(self.standing))

    def learn(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        losses, figures = self.attack_losses(images, labels, self.adversarial(images))
        loss = losses.mean()
        self.players["generator"].learn(loss, backward)
        self.taken += 1
        if len(self.standing) > 1:
            self._compare(losses.detach())
        return {"loss": loss, **figures}

    def _compare(self, losses: Tensor) -> None:
        """Remember how each noise does, and let the worse half go where a cut has come."""
        share = torch.stack([losses[place :: len(self.standing)].mean() for place in range(len(self.standing))])
        memory = min(MEMORY, 1 - 1 / self.taken)
        self.scores[self.standing] = memory * self.scores[self.standing] + (1 - memory) * share.cpu()
        kept = left_standing(len(self.scores), self.taken / self.steps)
        if kept < len(self.standing):
            scores = reduce(self.scores.to(losses.device), "mean").cpu()
            self.standing = self.standing[scores[self.standing].argsort()[:kept]].sort().values

    def state(self) -> dict[str, Any]:
        return {"taken": self.taken, "standing": self.standing, "scores": self.scores}

    def load_state(self, state: dict[str, Any]) -> None:
        self.taken, self.standing, self.scores = int(state["taken"]), state["standing"], state["scores"]


def left_standing(noises: int, share: float) -> int:
    """How many of so many noises are left after that share of the training."""
    passed = sum(share >= cut for cut in CUTS)
    return 1 if passed == len(CUTS) else math.ceil(noises / 2**passed)


class DirectJob(AttackJob):
    """The generator makes the image itself; the loss adds its magnitude, weighted so that a mean asked for is met.

    The weight grows while the mean magnitude is above what was asked for and shrinks while it is below.
    """

    def __init__(self, norm: Norm, magnitude: float, *rest: Any) -> None:
        super().__init__(*rest)
        self.norm = norm
        self.magnitude = magnitude
        self.log_weight = 0.0

    def adversarial(self, images: Tensor) -> Tensor:
        return make_image(images, self.players["generator"].network(images))

    def learn(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        adversarial = self.adversarial(images)
        losses, figures = self.attack_losses(images, labels, adversarial)
        share = self.norm.length(adversarial - images).mean() / self.magnitude
        weight = torch.tensor(self.log_weight).exp().item()
        loss = losses.mean() + weight * share
        self.players["generator"].learn(loss, backward)
        over = share.detach() / MAGNITUDE_AIM - 1
        self.log_weight += WEIGHT_RATE * float(reduce(over, "mean").clamp(-1, 1))
        return {
            "loss": loss,
            "magnitude": share * self.magnitude,
            "magnitude_weight": share.new_tensor(weight),
            **figures,
        }

    def state(self) -> dict[str, Any]:
        return {"log_weight": self.log_weight}

    def load_state(self, state: dict[str, Any]) -> None:
        self.log_weight = float(state["log_weight"])


class DiscriminatorJob(AttackJob):
    """The generator makes the image itself, and a discriminator, not a magnitude, is to keep it near the clean ones.

    The variant that failed in the source article: nothing here knows which image the made one should resemble.
    """

    def __init__(self, discriminator: Player, *rest: Any) -> None:
        super().__init__(*rest)
        self.players["discriminator"] = discriminator

    def adversarial(self, images: Tensor) -> Tensor:
        return make_image(images, self.players["generator"].network(images))

    def learn(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        generator, discriminator = self.players["generator"], self.players["discriminator"]
        adversarial = self.adversarial(images)
        seen = discriminator.network(torch.cat([images, adversarial.detach()])).float()
        real = torch.cat([torch.ones(len(images)), torch.zeros(len(images))]).to(seen)
        telling = F.binary_cross_entropy_with_logits(seen, real)
        discriminator.learn(telling, backward)
        losses, figures = self.attack_losses(images, labels, adversarial)
        discriminator.bare.requires_grad_(False)
        passing = F.softplus(-discriminator.bare(adversarial).float()).mean()
        loss = losses.mean() + passing
        generator.learn(loss, backward)
        discriminator.bare.requires_grad_(True)
        return {"loss": loss, "discriminator_loss": telling, **figures}


def _consensus(logits: Sequence[Tensor | None]) -> Tensor | None:
    """What an ensemble says: the mean of its members' log-probabilities."""
    known = [member.float().log_softmax(dim=1) for member in logits if member is not None]
    return torch.stack(known).mean(dim=0) if known else None
