"""Training tasks of generators, one for each kind of attack."""

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

# The learning rate of the logarithm of the norm's weight (dual ascent).
DUAL_LEARNING_RATE = 0.02
# Successive halving of a universal perturbation's input noises: the shares of the training after which the worse half
# is dropped. After the last, one noise remains.
HALVING_POINTS = (0.1, 0.15, 0.25)
# The decay of the exponential moving average of a noise's losses. In early steps it is lower, so that it is a mean.
SCORE_DECAY = 0.98
# The norm to aim at, as a share of the target norm: batches vary, and the mean norm must not exceed the target.
TARGET_NORM_SHARE = 0.97


class GeneratorTraining(TrainingTask):
    """Trains a generator against frozen classifiers by the mean of an adversarial loss over images and classifiers.

    The subclasses define how the generator's output becomes an adversarial image, and further terms of the loss.
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
        """Update the generator on a batch of augmented images; return scalar metrics."""
        losses, metrics = self.attack_losses(images, labels, self.adversarial(images))
        loss = losses.mean()
        self.modules["generator"].update(loss, backward)
        return {"loss": loss, **metrics}

    def attack_losses(self, images: Tensor, labels: Tensor, adversarial: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The adversarial loss of every image (N), and the accuracy of the first classifier under attack."""
        clean_logits = self._clean_logits(images)
        criterion = self.criterion(_ensemble_logits(clean_logits), labels)
        adversarial_logits = [classifier(adversarial) for classifier in self.classifiers]
        # Each one is checked: the mean over an ensemble would hide a missing gradient.
        for logits in adversarial_logits if adversarial.requires_grad else ():
            check_differentiable(logits)
        losses = [
            self.loss(logits, clean, criterion) for logits, clean in zip(adversarial_logits, clean_logits, strict=True)
        ]
        accuracy = (adversarial_logits[0].argmax(dim=1) == labels).float().mean()
        return torch.stack(losses).mean(dim=0), {"accuracy_under_attack": accuracy}

    @torch.no_grad()
    def _clean_logits(self, images: Tensor) -> list[Tensor | None]:
        """The logits of all classifiers for the clean images, or Nones where neither criterion nor loss needs them."""
        if self.criterion.needs_clean or needs_clean_logits(self.loss):
            return [classifier(images) for classifier in self.classifiers]
        return [None] * len(self.classifiers)

    def validation_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The results of the first classifier for each image.

        With a target, the eligible images are those whose label is not the target, and only they count as successes.
        """
        adversarial = self.adversarial(images)
        clean_logits = [classifier(images) for classifier in self.classifiers]
        adversarial_logits = self.classifiers[0](adversarial)
        criterion = self.criterion(_ensemble_logits(clean_logits), labels)
        perturbation = adversarial - images
        metrics = {
            "accuracy_under_attack": adversarial_logits.argmax(dim=1) == labels,
            "fooling_rate": adversarial_logits.argmax(dim=1) != clean_logits[0].argmax(dim=1),
            **{name: norm.length(perturbation) for name, norm in NORMS.items()},
        }
        if not criterion.targeted:
            return metrics
        is_eligible = criterion.classes != labels
        success = criterion.is_adversarial(adversarial_logits) & is_eligible
        return metrics | {"target_success": success, "target_eligible": is_eligible}

    @torch.no_grad()
    def sample_images(self, images: Tensor) -> Mapping[str, Tensor]:
        network = self.modules["generator"].network
        was_training = network.training
        network.eval()
        adversarial = self.adversarial(images)
        network.train(was_training)
        return {"clean": images, "perturbed": adversarial}


class BoundedGeneratorTraining(GeneratorTraining):
    """Trains a generator whose output is tanh-bounded to a budget, added to the image and clamped."""

    def __init__(self, budget: Budget, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.budget = budget

    def adversarial(self, images: Tensor) -> Tensor:
        return self.budget.apply(images, self.modules["generator"].network(images))


class UniversalGeneratorTraining(GeneratorTraining):
    """Trains one perturbation for all images: the generator's output for a noise, tanh-bounded to a budget.

    The result depends strongly on the noise. Several noises start, and each perturbs its part of every batch. At each
    of `HALVING_POINTS` the worse half is dropped, until one noise remains.
    """

    def __init__(self, budget: Budget, steps: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.budget = budget
        self.steps = steps
        self.step = 0
        candidates = len(self.modules["generator"].network.get_buffer("noise"))
        self.survivors = torch.arange(candidates)
        self.scores = torch.zeros(candidates)

    def adversarial(self, images: Tensor) -> Tensor:
        """The adversarial images. Image i gets the perturbation of survivor i modulo the number of survivors."""
        perturbations = self.perturbations()
        return (images + perturbations[torch.arange(len(images)) % len(perturbations)]).clamp(0, 1)

    def perturbations(self) -> Tensor:
        """The perturbations of the surviving noises, inside the budget: K x C x H x W."""
        return self.budget.bound(self.modules["generator"].network(self.survivors))

    def update(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        losses, metrics = self.attack_losses(images, labels, self.adversarial(images))
        loss = losses.mean()
        self.modules["generator"].update(loss, backward)
        self.step += 1
        if len(self.survivors) > 1:
            self._compare(losses.detach())
        return {"loss": loss, **metrics}

    def _compare(self, losses: Tensor) -> None:
        """Update the scores of the noises, and drop the worse half where a halving point is reached."""
        mean_losses = torch.stack([losses[index :: len(self.survivors)].mean() for index in range(len(self.survivors))])
        decay = min(SCORE_DECAY, 1 - 1 / self.step)
        self.scores[self.survivors] = decay * self.scores[self.survivors] + (1 - decay) * mean_losses.cpu()
        num_kept = num_survivors(len(self.scores), self.step / self.steps)
        if num_kept < len(self.survivors):
            scores = reduce(self.scores.to(losses.device), "mean").cpu()
            self.survivors = self.survivors[scores[self.survivors].argsort()[:num_kept]].sort().values

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.step, "survivors": self.survivors, "scores": self.scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.survivors, self.scores = int(state["taken"]), state["survivors"], state["scores"]


def num_survivors(candidates: int, share: float) -> int:
    """How many of `candidates` noises remain after a share of the training."""
    passed = sum(share >= point for point in HALVING_POINTS)
    return 1 if passed == len(HALVING_POINTS) else math.ceil(candidates / 2**passed)


class DirectGeneratorTraining(GeneratorTraining):
    """Trains a generator that outputs the image itself. A weighted norm of the perturbation is added to the loss.

    The weight rises while the mean norm is above the target norm and falls while it is below (dual ascent).
    """

    def __init__(self, norm: Norm, target_norm: float, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.norm = norm
        self.target_norm = target_norm
        self.log_weight = 0.0

    def adversarial(self, images: Tensor) -> Tensor:
        return direct_output(images, self.modules["generator"].network(images))

    def update(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        adversarial = self.adversarial(images)
        losses, metrics = self.attack_losses(images, labels, adversarial)
        relative_norm = self.norm.length(adversarial - images).mean() / self.target_norm
        weight = torch.tensor(self.log_weight).exp().item()
        loss = losses.mean() + weight * relative_norm
        self.modules["generator"].update(loss, backward)
        excess = relative_norm.detach() / TARGET_NORM_SHARE - 1
        self.log_weight += DUAL_LEARNING_RATE * float(reduce(excess, "mean").clamp(-1, 1))
        return {
            "loss": loss,
            "magnitude": relative_norm * self.target_norm,
            "magnitude_weight": relative_norm.new_tensor(weight),
            **metrics,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"log_weight": self.log_weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.log_weight = float(state["log_weight"])


class AdversarialGeneratorTraining(GeneratorTraining):
    """Trains a generator that outputs the image itself, with a discriminator in place of a norm.

    This variant failed in the source article: no term of the loss compares an output with its own clean image.
    """

    def __init__(self, discriminator: OptimizedModule, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.modules["discriminator"] = discriminator

    def adversarial(self, images: Tensor) -> Tensor:
        return direct_output(images, self.modules["generator"].network(images))

    def update(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        generator, discriminator = self.modules["generator"], self.modules["discriminator"]
        adversarial = self.adversarial(images)
        discriminator_logits = discriminator.network(torch.cat([images, adversarial.detach()])).float()
        is_clean = torch.cat([torch.ones(len(images)), torch.zeros(len(images))]).to(discriminator_logits)
        discriminator_loss = F.binary_cross_entropy_with_logits(discriminator_logits, is_clean)
        discriminator.update(discriminator_loss, backward)
        losses, metrics = self.attack_losses(images, labels, adversarial)
        discriminator.unwrapped.requires_grad_(False)
        generator_loss = F.softplus(-discriminator.unwrapped(adversarial).float()).mean()
        loss = losses.mean() + generator_loss
        generator.update(loss, backward)
        discriminator.unwrapped.requires_grad_(True)
        return {"loss": loss, "discriminator_loss": discriminator_loss, **metrics}


def _ensemble_logits(logits: Sequence[Tensor | None]) -> Tensor | None:
    """The logits of an ensemble: the mean of its members' log-probabilities."""
    log_probabilities = [
        member_logits.float().log_softmax(dim=1) for member_logits in logits if member_logits is not None
    ]
    return torch.stack(log_probabilities).mean(dim=0) if log_probabilities else None
