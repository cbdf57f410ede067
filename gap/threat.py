"""Budgets: a norm and a threshold in pixels of [0, 1], and what can be done with them.

Every function here takes perturbations or images shaped N x C x H x W (any N, C, H, W) and treats each
image of the batch by itself.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from gap.core.errors import GapError

Norm = Literal["linf", "l2"]

# A perturbation this near to the next 8-bit level, in levels, has reached it: floats do not hold k / 255 exactly.
LEVEL_TOLERANCE = 1e-4
# A raw output is brought down to this root mean square before the tanh of an Linf bound: further out most pixels would
# stand where tanh is flat, and the network that made them would learn no more.
SATURATION = 4.0
# How often the length that clamping to [0, 1] cut off an L2 perturbation is given back to the pixels that have room.
REGAINED = 2


@dataclass(frozen=True)
class Budget:
    """The largest perturbation allowed: `norm` is "linf" or "l2", `epsilon` is in pixels of [0, 1].

    Raises GapError when the norm is unknown or the threshold is not a positive number that means something.
    """

    norm: Norm
    epsilon: float

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise GapError(f"unknown norm {self.norm!r} in a budget; use linf or l2")
        if not math.isfinite(self.epsilon) or self.epsilon <= 0:
            raise GapError(f"a budget must be positive and finite, not {self.norm}:{self.epsilon:g}")
        if self.norm == "linf" and self.epsilon > 1:
            raise GapError(
                f"linf:{self.epsilon:g} is past the whole range of a pixel, which is [0, 1];"
                f" was linf:{self.epsilon:g}/255 meant?"
            )

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read a budget as people write it: `linf:8/255`, `linf:0.1`, `l2:2.4`."""
        number = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
        match = re.fullmatch(rf"\s*(\w+)\s*:\s*({number})(?:\s*/\s*({number}))?\s*", text)
        if not match:
            raise GapError(f"cannot read the budget {text!r}; write linf:8/255 or l2:2.4")
        norm, threshold, divisor = match.groups()
        if divisor is not None and float(divisor) == 0:
            raise GapError(f"cannot read the budget {text!r}: it divides by zero")
        return cls(cast(Norm, norm.lower()), float(threshold) / float(divisor or 1))

    def __str__(self) -> str:
        levels = self.epsilon * 255
        if self.norm == "linf" and abs(levels - round(levels)) < 1e-6 and round(levels, 9) != 255:
            return f"linf:{round(levels)}/255"
        return f"{self.norm}:{self.epsilon:.6g}"

    def check(self, channels: int, height: int, width: int) -> None:
        """Raise GapError when the budget would allow any picture of this size at all."""
        diameter = math.sqrt(channels * height * width)
        if self.norm == "l2" and self.epsilon >= diameter:
            raise GapError(
                f"{self} allows every picture of {channels}x{height}x{width} pixels in [0, 1]"
                f" (the largest distance is {diameter:.4g}); was l2:{self.epsilon:g}/255 meant?"
            )

    def bound(self, raw: Tensor) -> Tensor:
        """Map a network's free output to a perturbation that cannot exceed the budget and can use all of it.

        Linf: `epsilon * tanh(raw)`, pixel by pixel, of a `raw` whose rms is brought down to 4 where it is larger. L2:
        the direction of `raw`, its length `epsilon * tanh(rms(raw))`. There is a gradient everywhere. Computed in
        float32 or better.
        """
        raw = raw.float() if raw.dtype in (torch.float16, torch.bfloat16) else raw
        length = raw.square().sum(dim=(1, 2, 3), keepdim=True).add(1e-12).sqrt()
        rms = length / math.sqrt(raw[0].numel())
        if self.norm == "linf":
            return self.epsilon * torch.tanh(raw * (SATURATION / rms).clamp_max(1))
        return raw * (self.epsilon * torch.tanh(rms) / length)

    def perturb(self, images: Tensor, raw: Tensor) -> Tensor:
        """The adversarial images of a network's free output: bounded, added, clamped to [0, 1].

        Clamping cuts off what leaves the range of a pixel. Under L2 the length it cut is given back, twice over,
        to the other pixels; under Linf there is nothing to give back.
        """
        perturbation = self.bound(raw)
        adversarial = (images + perturbation).clamp(0, 1)
        if self.norm == "linf":
            return adversarial
        length = perturbation.square().sum(dim=(1, 2, 3), keepdim=True).add(1e-12).sqrt()
        for _ in range(REGAINED):
            kept = adversarial - images
            regain = length / kept.square().sum(dim=(1, 2, 3), keepdim=True).add(1e-12).sqrt()
            adversarial = (images + kept * regain).clamp(0, 1)
        return adversarial

    def project(self, perturbation: Tensor) -> Tensor:
        """The nearest perturbation inside the budget."""
        if self.norm == "linf":
            return perturbation.clamp(-self.epsilon, self.epsilon)
        length = self.measure(perturbation).clamp_min(1e-12)
        return perturbation * (self.epsilon / length).clamp_max(1).view(-1, 1, 1, 1)

    def measure(self, perturbation: Tensor) -> Tensor:
        """The norm of each perturbation of the batch: N values in pixels of [0, 1]."""
        return measure(perturbation, self.norm)

    def quantise(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """The 8-bit picture that will be saved, as floats k / 255: each pixel rounded towards the clean image.

        `clean` is read as the 8-bit picture nearest to it. The result is inside the budget of that picture
        and inside [0, 1]; what is saved is what is scored.
        """
        clean = to_8bit(clean)
        levels = self.project(adversarial - clean) * 255
        whole = _whole(levels, LEVEL_TOLERANCE)
        # Measured in whole levels, which floats hold exactly: k / 255 they do not.
        over = self.measure(whole) > self.epsilon * 255 * (1 + 1e-6)
        return _add_levels(clean, torch.where(over.view(-1, 1, 1, 1), _whole(levels, 0.0), whole))


def to_8bit(images: Tensor) -> Tensor:
    """The nearest 8-bit pictures, as floats k / 255 in [0, 1]."""
    return images.clamp(0, 1).mul(255).round_().div_(255)


def quantise_towards(clean: Tensor, adversarial: Tensor) -> Tensor:
    """As `Budget.quantise` where there is no budget: 8-bit, rounded towards the clean image, in [0, 1]."""
    clean = to_8bit(clean)
    return _add_levels(clean, _whole((adversarial - clean) * 255, LEVEL_TOLERANCE))


def measure(perturbation: Tensor, norm: Norm) -> Tensor:
    """The "linf" or "l2" norm of each perturbation of an N x C x H x W batch, as N values."""
    flat = perturbation.flatten(1)
    if norm == "linf":
        return flat.abs().amax(dim=1)
    return torch.linalg.vector_norm(flat, dim=1)


def _whole(levels: Tensor, tolerance: float) -> Tensor:
    """Levels rounded towards 0, those within the tolerance of the next one counted as having reached it."""
    return (levels.abs() + tolerance).floor() * levels.sign()


def _add_levels(clean: Tensor, levels: Tensor) -> Tensor:
    return clean.mul(255).round().add(levels).clamp(0, 255).div(255)
