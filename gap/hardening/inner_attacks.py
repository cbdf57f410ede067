"""Inner attacks of adversarial training: an initializer and some gradient steps, for a share of each batch."""

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
    """An attack during adversarial training.

    With `beta`, the attack maximizes the divergence from the prediction on the clean image, and the classifier's loss
    is the cross-entropy on the clean image plus `beta` times that divergence (TRADES, Zhang et al., 2019).

    Attributes:
        name: its name in metrics and cards.
        share: its share of each batch.
        start: the initializer, which gives the images before the first step.
        steps: the number of gradient steps, which may increase during the training.
        projected: whether steps are projected onto the budget. Without it, they may leave the ball (N-FGSM, de Jorge et
            al., 2022).
        beta: the weight of the divergence; None for attacks on the label.
    """

    name: str
    share: float
    start: Initializer
    steps: int
    projected: bool = True
    beta: float | None = None

    @property
    def step_size(self) -> float:
        """The size of each step, as a share of epsilon.

        Projected steps sum to 1.25, each at least 0.25, so that they can cross the ball. Other steps sum to 1.
        """
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
        """Adversarial images (N x C x H x W in [0, 1]) against a frozen classifier.

        With `backward`, a trainable initializer is updated from the gradient of the first step.

        With `beta`, the classifier runs in float32, also under autocast: in bfloat16 the difference of two nearly equal
        predictions would be rounding noise.
        """
        start = self.start(classifier, images, labels, budget)
        adversarial, clean = start.detach(), None
        in_float32 = torch.autocast(images.device.type, enabled=False)
        with in_float32 if self.beta is not None else nullcontext():
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
    """The images of an inner attack.

    With 0 gradient steps, the initializer is updated later, from the gradient of the classifier's training loss.
    """

    inner_attack: InnerAttack
    images: Tensor
    labels: Tensor
    start: Tensor
    adversarial: Tensor

    @property
    def classifier_inputs(self) -> Tensor:
        """The inputs of the classifier for its loss on these images."""
        return torch.cat([self.images, self.adversarial]) if self.inner_attack.beta is not None else self.adversarial

    def classifier_loss(self, logits: Tensor, label_smoothing: float) -> Tensor:
        """The classifier's loss from its logits of `classifier_inputs`, summed over the images.

        If the initializer is trained on this loss, labels are not smoothed: maximizing a smoothed loss would increase
        the confidence of a very confident classifier.
        """
        beta = self.inner_attack.beta
        if self.adversarial.requires_grad:
            label_smoothing = 0.0
        if beta is None:
            return F.cross_entropy(logits, self.labels, label_smoothing=label_smoothing, reduction="sum")
        clean, adversarial = logits.chunk(2)
        cross_entropy = F.cross_entropy(clean, self.labels, label_smoothing=label_smoothing, reduction="sum")
        return cross_entropy - beta * negative_kl(adversarial, clean, None).sum()

    def update(self, backward: Backward) -> None:
        """Update the initializer from the gradient of the classifier's loss, which the attack maximizes."""
        if self.adversarial.grad is not None:
            self.inner_attack.start.update(self.start, -self.adversarial.grad, backward)


def negative_kl(logits: Tensor, clean_logits: Tensor | None, criterion: Criterion | None) -> Tensor:
    """Minus the KL divergence of each prediction from that on the clean image, in nats: N values of at most 0."""
    assert clean_logits is not None
    clean, adversarial = clean_logits.float().log_softmax(dim=1), logits.float().log_softmax(dim=1)
    return -F.kl_div(adversarial, clean, log_target=True, reduction="none").sum(dim=1)


@dataclass(frozen=True)
class InnerAttackSpec:
    """The parts of an attack's name: its kind, the folder of its generator and its gradient steps, if given."""

    kind: str
    folder: str | None
    steps: int | None

    def __str__(self) -> str:
        """The name in its canonical form."""
        folder = f"@{self.folder}" if self.folder else ""
        return f"{self.kind}{folder}:steps={self.steps}" if self.steps else f"{self.kind}{folder}"


def parse_inner_attack(text: str) -> InnerAttackSpec:
    """`pgd`, `pgd:steps=7`, `generator-start@runs/per-image:steps=3`; raises GapError for an invalid name."""
    kind, at_sign, folder = text.partition("@")
    separator = steps = ""
    if not is_folder(folder):  # the name of an existing folder may contain `:steps=`
        prefix, separator, steps = text.rpartition(":steps=")
        kind, at_sign, folder = (prefix if separator else text).partition("@")
    if ":" in kind:
        raise GapError(f"cannot read the attack {text!r}; write NAME, NAME:steps=3 or NAME@FOLDER:steps=3")
    if kind not in INNER_ATTACKS:
        raise unknown_name_error("attack to train against", kind, INNER_ATTACKS)
    if at_sign and (kind not in FROM_ARTIFACTS or not folder):
        raise GapError(f"only {', '.join(FROM_ARTIFACTS)} come from a folder, as generator-start@runs/per-image")
    if separator and kind not in STEPPING:
        raise GapError(f"only {', '.join(STEPPING)} are given steps, not {kind}")
    if separator and not (re.fullmatch(r"\d{1,9}", steps, re.ASCII) and 1 <= int(steps) <= MAX_INITIAL_STEPS):
        raise GapError(f"the steps of {text!r}, at its end, must be a whole number from 1 to {MAX_INITIAL_STEPS}")
    return InnerAttackSpec(kind, folder or None, int(steps) if separator else None)


def parse_mixture(texts: Sequence[str], others: Sequence[str] = ()) -> dict[str, float]:
    """`["generator-start=0.3", "pgd:steps=7=0.7"]` as shares by name, which sum to 1. The default weight is 1.

    `others` are the names of attack objects of the user, each with weight 1.

    Raises GapError for an invalid name, for two attacks with one name, for a negative weight, and for weights that sum
    to 0.
    """
    weights: dict[str, float] = {}
    for text in texts:
        name_text, weight = _split_weight(text)
        name = str(parse_inner_attack(name_text))
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
    """`pgd=0.5` split into a name and its weight. Names of folders and the option `steps` may have an equals sign."""
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
    """The number of images of each share of `count`: they sum to `count`, with rounding errors below 1."""
    edges = [round(count * sum(shares[: index + 1])) for index in range(len(shares))]
    edges[-1] = count
    return [edge - previous for edge, previous in zip(edges, [0, *edges], strict=False)]


def check_mixture(count: int, clean: float, mixture: dict[str, float]) -> None:
    """Raise GapError where an attack of a mixture would get none of the `count` images of a batch."""
    counts = allocate(count, [clean, *((1 - clean) * share for share in mixture.values())])
    for name, num_images in zip(mixture, counts[1:], strict=True):
        if not num_images:
            raise GapError(
                f"{name} would get none of the {count} images of a batch; give it more weight, or leave it out"
            )
