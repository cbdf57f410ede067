"""Training a generator: the forms an attack can take, and what the training loop runs for each."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.nn import functional as F

from gap.attacks.criteria import CriterionFactory
from gap.attacks.generator.model import direct_output
from gap.attacks.losses import Loss, needs_clean_logits
from gap.core.gradients import check_differentiable
from gap.threat import NORMS, Budget, Norm
from gap.training.task import Backward, OptimizedModule, TrainingTask

# How fast the weight of the magnitude follows what the batches show, as a share per step.
DUAL_LEARNING_RATE = 0.02
# The shares of the training after which the worse half of a universal perturbation's noises goes; at the last, all but
# one do.
HALVING_POINTS = (0.1, 0.15, 0.25)
# How much of a noise's score is what it was a step before, once there were as many steps as make a mean of that.
SCORE_DECAY = 0.98
# The magnitude aimed at, as a share of the one asked for: batches scatter, and the mean asked for is a promise.
TARGET_NORM_SHARE = 0.97


class GeneratorTraining(TrainingTask):
    """A generator against frozen classifiers: the mean of an adversarial loss over images and classifiers.

    What becomes of the generator's output, and what else its loss holds, is for the forms below.
    """

    def __init__(
        self,
        module: OptimizedModule,
        classifiers: Sequence[nn.Module],
        criterion: CriterionFactory,
        loss: Loss,
        augmentation: Callable[[Tensor], Tensor] = nn.Identity(),  # noqa: B008  # holds no state
    ) -> None:
        self.modules = {"generator": module}
        self.classifiers = list(classifiers)
        self.criterion = criterion
        self.loss = loss
        self.augmentation = augmentation

    @abstractmethod
    def adversarial(self, images: Tensor) -> Tensor:
        """The generator's adversarial images, with gradients."""

    def training_step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        return self.update(self.augmentation(images), labels, backward)

    def update(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        """Learn from one batch of augmented images; return scalar metrics."""
        losses, metrics = self.attack_losses(images, labels, self.adversarial(images))
        loss = losses.mean()
        self.modules["generator"].update(loss, backward)
        return {"loss": loss, **metrics}

    def attack_losses(self, images: Tensor, labels: Tensor, adversarial: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Each image's adversarial loss (N), and the accuracy of the first classifier under attack."""
        clean = self._clean_logits(images)
        criterion = self.criterion(_ensemble_logits(clean), labels)
        attacked = [classifier(adversarial) for classifier in self.classifiers]
        for logits in attacked if adversarial.requires_grad else ():  # one member of an ensemble would go unnoticed
            check_differentiable(logits)
        losses = [self.loss(after, before, criterion) for after, before in zip(attacked, clean, strict=True)]
        accuracy = (attacked[0].argmax(dim=1) == labels).float().mean()
        return torch.stack(losses).mean(dim=0), {"accuracy_under_attack": accuracy}

    @torch.no_grad()
    def _clean_logits(self, images: Tensor) -> list[Tensor | None]:
        """Each classifier's logits of the clean images where the goal or the loss asks for them: a pass is not free."""
        if self.criterion.needs_clean or needs_clean_logits(self.loss):
            return [classifier(images) for classifier in self.classifiers]
        return [None] * len(self.classifiers)

    def validation_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What the first classifier makes of each image. With a target, the open images are those not labeled so
        already, and only they can reach it."""
        adversarial = self.adversarial(images)
        clean, attacked = [classifier(images) for classifier in self.classifiers], self.classifiers[0](adversarial)
        criterion = self.criterion(_ensemble_logits(clean), labels)
        perturbation = adversarial - images
        metrics = {
            "accuracy_under_attack": attacked.argmax(dim=1) == labels,
            "fooling_rate": attacked.argmax(dim=1) != clean[0].argmax(dim=1),
            **{name: norm.length(perturbation) for name, norm in NORMS.items()},
        }
        if not criterion.targeted:
            return metrics
        is_open = criterion.classes != labels
        return metrics | {"target_success": criterion.is_adversarial(attacked) & is_open, "target_eligible": is_open}

    @torch.no_grad()
    def sample_images(self, images: Tensor) -> Mapping[str, Tensor]:
        network = self.modules["generator"].network
        was = network.training
        network.eval()
        adversarial = self.adversarial(images)
        network.train(was)
        return {"clean": images, "perturbed": adversarial}


class BoundedGeneratorTraining(GeneratorTraining):
    """The generator's output, tanh-bounded to a budget, added to the image and clamped."""

    def __init__(self, budget: Budget, *rest: Any) -> None:
        super().__init__(*rest)
        self.budget = budget

    def adversarial(self, images: Tensor) -> Tensor:
        return self.budget.apply(images, self.modules["generator"].network(images))


class UniversalGeneratorTraining(GeneratorTraining):
    """One perturbation for all images, the generator's output on its noise, tanh-bounded to a budget.

    Which noise it is decides much: of several, each fools its part of every batch, and the worse half goes at each of
    `HALVING_POINTS` until one is left.
    """

    def __init__(self, budget: Budget, steps: int, *rest: Any) -> None:
        super().__init__(*rest)
        self.budget = budget
        self.steps = steps
        self.taken = 0
        candidates = len(self.modules["generator"].network.get_buffer("noise"))
        self.survivors = torch.arange(candidates)
        self.scores = torch.zeros(candidates)

    def adversarial(self, images: Tensor) -> Tensor:
        """Image i gets the perturbation of the noise i, counted round and round among the survivors."""
        perturbations = self.perturbations()
        return (images + perturbations[torch.arange(len(images)) % len(perturbations)]).clamp(0, 1)

    def perturbations(self) -> Tensor:
        """One for each surviving noise, inside the budget: K x C x H x W."""
        return self.budget.bound(self.modules["generator"].network(self.survivors))

    def update(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        losses, metrics = self.attack_losses(images, labels, self.adversarial(images))
        loss = losses.mean()
        self.modules["generator"].update(loss, backward)
        self.taken += 1
        if len(self.survivors) > 1:
            self._compare(losses.detach())
        return {"loss": loss, **metrics}

    def _compare(self, losses: Tensor) -> None:
        """Remember how each noise does, and let the worse half go where a cut has come."""
        share = torch.stack([losses[place :: len(self.survivors)].mean() for place in range(len(self.survivors))])
        memory = min(SCORE_DECAY, 1 - 1 / self.taken)
        self.scores[self.survivors] = memory * self.scores[self.survivors] + (1 - memory) * share.cpu()
        kept = num_survivors(len(self.scores), self.taken / self.steps)
        if kept < len(self.survivors):
            scores = reduce(self.scores.to(losses.device), "mean").cpu()
            self.survivors = self.survivors[scores[self.survivors].argsort()[:kept]].sort().values

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken, "survivors": self.survivors, "scores": self.scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken, self.survivors, self.scores = int(state["taken"]), state["survivors"], state["scores"]


def num_survivors(candidates: int, share: float) -> int:
    """How many of so many noises are left after that share of the training."""
    passed = sum(share >= cut for cut in HALVING_POINTS)
    return 1 if passed == len(HALVING_POINTS) else math.ceil(candidates / 2**passed)


class DirectGeneratorTraining(GeneratorTraining):
    """The generator makes the image itself; the loss adds its magnitude, weighted so that a mean asked for is met.

    The weight grows while the mean magnitude is above what was asked for and shrinks while it is below.
    """

    def __init__(self, norm: Norm, target_norm: float, *rest: Any) -> None:
        super().__init__(*rest)
        self.norm = norm
        self.target_norm = target_norm
        self.log_weight = 0.0

    def adversarial(self, images: Tensor) -> Tensor:
        return direct_output(images, self.modules["generator"].network(images))

    def update(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        adversarial = self.adversarial(images)
        losses, metrics = self.attack_losses(images, labels, adversarial)
        share = self.norm.length(adversarial - images).mean() / self.target_norm
        weight = torch.tensor(self.log_weight).exp().item()
        loss = losses.mean() + weight * share
        self.modules["generator"].update(loss, backward)
        over = share.detach() / TARGET_NORM_SHARE - 1
        self.log_weight += DUAL_LEARNING_RATE * float(reduce(over, "mean").clamp(-1, 1))
        return {
            "loss": loss,
            "magnitude": share * self.target_norm,
            "magnitude_weight": share.new_tensor(weight),
            **metrics,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"log_weight": self.log_weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.log_weight = float(state["log_weight"])


class AdversarialGeneratorTraining(GeneratorTraining):
    """The generator makes the image itself, and a discriminator, not a magnitude, is to keep it near the clean ones.

    The variant that failed in the source article: nothing here knows which image the made one should resemble.
    """

    def __init__(self, discriminator: OptimizedModule, *rest: Any) -> None:
        super().__init__(*rest)
        self.modules["discriminator"] = discriminator

    def adversarial(self, images: Tensor) -> Tensor:
        return direct_output(images, self.modules["generator"].network(images))

    def update(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        generator, discriminator = self.modules["generator"], self.modules["discriminator"]
        adversarial = self.adversarial(images)
        seen = discriminator.network(torch.cat([images, adversarial.detach()])).float()
        real = torch.cat([torch.ones(len(images)), torch.zeros(len(images))]).to(seen)
        telling = F.binary_cross_entropy_with_logits(seen, real)
        discriminator.update(telling, backward)
        losses, metrics = self.attack_losses(images, labels, adversarial)
        discriminator.unwrapped.requires_grad_(False)
        passing = F.softplus(-discriminator.unwrapped(adversarial).float()).mean()
        loss = losses.mean() + passing
        generator.update(loss, backward)
        discriminator.unwrapped.requires_grad_(True)
        return {"loss": loss, "discriminator_loss": telling, **metrics}


def _ensemble_logits(logits: Sequence[Tensor | None]) -> Tensor | None:
    """What an ensemble says: the mean of its members' log-probabilities."""
    known = [member.float().log_softmax(dim=1) for member in logits if member is not None]
    return torch.stack(known).mean(dim=0) if known else None
