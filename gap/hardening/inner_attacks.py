"""What the classifier trains against: attacks of a start and a few gradient steps, each with its share of a batch."""

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gap.attacks.gradient import loss_gradient
from gap.attacks.losses import Criterion, Loss
from gap.attacks.steps import projected_step
from gap.core.errors import GapError, unknown_name_error
from gap.core.paths import is_folder
from gap.hardening.initializers import Initializer
from gap.hardening.options import FROM_ARTIFACTS, INNER_ATTACKS, MAX_INITIAL_STEPS, STEPPING
from gap.threat import Budget
from gap.training.task import Backward


@dataclass
class InnerAttack:
    """An attack in training. `share` is its part of each batch; `steps` may grow while training goes on.

    With `beta`, it drives the prediction away from that of the clean image, whatever the label, and what the
    classifier learns from it is to be right on the clean image and, with that weight, to keep that prediction (TRADES,
    Zhang et al., 2019). Where it is not `projected`, steps lead out of the ball (N-FGSM, de Jorge et al., 2022).
    """

    name: str
    share: float
    start: Initializer
    steps: int
    projected: bool = True
    beta: float | None = None

    @property
    def step_size(self) -> float:
        """The size of each step, as a share of epsilon: within the ball one and a quarter in all and no step below a
        quarter, so that steps can cross it; else one in all."""
        return max(0.25, 1.25 / self.steps) if self.projected else 1 / self.steps

    def attack(
        self,
        classifier: nn.Module,
        images: Tensor,
        labels: Tensor,
        budget: Budget,
        loss: Loss,
        backward: Backward | None = None,
    ) -> "AttackBatch":
        """Adversarial images (N x C x H x W in [0, 1]) against a classifier held still; with `backward`, a start that
        learns does so from the first of the gradient steps.

        With `beta`, also where networks multiply in bfloat16, the classifier is looked at in float32: the difference
        of two predictions that are nearly the same would be one of roundings.
        """
        start = self.start(classifier, images, labels, budget)
        adversarial, clean = start.detach(), None
        exactly = torch.autocast(images.device.type, enabled=False)
        with exactly if self.beta is not None else nullcontext():
            if self.beta is not None:
                loss = negative_kl
                with torch.no_grad():
                    clean = classifier(images)
            for step in range(self.steps):
                _, gradient = loss_gradient(classifier, adversarial, clean, Criterion(labels), loss)
                if step == 0 and backward:
                    self.start.update(start, gradient, backward)
                size = self.step_size * budget.epsilon
                if self.projected:
                    adversarial = projected_step(images, adversarial, gradient, size, budget)
                else:
                    adversarial = (adversarial - size * budget.norm.steepest(gradient)).clamp(0, 1)
        adversarial.requires_grad_(self.steps == 0 and backward is not None)
        return AttackBatch(self, images, labels, start, adversarial)


@dataclass
class AttackBatch:
    """The images an attack made. Where it took no gradient step, its start is still to learn from what the classifier's
    own training finds out about them."""

    inner_attack: InnerAttack
    images: Tensor
    labels: Tensor
    start: Tensor
    adversarial: Tensor

    @property
    def classifier_inputs(self) -> Tensor:
        """What the classifier is to look at to learn from these images."""
        return torch.cat([self.images, self.adversarial]) if self.inner_attack.beta is not None else self.adversarial

    def classifier_loss(self, logits: Tensor, label_smoothing: float) -> Tensor:
        """The classifier's loss by its logits of what it saw, summed over the images.

        Where the start learns from this loss, its labels are not smoothed: an attack that followed a smoothed one would
        make a sure classifier surer.
        """
        beta = self.inner_attack.beta
        if self.adversarial.requires_grad:
            label_smoothing = 0.0
        if beta is None:
            return F.cross_entropy(logits, self.labels, label_smoothing=label_smoothing, reduction="sum")
        clean, attacked = logits.chunk(2)
        right = F.cross_entropy(clean, self.labels, label_smoothing=label_smoothing, reduction="sum")
        return right - beta * negative_kl(attacked, clean, None).sum()

    def update(self, backward: Backward) -> None:
        """Learn from the gradient of the classifier's loss by these images, which the attack wants high."""
        if self.adversarial.grad is not None:
            self.inner_attack.start.update(self.start, -self.adversarial.grad, backward)


