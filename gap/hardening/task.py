"""Adversarial training: a classifier is trained on adversarial images, jointly with the attacks that make them."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gap.attacks.gradient import PGD
from gap.attacks.losses import Loss, capped_cross_entropy
from gap.core.errors import GapWarning
from gap.core.frozen import frozen
from gap.core.network import load_weights
from gap.hardening.inner_attacks import AttackBatch, InnerAttack, allocate
from gap.threat import Budget
from gap.training.task import Backward, OptimizedModule, TrainingTask

# A validation PGD accuracy this far below the best one is a collapse. One this far below the accuracy under the
# training attacks is catastrophic overfitting.
COLLAPSE_DROP, OVERFIT_GAP = 0.2, 0.3
# The largest number of gradient steps to which a recovery increases those of an attack.
MAX_STEPS = 10


class AdversarialTraining(TrainingTask):
    """Adversarial training (Madry et al., 2018) against a mixture of attacks, some of which are trained jointly.

    Batches are augmented first. Attacks run on the classifier in eval mode, then the classifier is trained on their
    images. After each epoch a short PGD with a margin loss, which is not used in training, attacks some validation
    images. The result is the weights with the highest accuracy under it.

    Args:
        classifier: the classifier to train.
        mixture: the inner attacks.
        budget: the largest perturbation.
        loss: the loss that attacks with gradient steps minimize.
        clean_fraction: the fraction of each batch that stays clean.
        label_smoothing: label smoothing of the classifier's loss. It is disabled for attacks whose initializer is
            trained on the same loss.
        epsilon_warmup: the number of steps over which epsilon rises linearly.
        last: the last step of the training. A recovery after it adds no attack steps.
        reset_interval: every that many steps, one generator of each attack is reinitialized; 0 is never.
        decay: the decay of the exponential moving average of the weights and of the statistics of norms. The average is
            validated and saved.
        recover: whether the best weights are restored, and every attack gets one more gradient step, when the
            validation PGD accuracy collapses or is far below the accuracy under the training attacks.
        augmentation: the augmentation of the images.
        fused_classifier: a function that returns the classifier in eval mode with fused norms, which runs faster.
    """

    def __init__(
        self,
        classifier: OptimizedModule,
        mixture: Sequence[InnerAttack],
        budget: Budget,
        *,
        loss: Loss = capped_cross_entropy,
        clean_fraction: float = 0.0,
        label_smoothing: float = 0.0,
        epsilon_warmup: int = 0,
        last: int | None = None,
        reset_interval: int = 0,
        decay: float = 0.99,
        recover: bool = True,
        augmentation: Callable[[Tensor], Tensor] = nn.Identity(),  # noqa: B008  # holds no state
        fused_classifier: Callable[[], nn.Module] | None = None,
    ) -> None:
        trainable = {
            inner_attack.name: inner_attack.start.module for inner_attack in mixture if inner_attack.start.module
        }
        self.modules = {"classifier": classifier, **trainable}
        self.mixture = list(mixture)
        self.budget, self.clean_fraction, self.label_smoothing = budget, clean_fraction, label_smoothing
        self.epsilon_warmup, self.last, self.reset_interval, self.recover = (
            epsilon_warmup,
            last,
            reset_interval,
            recover,
        )
        self.augmentation = augmentation
        self.fused_classifier = fused_classifier or (lambda: classifier.unwrapped)
        self.loss = loss
        self.probe = PGD(budget, steps=10, relative_step_sizes=(0.25,), confidence=0.0, name="probe")
        self.averaged = AveragedModel(
            classifier.network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True
        ).requires_grad_(False)
        self.taken = 0
        self.best: dict[str, Tensor] = {}
        self.best_metrics: dict[str, float] = {}
        self.recoveries: list[str] = []

    def training_step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        classifier = self.modules["classifier"]
        images = self.augmentation(images)
        attack_batches = self._attack_batches(self.fused_classifier(), images, labels, self._budget_now(), backward)
        num_clean = len(images) - sum(len(attack_batch.images) for attack_batch in attack_batches)
        classifier_inputs = [
            images[:num_clean],
            *(attack_batch.classifier_inputs for attack_batch in attack_batches),
        ]
        logits = classifier.network(torch.cat(classifier_inputs)).float()
        clean_logits, *attack_logits = logits.split([len(part_logits) for part_logits in classifier_inputs])
        classifier_losses = [
            F.cross_entropy(clean_logits, labels[:num_clean], label_smoothing=self.label_smoothing, reduction="sum")
        ]
        classifier_losses += [
            attack_batch.classifier_loss(part_logits, self.label_smoothing)
            for attack_batch, part_logits in zip(attack_batches, attack_logits, strict=True)
        ]
        loss = torch.stack(classifier_losses).sum() / len(images)
        classifier.update(loss, backward)
        for attack_batch in attack_batches:
            attack_batch.update(backward)
        self.averaged.update_parameters(classifier.unwrapped)
        self.taken += 1
        if self.reset_interval and self.taken % self.reset_interval == 0:
            for inner_attack in self.mixture:
                inner_attack.start.reset_member(self.taken // self.reset_interval)
        robust_logits = torch.cat(
            [
                clean_logits,
                *(
                    part_logits[-len(attack_batch.images) :]
                    for attack_batch, part_logits in zip(attack_batches, attack_logits, strict=True)
                ),
            ]
        )
        return {"loss": loss, "train_robust_accuracy": (robust_logits.argmax(dim=1) == labels).float().mean()}

    def _attack_batches(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget, backward: Backward | None
    ) -> list[AttackBatch]:
        """Run the attacks on a batch, each on its share. The first images stay clean."""
        counts = allocate(
            len(images),
            [self.clean_fraction, *((1 - self.clean_fraction) * inner_attack.share for inner_attack in self.mixture)],
        )
        parts = zip(images.split(counts), labels.split(counts), strict=True)
        next(parts)
        with frozen(classifier):
            return [
                inner_attack.attack(classifier, part, part_labels, budget, self.loss, backward)
                for inner_attack, (part, part_labels) in zip(self.mixture, parts, strict=True)
                if len(part)
            ]

    def _budget_now(self) -> Budget:
        share = min(1.0, (self.taken + 1) / (self.epsilon_warmup + 1))
        return Budget(self.budget.norm, self.budget.epsilon * share)

    def validation_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        classifier = self.averaged.module.eval()
        metrics = {
            "accuracy": classifier(images).argmax(dim=1) == labels,
            "pgd_accuracy": classifier(self.probe(classifier, images, labels)).argmax(dim=1) == labels,
        }
        with frozen(classifier):
            projected_attacks = [replace(inner_attack, projected=True) for inner_attack in self.mixture]
            adversarial_batches = [
                inner_attack.attack(classifier, images, labels, self.budget, self.loss).adversarial
                for inner_attack in projected_attacks
            ]
        robust = [classifier(adversarial).argmax(dim=1) == labels for adversarial in adversarial_batches]
        metrics["train_attack_accuracy"] = torch.stack(robust).all(dim=0)
        return metrics

    def synced_modules(self) -> list[nn.Module]:
        return [*super().synced_modules(), self.averaged.module]

    def on_validation_end(self, metrics: Mapping[str, float]) -> None:
        """Save the weights with the highest PGD accuracy; restore them when it collapses."""
        pgd_accuracy = metrics["pgd_accuracy"]
        if self.taken < self.epsilon_warmup:
            return
        collapsed = pgd_accuracy < self.best_probe - COLLAPSE_DROP
        overfitted = metrics["train_attack_accuracy"] - pgd_accuracy > OVERFIT_GAP
        if pgd_accuracy > self.best_probe:
            self.best_metrics = dict(metrics)
            self.best = {name: value.clone() for name, value in self.averaged.module.state_dict().items()}
        if self.recover and (collapsed or overfitted):
            self._recover("fell" if collapsed else "is robust only to its training attacks", pgd_accuracy)

    def _recover(self, description: str, pgd_accuracy: float) -> None:
        """Restore the best weights, if the present ones are worse, and add a gradient step to every attack."""
        actions = []
        if pgd_accuracy < self.best_probe:
            classifier = self.modules["classifier"]
            load_weights(classifier.unwrapped, self.best)
            load_weights(self.averaged.module, self.best)
            classifier.optimizer.state.clear()  # its moments belong to the collapsed weights
            actions.append(f"back to the weights with {self.best_probe:.1%}")
        growable = [
            inner_attack for inner_attack in self.mixture if inner_attack.steps < MAX_STEPS and self.taken != self.last
        ]
        for inner_attack in growable:
            inner_attack.steps += 1
        if growable:
            actions.append(
                "gradient steps from now on: "
                + ", ".join(f"{inner_attack.steps} of {inner_attack.name}" for inner_attack in self.mixture)
            )
        action_text = "; ".join(actions) or "nothing is left to try"
        message = f"the classifier {description}: {pgd_accuracy:.1%} accuracy under the validation PGD; {action_text}"
        self.recoveries.append(f"step {self.taken}: {message}")
        warnings.warn(message, GapWarning, stacklevel=2)

    @property
    def best_probe(self) -> float:
        """The highest PGD accuracy so far; below 0 before the first validation."""
        return self.best_metrics.get("pgd_accuracy", -1.0)

    @torch.no_grad()
    def sample_images(self, images: Tensor) -> Mapping[str, Tensor]:
        classifier = self.averaged.module.eval()
        labels = classifier(images).argmax(dim=1)
        with frozen(classifier):
            adversarial = {
                inner_attack.name: inner_attack.attack(classifier, images, labels, self.budget, self.loss).adversarial
                for inner_attack in self.mixture
            }
        return {"clean": images, **adversarial}

    def state_dict(self) -> dict[str, Any]:
        return {
            "taken": self.taken,
            "steps": [inner_attack.steps for inner_attack in self.mixture],
            "averaged": self.averaged.state_dict(),
            "best": self.best,
            "best_metrics": self.best_metrics,
            "recoveries": self.recoveries,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken, self.best, self.best_metrics = state["taken"], state["best"], state["best_metrics"]
        self.recoveries = state["recoveries"]
        load_weights(self.averaged, state["averaged"])
        for inner_attack, steps in zip(self.mixture, state["steps"], strict=True):
            inner_attack.steps = steps
