"""The threat model: norms, and budgets of a norm and a threshold in pixels of [0, 1].

Every function here takes perturbations or images shaped N x C x H x W (any N, C, H, W) and treats each image of the
batch by itself. A new norm is one class here, and its line in NORMS.
"""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gap.core.errors import GapError, unknown_name_error

# A perturbation this near to the next 8-bit level, in levels, has reached it: floats do not hold k / 255 exactly.
LEVEL_TOLERANCE = 1e-4
# A raw output is brought down to this root mean square before the tanh of an Linf bound: further out most pixels would
# stand where tanh is flat, and the network that made them would learn no more.
MAX_PRE_TANH_RMS = 4.0
# How often the length that clamping to [0, 1] cut off a perturbation is given back to the pixels that have room.
NORM_RESTORE_ITERATIONS = 2
# The share of the values that a steepest step in L1 moves. The steepest of all moves one, and would take as many steps
# as there are pixels to move (Tramer and Boneh, 2019).
L1_SPARSITY = 0.01
TINY = 1e-12


@dataclass(frozen=True)
class Norm(ABC):
    """How the size of a perturbation is measured, and what attacks have to know about that.

    `name` is written in budgets, `title` in tables. With `per_value` each value is bounded by itself; else clamping to
    [0, 1] shortens a perturbation as a whole, and other values may make up for it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    per_value: ClassVar[bool] = False

    @abstractmethod
    def length(self, perturbation: Tensor) -> Tensor:
        """The norm of each perturbation: N values in pixels of [0, 1]."""

    def smooth_length(self, perturbation: Tensor) -> Tensor:
        """The same as N x 1 x 1 x 1, above 0 and with a gradient everywhere."""
        return self.length(perturbation).add(TINY).view(-1, 1, 1, 1)

    @abstractmethod
    def project(self, perturbation: Tensor, epsilon: float) -> Tensor:
        """The nearest perturbation, in L2, of a norm of at most epsilon."""

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of norm 1 along which a value of this gradient rises most; 0 where the gradient is 0."""

    @abstractmethod
    def slope(self, gradient: Tensor) -> Tensor:
        """How much a value of this gradient (any shape, of D values in the last dimension) rises along the steepest
        direction of norm 1."""

    @abstractmethod
    def sample(self, images: Tensor, epsilon: float) -> Tensor:
        """Random perturbations shaped like the images, uniform in the ball of radius epsilon."""

    @abstractmethod
    def bound(self, raw: Tensor, epsilon: float) -> Tensor:
        """Map a network's free output to a perturbation of a norm below epsilon, that can come as near as it likes."""

    @abstractmethod
    def diameter(self, values: int) -> float:
        """The largest distance between two images of so many values."""

    @abstractmethod
    def covering_radius(self, values: int) -> float:
        """A radius within which any image can be brought to one and the same."""

    @abstractmethod
    def longest_l2(self, epsilon: float, values: int) -> float:
        """The L2 length of the longest perturbation of so many values and a norm of at most epsilon."""

    def __str__(self) -> str:
        return self.name


class LinfNorm(Norm):
    """The largest absolute value."""

    name, title, per_value = "linf", "Linf", True

    def length(self, perturbation: Tensor) -> Tensor:
        return perturbation.flatten(1).abs().amax(dim=1)

    def project(self, perturbation: Tensor, epsilon: float) -> Tensor:
        return perturbation.clamp(-epsilon, epsilon)

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def slope(self, gradient: Tensor) -> Tensor:
        return gradient.abs().sum(dim=-1)

    def sample(self, images: Tensor, epsilon: float) -> Tensor:
        return torch.empty_like(images).uniform_(-epsilon, epsilon)

    def bound(self, raw: Tensor, epsilon: float) -> Tensor:
        rms = L2.smooth_length(raw) / math.sqrt(raw[0].numel())
        return epsilon * torch.tanh(raw * (MAX_PRE_TANH_RMS / rms).clamp_max(1))

    def diameter(self, values: int) -> float:
        return 1.0

    def covering_radius(self, values: int) -> float:
        return 1.0

    def longest_l2(self, epsilon: float, values: int) -> float:
        return epsilon * math.sqrt(values)