def negative_kl(logits: Tensor, clean_logits: Tensor | None, criterion: Criterion | None) -> Tensor:
    """Minus the divergence of each prediction from the clean one, in nats: N values, 0 where they are the same."""
    assert clean_logits is not None
    clean, attacked = clean_logits.float().log_softmax(dim=1), logits.float().log_softmax(dim=1)
    return -F.kl_div(attacked, clean, log_target=True, reduction="none").sum(dim=1)


@dataclass(frozen=True)
class InnerAttackSpec:
    """What the name of an attack says: its kind, the folder of its generator and its gradient steps, where it does."""

    kind: str
    folder: str | None
    steps: int | None

    def __str__(self) -> str:
        """The name, the same however it was written."""
        folder = f"@{self.folder}" if self.folder else ""
        return f"{self.kind}{folder}:steps={self.steps}" if self.steps else f"{self.kind}{folder}"


def parse_inner_attack(text: str) -> InnerAttackSpec:
    """`pgd`, `pgd:steps=7`, `generator-start@runs/per-image:steps=3`; raises GapError for what there is not."""
    kind, at, folder = text.partition("@")
    given = steps = ""
    if not is_folder(folder):  # one that exists may be called anything
        head, given, steps = text.rpartition(":steps=")
        kind, at, folder = (head if given else text).partition("@")
    if ":" in kind:
        raise GapError(f"cannot read the attack {text!r}; write NAME, NAME:steps=3 or NAME@FOLDER:steps=3")
    if kind not in INNER_ATTACKS:
        raise unknown_name_error("attack to train against", kind, INNER_ATTACKS)
    if at and (kind not in FROM_ARTIFACTS or not folder):
        raise GapError(f"only {', '.join(FROM_ARTIFACTS)} come from a folder, as generator-start@runs/per-image")
    if given and kind not in STEPPING:
        raise GapError(f"only {', '.join(STEPPING)} are given steps, not {kind}")
    if given and not (re.fullmatch(r"\d{1,9}", steps, re.ASCII) and 1 <= int(steps) <= MAX_INITIAL_STEPS):
        raise GapError(f"the steps of {text!r}, at its end, must be a whole number from 1 to {MAX_INITIAL_STEPS}")
    return InnerAttackSpec(kind, folder or None, int(steps) if given else None)


def parse_mixture(texts: Sequence[str], others: Sequence[str] = ()) -> dict[str, float]:
    """`["generator-start=0.3", "pgd:steps=7=0.7"]` as shares that sum to 1, by name; without a weight it is 1.

    `others` are the names of attacks of the user's own, of weight 1.

    Raises GapError for a name that `parse_inner_attack` does not know, for the name of another attack, a weight below
    0, and weights that sum to 0.
    """
    weights: dict[str, float] = {}
    for text in texts:
        written, weight = _split_weight(text)
        name = str(parse_inner_attack(written))
        if not 0 <= weight < float("inf"):
            raise GapError(f"the weight of `attack` {text!r} must be finite and at least 0")
        weights[name] = weights.get(name, 0.0) + weight
    for name in others:
        if name in weights:
            raise GapError(f"two attacks are named {name!r}; give one of them another `name`")
        weights[name] = 1.0
    total = sum(weights.values())
    if total == 0:
        raise GapError("the weights of the attacks sum to 0; give one of them some, as `attack` generator-start=1")
    return {name: weight / total for name, weight in weights.items() if weight}


def _split_weight(text: str) -> tuple[str, float]:
    """`pgd=0.5` as a name and its weight; a folder may have an equals sign in its name, and steps have one."""
    name, equals, number = text.rpartition("=")
    if not equals or name.endswith(":steps") or is_folder(text.partition("@")[2]):
        return text, 1.0
    try:
        return name, float(number)
    except ValueError as error:
        if "@" in name:
            return text, 1.0
        raise GapError(f"cannot read the weight of `attack` {text!r}; write `attack` {name}=0.5") from error


def allocate(count: int, shares: list[float]) -> list[int]:
    """How many of `count` images each share gets: they sum to `count`, and none is off by 1 or more."""
    edges = [round(count * sum(shares[: index + 1])) for index in range(len(shares))]
    edges[-1] = count
    return [edge - before for edge, before in zip(edges, [0, *edges], strict=False)]


def check_mixture(count: int, clean: float, mixture: dict[str, float]) -> None:
    """Raise GapError where an attack of a mixture would get none of `count` images, and never play."""
    counts = allocate(count, [clean, *((1 - clean) * share for share in mixture.values())])
    for name, portion in zip(mixture, counts[1:], strict=True):
        if not portion:
            raise GapError(
                f"{name} would get none of the {count} images of a batch; give it more weight, or leave it out"
            )
