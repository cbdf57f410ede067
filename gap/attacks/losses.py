"""Adversarial losses by name, which attacks minimize.

A loss takes adversarial logits (N x K), clean logits (N x K) and a criterion, and returns N values, one per image. The
criterion has N classes: those to be misclassified from (untargeted: the true labels) or those to reach (targeted).
Everything is computed in float32 or float64.

Cross-entropy is computed as softplus(log-sum-exp of the other logits - the logit of the class). The value is the same
as that of the usual form, which rounds to zero and loses its gradient at a margin of about 17 in float32.
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

# The cap on the cross-entropy of an untargeted attack. A uniform guess over 1,000 classes has one of 6.9.
CROSS_ENTROPY_CAP = 10.0
# The smallest cross-entropy of which the logarithm is taken.
LOG_FLOOR = 1e-6


@dataclass(frozen=True)
class Criterion:
    """`classes` (N integers) that must not be predicted, or, when `targeted`, that must be predicted."""

    classes: Tensor
    targeted: bool = False

    def is_adversarial(self, logits: Tensor) -> Tensor:
        """N booleans: which images meet the criterion."""
        predicted = logits.argmax(dim=1)
        return predicted == self.classes if self.targeted else predicted != self.classes


Loss = Callable[[Tensor, Tensor | None, Criterion], Tensor]


def margin(logits: Tensor, clean_logits: Tensor | None, criterion: Criterion, confidence: float = CONFIDENCE) -> Tensor:
    """The logit of the label minus the largest other logit, at least `-confidence` (Carlini and Wagner, 2017).

    Targeted, it is the largest other logit minus that of the target.
    """
    own, others = _split(logits, criterion)
    gap = others.amax(dim=1) - own if criterion.targeted else own - others.amax(dim=1)
    return gap.clamp_min(-confidence)


def cross_entropy(logits: Tensor, clean_logits: Tensor | None, criterion: Criterion) -> Tensor:
    """Cross-entropy of the target; untargeted, minus that of the label (Madry et al., 2018), without a cap."""
    loss = _cross_entropy(logits, criterion)
    return loss if criterion.targeted else -loss


def capped_cross_entropy(logits: Tensor, clean_logits: Tensor | None, criterion: Criterion) -> Tensor:
    """Cross-entropy of the target; untargeted, minus that of the label, capped so that no image dominates."""
    loss = _cross_entropy(logits, criterion)
    return loss if criterion.targeted else -loss.clamp_max(CROSS_ENTROPY_CAP)


def log_cross_entropy(logits: Tensor, clean_logits: Tensor | None, criterion: Criterion) -> Tensor:
    """The logarithm of the cross-entropy (Poursaeed et al., 2018, GAP); targeted, with a floor for the same reason."""
    own, others = _split(logits, criterion)
    deficit = others.logsumexp(dim=1) - own
    # log(softplus(x)) is x for low x, where the logarithm of the rounded softplus has no gradient.
    loss = torch.where(deficit < -15, deficit, F.softplus(deficit.clamp_min(-15)).log())
    return loss.clamp_min(math.log(LOG_FLOOR)) if criterion.targeted else -loss


def relativistic(logits: Tensor, clean_logits: Tensor | None, criterion: Criterion) -> Tensor:
    """Capped cross-entropy of the change in logits, adversarial minus clean (Naseer et al., 2019)."""
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
    """The loss of that name, for `margin` with that confidence; a function is returned unchanged.

    Raises GapError with the most similar name when the name is unknown.
    """
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise unknown_name_error("loss", loss, LOSSES)
    return partial(margin, confidence=confidence) if loss == "margin" else LOSSES[loss]


def needs_clean_logits(loss: Loss) -> bool:
    """Whether a loss may use the clean logits: the relativistic loss does, and a function of the user may."""
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