class L2Norm(Norm):
    """The Euclidean length."""

    name, title = "l2", "L2"

    def length(self, perturbation: Tensor) -> Tensor:
        return torch.linalg.vector_norm(perturbation.flatten(1), dim=1)

    def project(self, perturbation: Tensor, epsilon: float) -> Tensor:
        return perturbation * (epsilon / self.length(perturbation).clamp_min(TINY)).clamp_max(1).view(-1, 1, 1, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        # Scaled by the largest value first, or the squares of a small gradient would underflow.
        largest = LINF.length(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
        scaled = gradient / largest.view(-1, 1, 1, 1)
        return scaled / self.length(scaled).clamp_min(TINY).view(-1, 1, 1, 1)

    def slope(self, gradient: Tensor) -> Tensor:
        return gradient.norm(dim=-1)

    def sample(self, images: Tensor, epsilon: float) -> Tensor:
        direction = self.steepest(torch.randn_like(images))
        values = math.prod(images.shape[1:])
        radius = torch.rand(len(images), 1, 1, 1, dtype=images.dtype, device=images.device) ** (1 / values)
        return epsilon * radius * direction

    def bound(self, raw: Tensor, epsilon: float) -> Tensor:
        length = self.smooth_length(raw)
        return raw * (epsilon * torch.tanh(length / math.sqrt(raw[0].numel())) / length)

    def smooth_length(self, perturbation: Tensor) -> Tensor:
        return perturbation.square().sum(dim=(1, 2, 3), keepdim=True).add(TINY).sqrt()

    def diameter(self, values: int) -> float:
        return math.sqrt(values)

    def covering_radius(self, values: int) -> float:
        return 0.5 * math.sqrt(values)

    def longest_l2(self, epsilon: float, values: int) -> float:
        return epsilon


class L1Norm(Norm):
    """The sum of absolute values."""

    name, title = "l1", "L1"

    def length(self, perturbation: Tensor) -> Tensor:
        return perturbation.flatten(1).abs().sum(dim=1)

    def project(self, perturbation: Tensor, epsilon: float) -> Tensor:
        """Shrinks all values by one amount, those below it to 0 (Duchi et al., 2008)."""
        magnitudes = perturbation.flatten(1).abs()
        ordered = magnitudes.sort(dim=1, descending=True).values
        counts = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
        excess = (ordered.cumsum(dim=1) - epsilon) / counts
        kept = (ordered > excess).sum(dim=1, keepdim=True).clamp_min(1)
        amount = excess.gather(1, kept - 1).clamp_min(0)
        shrunk = (magnitudes - amount).clamp_min(0).view_as(perturbation) * perturbation.sign()
        # Rounding of a long sum may leave a little too much.
        return shrunk * (epsilon / self.length(shrunk).clamp_min(TINY)).clamp_max(1).view(-1, 1, 1, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Even steps of the L1_SPARSITY largest values of the gradient, by their signs."""
        magnitudes = gradient.flatten(1).abs()
        least = magnitudes.topk(self._moved(magnitudes.shape[1]), dim=1).values[:, -1:]
        signs = gradient.sign() * (magnitudes >= least).view_as(gradient)
        return signs / self.length(signs).clamp_min(TINY).view(-1, 1, 1, 1)

    def slope(self, gradient: Tensor) -> Tensor:
        return gradient.abs().topk(self._moved(gradient.shape[-1]), dim=-1).values.mean(dim=-1)

    def sample(self, images: Tensor, epsilon: float) -> Tensor:
        """Exponential magnitudes, and one more that takes its part of the length away, have the uniform law."""
        magnitudes = torch.empty_like(images).exponential_()
        rest = torch.empty(len(images), dtype=images.dtype, device=images.device).exponential_()
        signs = torch.randint(2, images.shape, device=images.device) * 2 - 1
        return epsilon * signs * magnitudes / (self.length(magnitudes) + rest).view(-1, 1, 1, 1)

    def bound(self, raw: Tensor, epsilon: float) -> Tensor:
        length = self.smooth_length(raw)
        return raw * (epsilon * torch.tanh(length / raw[0].numel()) / length)

    def diameter(self, values: int) -> float:
        return float(values)

    def covering_radius(self, values: int) -> float:
        return 0.5 * values

    def longest_l2(self, epsilon: float, values: int) -> float:
        moved, rest = divmod(min(epsilon, values), 1)  # a value moves by 1 at most
        return math.sqrt(moved + rest**2)

    def _moved(self, values: int) -> int:
        return max(1, round(L1_SPARSITY * values))


LINF, L2, L1 = LinfNorm(), L2Norm(), L1Norm()
NORMS: dict[str, Norm] = {norm.name: norm for norm in (L2, LINF, L1)}


def find_norm(name: str) -> Norm:
    """The norm of that name, in any case; raises GapError naming the nearest when there is none."""
    if name.lower() not in NORMS:
        raise unknown_name_error("norm", name, NORMS)
    return NORMS[name.lower()]


@dataclass(frozen=True, init=False)
class Budget:
    """The largest perturbation allowed: a norm, or its name, and `epsilon` in pixels of [0, 1].

    Raises GapError when the norm is unknown or the threshold is not a positive number that means something.
    """

    norm: Norm
    epsilon: float

    def __init__(self, norm: Norm | str, epsilon: float) -> None:
        object.__setattr__(self, "norm", find_norm(norm) if isinstance(norm, str) else norm)
        object.__setattr__(self, "epsilon", epsilon)
        if not math.isfinite(self.epsilon) or self.epsilon <= 0:
            raise GapError(f"a budget must be positive and finite, not {self.norm}:{self.epsilon:g}")
        if self.norm.per_value and self.epsilon > 1:
            raise GapError(
                f"{self.norm}:{self.epsilon:g} is past the whole range of a pixel, which is [0, 1];"
                f" was {self.norm}:{self.epsilon:g}/255 meant?"
            )

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read a budget as people write it: `linf:8/255`, `linf:0.1`, `l2:2.4`, `l1:12`."""
        number = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
        match = re.fullmatch(rf"\s*(\w+)\s*:\s*({number})(?:\s*/\s*({number}))?\s*", text)
        if not match:
            raise GapError(f"cannot read the budget {text!r}; write linf:8/255, l2:2.4 or l1:12")
        norm, threshold, divisor = match.groups()
        if divisor is not None and float(divisor) == 0:
            raise GapError(f"cannot read the budget {text!r}: it divides by zero")
        return cls(norm, float(threshold) / float(divisor or 1))

    def __str__(self) -> str:
        levels = self.epsilon * 255
        if self.norm.per_value and abs(levels - round(levels)) < 1e-6 and round(levels, 9) != 255:
            return f"{self.norm}:{round(levels)}/255"
        return f"{self.norm}:{self.epsilon:.6g}"

    def check(self, channels: int, height: int, width: int) -> None:
        """Raise GapError when the budget would allow any picture of this size at all."""
        diameter = self.norm.diameter(channels * height * width)
        if not self.norm.per_value and self.epsilon >= diameter:
            raise GapError(
                f"{self} allows every picture of {channels}x{height}x{width} pixels in [0, 1]"
                f" (the largest distance is {diameter:.4g}); was {self.norm}:{self.epsilon:g}/255 meant?"
            )

    def bound(self, raw: Tensor) -> Tensor:
        """Map a network's free output to a perturbation that cannot exceed the budget and can use all of it.

        Linf: `epsilon * tanh(raw)`, pixel by pixel, of a `raw` whose rms is brought down to 4 where it is larger. L2:
        the direction of `raw`, its length `epsilon * tanh(rms(raw))`. L1: the same with the mean magnitude. There is a
        gradient everywhere. Computed in float32 or better.
        """
        return self.norm.bound(raw.float() if raw.dtype in (torch.float16, torch.bfloat16) else raw, self.epsilon)

    def apply(self, images: Tensor, raw: Tensor) -> Tensor:
        """The adversarial images of a network's free output: bounded, added, clamped to [0, 1].

        Clamping shortens an L2 or L1 perturbation; the pixels that have room are scaled up to restore its norm, in two
        iterations. Linf needs no correction.
        """
        perturbation = self.bound(raw)
        adversarial = (images + perturbation).clamp(0, 1)
        if self.norm.per_value:
            return adversarial
        length = self.norm.smooth_length(perturbation)
        for _ in range(NORM_RESTORE_ITERATIONS):
            kept = adversarial - images
            regain = length / self.norm.smooth_length(kept)
            adversarial = (images + kept * regain).clamp(0, 1)
        return adversarial

    def project(self, perturbation: Tensor) -> Tensor:
        """The nearest perturbation inside the budget."""
        return self.norm.project(perturbation, self.epsilon)

    def sample(self, images: Tensor) -> Tensor:
        """Random perturbations shaped like the images, uniform in the budget's ball."""
        return self.norm.sample(images, self.epsilon)

    def norm_of(self, perturbation: Tensor) -> Tensor:
        """The norm of each perturbation of the batch: N values in pixels of [0, 1]."""
        return self.norm.length(perturbation)

    def quantize(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """The 8-bit picture that will be saved, as floats k / 255: each pixel rounded towards the clean image.

        `clean` is read as the 8-bit picture nearest to it. The result is inside the budget of that picture
        and inside [0, 1]; what is saved is what is scored.
        """
        clean = to_8bit(clean)
        levels = self.project(adversarial - clean) * 255
        whole = _round_towards_zero(levels, LEVEL_TOLERANCE)
        # Measured in whole levels, which floats hold exactly: k / 255 they do not.
        over = self.norm_of(whole) > self.epsilon * 255 * (1 + 1e-6)
        return _add_levels(clean, torch.where(over.view(-1, 1, 1, 1), _round_towards_zero(levels, 0.0), whole))


def as_budget(budget: "Budget | str") -> Budget:
    """A budget, or the text of one such as "linf:8/255"."""
    if isinstance(budget, str):
        return Budget.parse(budget)
    if not isinstance(budget, Budget):
        raise GapError(f"a budget is a gap.Budget or text such as linf:8/255, not {budget!r}")
    return budget


def to_8bit(images: Tensor) -> Tensor:
    """The nearest 8-bit pictures, as floats k / 255 in [0, 1]."""
    return images.clamp(0, 1).mul(255).round_().div_(255)


def quantize_towards(clean: Tensor, adversarial: Tensor) -> Tensor:
    """As `Budget.quantize` where there is no budget: 8-bit, rounded towards the clean image, in [0, 1]."""
    clean = to_8bit(clean)
    return _add_levels(clean, _round_towards_zero((adversarial - clean) * 255, LEVEL_TOLERANCE))


def _round_towards_zero(levels: Tensor, tolerance: float) -> Tensor:
    """Levels rounded towards 0, those within the tolerance of the next one counted as having reached it."""
    return (levels.abs() + tolerance).floor() * levels.sign()


def _add_levels(clean: Tensor, levels: Tensor) -> Tensor:
    return clean.mul(255).round().add(levels).clamp(0, 255).div(255)
