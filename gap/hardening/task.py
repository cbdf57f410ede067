"""Adversarial training: a classifier learns on what attacks make of its images while the attacks learn on it."""

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

# An accuracy under the probe this far below the best one, or below that under the attacks in training, is a collapse.
FALL, LAG = 0.2, 0.3
# Beyond this many gradient steps a collapse gives an attack no more.
MAX_STEPS = 10


class AdversarialTraining(TrainingTask):
    """Adversarial training (Madry et al., 2018) against a mixture of attacks, some of which learn jointly.

    Batches are augmented before anyone sees them. Attacks see the classifier in eval mode; then it learns on their
    images with `label_smoothing` of its labels, but not where a start learns by the same pass. Epsilon rises linearly
    over the first `epsilon_warmup` steps. Every `reset_interval` steps one generator of each attack starts anew. What
    is validated and kept is the average of the weights, and of the statistics of norms, with `decay`.
    `fused_classifier` gives the classifier in eval mode in a form that runs faster.

    After each epoch a short PGD with a margin loss, which nothing trains on, attacks some validation images. The
    weights with the highest accuracy under it are kept. With `recover`, a collapse of that accuracy restores them and
    gives every attack one more gradient step; so does a classifier that is robust only to its training attacks. No step
    is added after the `last` one.
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
        learners = {
            inner_attack.name: inner_attack.start.module for inner_attack in mixture if inner_attack.start.module
        }
        self.modules = {"classifier": classifier, **learners}
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
        untouched, *parts = logits.split([len(part) for part in classifier_inputs])
        classifier_losses = [
            F.cross_entropy(untouched, labels[:num_clean], label_smoothing=self.label_smoothing, reduction="sum")
        ]
        classifier_losses += [
            attack_batch.classifier_loss(part, self.label_smoothing)
            for attack_batch, part in zip(attack_batches, parts, strict=True)
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
        attacked = torch.cat(
            [
                untouched,
                *(part[-len(attack_batch.images) :] for attack_batch, part in zip(attack_batches, parts, strict=True)),
            ]
        )
        return {"loss": loss, "train_robust_accuracy": (attacked.argmax(dim=1) == labels).float().mean()}

    def _attack_batches(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget, backward: Backward | None
    ) -> list[AttackBatch]:
        """The attacks on a batch, each on its portion; the first images are left clean."""
        counts = allocate(
            len(images), [self.clean_fraction, *((1 - self.clean_fraction) * each.share for each in self.mixture)]
        )
        parts = zip(images.split(counts), labels.split(counts), strict=True)
        next(parts)
        with frozen(classifier):
            return [
                inner_attack.attack(classifier, part, own, budget, self.loss, backward)
                for inner_attack, (part, own) in zip(self.mixture, parts, strict=True)
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
            inside = [replace(each, projected=True) for each in self.mixture]
            attacked = [each.attack(classifier, images, labels, self.budget, self.loss).adversarial for each in inside]
        robust = [classifier(adversarial).argmax(dim=1) == labels for adversarial in attacked]
        metrics["train_attack_accuracy"] = torch.stack(robust).all(dim=0)
        return metrics

    def synced_modules(self) -> list[nn.Module]:
        return [*super().synced_modules(), self.averaged.module]

    def on_validation_end(self, metrics: Mapping[str, float]) -> None:
        """Keep the weights with the highest accuracy under the probe; where it collapses, restore them."""
        probe = metrics["pgd_accuracy"]
        if self.taken < self.epsilon_warmup:
            return
        fallen = probe < self.best_probe - FALL
        deceived = metrics["train_attack_accuracy"] - probe > LAG
        if probe > self.best_probe:
            self.best_metrics = dict(metrics)
            self.best = {name: value.clone() for name, value in self.averaged.module.state_dict().items()}
        if self.recover and (fallen or deceived):
            self._recover("fell" if fallen else "is robust only to its training attacks", probe)

    def _recover(self, what: str, probe: float) -> None:
        """Bring back the best weights, if these are not they, and let every attack take one more gradient step."""
        done = []
        if probe < self.best_probe:
            classifier = self.modules["classifier"]
            load_weights(classifier.unwrapped, self.best)
            load_weights(self.averaged.module, self.best)
            classifier.optimizer.state.clear()  # its moments are those of the weights that fell
            done.append(f"back to the weights with {self.best_probe:.1%}")
        growing = [each for each in self.mixture if each.steps < MAX_STEPS and self.taken != self.last]
        for inner_attack in growing:
            inner_attack.steps += 1
        if growing:
            done.append(
                "gradient steps from now on: " + ", ".join(f"{each.steps} of {each.name}" for each in self.mixture)
            )
        steps_taken = "; ".join(done) or "nothing is left to try"
        message = f"the classifier {what}: {probe:.1%} accuracy under the validation PGD; {steps_taken}"
        self.recoveries.append(f"step {self.taken}: {message}")
        warnings.warn(message, GapWarning, stacklevel=2)

    @property
    def best_probe(self) -> float:
        """The highest accuracy under the probe so far; below 0 where there is none yet."""
        return self.best_metrics.get("pgd_accuracy", -1.0)

    @torch.no_grad()
    def sample_images(self, images: Tensor) -> Mapping[str, Tensor]:
        classifier = self.averaged.module.eval()
        labels = classifier(images).argmax(dim=1)
        with frozen(classifier):
            made = {
                each.name: each.attack(classifier, images, labels, self.budget, self.loss).adversarial
                for each in self.mixture
            }
        return {"clean": images, **made}

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
