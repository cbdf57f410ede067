"""The job of hardening: a classifier learns on what attacks make of its images while the attacks learn on it."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gap.attacks.gradient import PGD
from gap.attacks.losses import capped_cross_entropy
from gap.core.errors import GapWarning
from gap.core.frozen import frozen
from gap.hardening.inner_attacks import Bout, Sparring, portions
from gap.threat import Budget
from gap.training.task import Backward, Job, Player

# An accuracy under the probe this far below the best one, or below that under the sparring attacks, is a collapse.
FALL, LAG = 0.2, 0.3
# Beyond this many gradient steps a collapse gives an attack no more.
MOST_STEPS = 10


class HardenJob(Job):
    """Adversarial training (Madry et al., 2018) against a mix of attacks, some of which learn jointly.

    Batches are augmented before anyone sees them. Attacks see the classifier in eval mode; then it learns on their
    images with `smoothing` of its labels, but not where a start learns by the same pass. Epsilon rises linearly over
    the first `warmup` steps. Every `renewal` steps one generator of each attack starts anew. What is judged and kept is
    the average of the weights, and of the statistics of norms, with `decay`. `lean` gives the classifier in eval mode
    in a form that runs faster.

    After each epoch a short PGD with a margin loss, which trains nobody, attacks some held-out images: the weights kept
    are those that withstood it best. With `watched`, a collapse of the classifier under it restores them and gives
    every attack one more gradient step, as does a classifier that withstands only the attacks it trains with; after the
    `last` step there are none to give.
    """

    def __init__(
        self,
        classifier: Player,
        mix: Sequence[Sparring],
        budget: Budget,
        *,
        clean: float = 0.0,
        smoothing: float = 0.0,
        warmup: int = 0,
        last: int | None = None,
        renewal: int = 0,
        decay: float = 0.99,
        watched: bool = True,
        augmentation: Callable[[Tensor], Tensor] = nn.Identity(),  # noqa: B008  # holds no state
        lean: Callable[[], nn.Module] | None = None,
    ) -> None:
        learners = {sparring.name: sparring.start.player for sparring in mix if sparring.start.player}
        self.players = {"classifier": classifier, **learners}
        self.mix = list(mix)
        self.budget, self.clean, self.smoothing = budget, clean, smoothing
        self.warmup, self.last, self.renewal, self.watched = warmup, last, renewal, watched
        self.augmentation = augmentation
        self.lean = lean or (lambda: classifier.bare)
        self.loss = capped_cross_entropy
        self.probe = PGD(budget, steps=10, step_scales=(0.25,), confidence=0.0, name="probe")
        self.averaged = AveragedModel(
            classifier.network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True
        ).requires_grad_(False)
        self.taken = 0
        self.best: dict[str, Tensor] = {}
        self.best_figures: dict[str, float] = {}
        self.mended: list[str] = []

    def step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        classifier = self.players["classifier"]
        images = self.augmentation(images)
        bouts = self._bouts(self.lean(), images, labels, self._budget_now(), backward)
        clean = len(images) - sum(len(bout.images) for bout in bouts)
        seen = [images[:clean], *(bout.seen for bout in bouts)]
        logits = classifier.network(torch.cat(seen)).float()
        untouched, *parts = logits.split([len(part) for part in seen])
        lessons = [F.cross_entropy(untouched, labels[:clean], label_smoothing=self.smoothing, reduction="sum")]
        lessons += [bout.lesson(part, self.smoothing) for bout, part in zip(bouts, parts, strict=True)]
        loss = torch.stack(lessons).sum() / len(images)
        classifier.learn(loss, backward)
        for bout in bouts:
            bout.learn(backward)
        self.averaged.update_parameters(classifier.bare)
        self.taken += 1
        if self.renewal and self.taken % self.renewal == 0:
            for sparring in self.mix:
                sparring.start.renew(self.taken // self.renewal)
        attacked = torch.cat([untouched, *(part[-len(bout.images) :] for bout, part in zip(bouts, parts, strict=True))])
        return {"loss": loss, "accuracy_in_training": (attacked.argmax(dim=1) == labels).float().mean()}

    def _bouts(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, budget: Budget, backward: Backward | None
    ) -> list[Bout]:
        """The attacks on a batch, each on its portion; the first images are left clean."""
        counts = portions(len(images), [self.clean, *((1 - self.clean) * each.share for each in self.mix)])
        parts = zip(images.split(counts), labels.split(counts), strict=True)
        next(parts)
        with frozen(classifier):
            return [
                sparring.attack(classifier, part, own, budget, self.loss, backward)
                for sparring, (part, own) in zip(self.mix, parts, strict=True)
                if len(part)
            ]

    def _budget_now(self) -> Budget:
        share = min(1.0, (self.taken + 1) / (self.warmup + 1))
        return Budget(self.budget.norm, self.budget.epsilon * share)

    def judge(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        classifier = self.averaged.module.eval()
        figures = {
            "accuracy": classifier(images).argmax(dim=1) == labels,
            "probe_accuracy": classifier(self.probe(classifier, images, labels)).argmax(dim=1) == labels,
        }
        with frozen(classifier):
            inside = [replace(each, projected=True) for each in self.mix]
            sparred = [each.attack(classifier, images, labels, self.budget, self.loss).adversarial for each in inside]
        withstood = [classifier(adversarial).argmax(dim=1) == labels for adversarial in sparred]
        figures["sparring_accuracy"] = torch.stack(withstood).all(dim=0)
        return figures

    def judged_networks(self) -> list[nn.Module]:
        return [*super().judged_networks(), self.averaged.module]

    def judged(self, figures: Mapping[str, float]) -> None:
        """Keep the weights if they withstood the probe best; where they collapsed, bring back those that did."""
        probe = figures["probe_accuracy"]
        if self.taken < self.warmup:
            return
        fallen = probe < self.best_probe - FALL
        deceived = figures["sparring_accuracy"] - probe > LAG
        if probe > self.best_probe:
            self.best_figures = dict(figures)
            self.best = {name: value.clone() for name, value in self.averaged.module.state_dict().items()}
        if self.watched and (fallen or deceived):
            self._mend("fell" if fallen else "withstands only the attacks it trains with", probe)

    def _mend(self, what: str, probe: float) -> None:
        """Bring back the best weights, if these are not they, and let every attack take one more gradient step."""
        done = []
        if probe < self.best_probe:
            classifier = self.players["classifier"]
            classifier.bare.load_state_dict(self.best)
            self.averaged.module.load_state_dict(self.best)
            classifier.optimizer.state.clear()  # its moments are those of the weights that fell
            done.append(f"back to the weights with {self.best_probe:.1%}")
        growing = [each for each in self.mix if each.steps < MOST_STEPS and self.taken != self.last]
        for sparring in growing:
            sparring.steps += 1
        if growing:
            done.append("gradient steps from now on: " + ", ".join(f"{each.steps} of {each.name}" for each in self.mix))
        told = f"the classifier {what}: {probe:.1%} left under the probe; {'; '.join(done) or 'nothing is left to try'}"
        self.mended.append(f"step {self.taken}: {told}")
        warnings.warn(told, GapWarning, stacklevel=2)

    @property
    def best_probe(self) -> float:
        """The highest accuracy under the probe so far; below 0 where there is none yet."""
        return self.best_figures.get("probe_accuracy", -1.0)

    @torch.no_grad()
    def pictures(self, images: Tensor) -> Mapping[str, Tensor]:
        classifier = self.averaged.module.eval()
        labels = classifier(images).argmax(dim=1)
        with frozen(classifier):
            made = {
                each.name: each.attack(classifier, images, labels, self.budget, self.loss).adversarial
                for each in self.mix
            }
        return {"clean": images, **made}

    def state(self) -> dict[str, Any]:
        return {
            "taken": self.taken,
            "steps": [sparring.steps for sparring in self.mix],
            "averaged": self.averaged.state_dict(),
            "best": self.best,
            "best_figures": self.best_figures,
            "mended": self.mended,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.taken, self.best, self.best_figures = state["taken"], state["best"], state["best_figures"]
        self.mended = state["mended"]
        self.averaged.load_state_dict(state["averaged"])
        for sparring, steps in zip(self.mix, state["steps"], strict=True):
            sparring.steps = steps
