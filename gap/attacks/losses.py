"""Adversarial losses by name: what an attacker minimizes.

Each loss takes logits under attack (N x K), the clean logits (N x K), and a criterion, and returns N values, one per
image. The criterion holds N classes and says whether to leave them (untargeted: the true labels) or to reach
them (targeted). Everything is computed in float32 or better.

Cross-entropy is written over the margin, softplus(log-sum of the other classes' logits - the class's logit): the
same number, but it keeps its gradient where the usual form rounds to zero at a margin of about 17 in float32.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from gap.attacks.options import CONFIDENCE
from gap.core.errors import unknown_name_error

# Cross-entropy of an untargeted image is not pushed past this; that of a uniform guess over 1,000 classes is 6.9.
CROSS_ENTROPY_CAP = 10.0
# The logarithm of a cross-entropy is taken no lower than at this cross-entropy.
LOG_FLOOR = 1e-6


@dataclass(frozen=True)
class Criterion:
    """`classes` (N integers) to leave, or, when `targeted`, to reach."""

    classes: Tensor
    targeted: bool = False

    def is_adversarial(self, logits: Tensor) -> Tensor:
        """Which of N images the attacker has won, as booleans."""
        predicted = logits.argmax(dim=1)
        return predicted == self.classes if self.targeted else predicted != self.classes


Loss = Callable[[Tensor, Tensor | None, Criterion], Tensor]


def margin(logits: Tensor, clean_logits: Tensor | None, criterion: Criterion, confidence: float = CONFIDENCE) -> Tensor:
    """The logit the attacker wants low minus the best of those it wants high (Carlini and Wagner, 2017), no lower than
    `-confidence`."""
    own, others = _split(logits, criterion)
    gap = others.amax(dim=1) - own if criterion.targeted else own - others.amax(dim=1)
    return gap.clamp_min(-confidence)


def cross_entropy(logits: Tensor, clean_logits: Tensor | None, criterion: Criterion) -> Tensor:
    """Cross-entropy of the target; untargeted, minus that of the label (Madry et al., 2018), without a cap."""
    loss = _cross_entropy(logits, criterion)
    return loss if criterion.targeted else -loss


def capped_cross_entropy(logits: Tensor, clean_logits: Tensor | None, criterion: Criterion) -> Tensor:
    """Cross-entropy of the target; untargeted, minus that of the label, with a cap so that no image runs away."""
    loss = _cross_entropy(logits, criterion)
    return loss if criterion.targeted else -loss.clamp_max(CROSS_ENTROPY_CAP)


def log_cross_entropy(logits: Tensor, clean_logits: Tensor | None, criterion: Criterion) -> Tensor:
    """The logarithm of the cross-entropy (Poursaeed et al., 2018, GAP); targeted, floored so that none runs away."""
    own, others = _split(logits, criterion)
    deficit = others.logsumexp(dim=1) - own
    # log(softplus(x)) is x where x is low; there the logarithm of the rounded value would lose its gradient.
    loss = torch.where(deficit < -15, deficit, F.softplus(deficit.clamp_min(-15)).log())
    return loss.clamp_min(math.log(LOG_FLOOR)) if criterion.targeted else -loss


def relativistic(logits: Tensor, clean_logits: Tensor | None, criterion: Criterion) -> Tensor:
    """Cross-entropy of the change in logits, perturbed minus clean (Naseer et al., 2019), capped as above."""
    if clean_logits is None:
        raise ValueError("the relativistic loss needs the clean logits")
    return capped_cross_entropy(logits.float() - clean_logits.float().detach(), None, criterion)


LOSSES: dict[str, Loss] = {
    "margin": margin,
    "cross-entropy": cross_entropy,
    "capped-cross-entropy": capped_cross_entropy,
    "log-cross-entropy": log_cross_entropy,
    "relativistic": relativistic,
}


def find_loss(loss: str | Loss, confidence: float = CONFIDENCE) -> Loss:
    """The loss of that name, `margin` with that confidence; a function is taken as it is.

    Raises GapError naming the nearest when there is none of that name.
    """
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise unknown_name_error("loss", loss, LOSSES)
    return partial(margin, confidence=confidence) if loss == "margin" else LOSSES[loss]


def needs_clean_logits(loss: Loss) -> bool:
    """Whether a loss may look at the clean logits: the relativistic one does, and a function of the user's own may."""
    return getattr(loss, "func", loss) not in (margin, cross_entropy, capped_cross_entropy, log_cross_entropy)


def _split(logits: Tensor, criterion: Criterion) -> tuple[Tensor, Tensor]:
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    index = criterion.classes.view(-1, 1)
    own = logits.gather(1, index).squeeze(1)
    others = logits.scatter(1, index, float("-inf"))
    return own, others


def _cross_entropy(logits: Tensor, criterion: Criterion) -> Tensor:
    own, others = _split(logits, criterion)
    return F.softplus(others.logsumexp(dim=1) - own)
