"""The threat model: norms, and budgets of a norm and a threshold in pixels of [0, 1].

Every function takes perturbations or images shaped N x C x H x W (any N, C, H, W) and treats the images of a batch
independently. A new norm is a class in this module and an entry in NORMS.
"""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gap.core.errors import GapError, unknown_name_error

# A value this close to the next 8-bit level, in levels, counts as having reached it: k / 255 is not exact in floats.
LEVEL_TOLERANCE = 1e-4
# The raw output of a network is scaled down to this root mean square before the tanh of an Linf bound: tanh would be
# saturated for most pixels, and the gradients of the generator would vanish.
MAX_PRE_TANH_RMS = 4.0
# Clamping to [0, 1] shortens a perturbation. This many times, its other pixels are scaled up to restore its norm.
NORM_RESTORE_ITERATIONS = 2
# The share of the values that a steepest step in L1 changes. The exact steepest step changes one value, and an attack
# would need as many steps as it changes values (Tramer and Boneh, 2019).
L1_SPARSITY = 0.01
TINY = 1e-12


@dataclass(frozen=True)
class Norm(ABC):
    """A norm of perturbations, with the operations that attacks need: projection, steepest direction, sampling.

    `name` is used in budgets, `title` in tables. With `per_value`, the norm bounds every value independently.
    Otherwise, clamping to [0, 1] lowers the norm of the whole perturbation, which other values can restore.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    per_value: ClassVar[bool] = False

    @abstractmethod
    def length(self, perturbation: Tensor) -> Tensor:
        """The norm of each perturbation: N values in pixels of [0, 1]."""

    def smooth_length(self, perturbation: Tensor) -> Tensor:
        """The norm as N x 1 x 1 x 1, above 0 and differentiable everywhere."""
        return self.length(perturbation).add(TINY).view(-1, 1, 1, 1)

    @abstractmethod
    def project(self, perturbation: Tensor, epsilon: float) -> Tensor:
        """The nearest perturbation, in L2, with a norm of at most epsilon."""

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of norm 1 along which a function with this gradient rises fastest; 0 for a gradient of 0."""

    @abstractmethod
    def slope(self, gradient: Tensor) -> Tensor:
        """The slope of a function with this gradient along the steepest direction of norm 1.

        The gradient may have any shape; its D values are the last dimension.
        """

    @abstractmethod
    def sample(self, images: Tensor, epsilon: float) -> Tensor:
        """Random perturbations shaped like the images, uniform in the ball of radius epsilon."""

    @abstractmethod
    def bound(self, raw: Tensor, epsilon: float) -> Tensor:
        """Map a network's unbounded output to a perturbation with a norm below epsilon and arbitrarily close to it."""

    @abstractmethod
    def diameter(self, values: int) -> float:
        """The largest distance between two images of `values` values."""

    @abstractmethod
    def covering_radius(self, values: int) -> float:
        """A radius within which every image can be changed into the same image, that of mid-gray."""

    @abstractmethod
    def longest_l2(self, epsilon: float, values: int) -> float:
        """The largest L2 norm of a perturbation of `values` values whose norm is at most epsilon."""

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
        # Divided by the largest value first: the squares of a small gradient would underflow.
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
        """Soft thresholding: lowers all magnitudes by one amount, to at least 0 (Duchi et al., 2008)."""
        magnitudes = perturbation.flatten(1).abs()
        ordered = magnitudes.sort(dim=1, descending=True).values
        counts = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
        excess = (ordered.cumsum(dim=1) - epsilon) / counts
        support = (ordered > excess).sum(dim=1, keepdim=True).clamp_min(1)
        amount = excess.gather(1, support - 1).clamp_min(0)
        projected = (magnitudes - amount).clamp_min(0).view_as(perturbation) * perturbation.sign()
        # The rounding error of a long sum may leave a norm slightly above epsilon.
        return projected * (epsilon / self.length(projected).clamp_min(TINY)).clamp_max(1).view(-1, 1, 1, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Steps of equal size along the signs of the largest values of the gradient, a share L1_SPARSITY of all."""
        magnitudes = gradient.flatten(1).abs()
        threshold = magnitudes.topk(self._support_size(magnitudes.shape[1]), dim=1).values[:, -1:]
        signs = gradient.sign() * (magnitudes >= threshold).view_as(gradient)
        return signs / self.length(signs).clamp_min(TINY).view(-1, 1, 1, 1)

    def slope(self, gradient: Tensor) -> Tensor:
        return gradient.abs().topk(self._support_size(gradient.shape[-1]), dim=-1).values.mean(dim=-1)

    def sample(self, images: Tensor, epsilon: float) -> Tensor:
        """Exponential magnitudes, normalized together with one additional such value, are uniform in the ball."""
        magnitudes = torch.empty_like(images).exponential_()
        slack = torch.empty(len(images), dtype=images.dtype, device=images.device).exponential_()
        signs = torch.randint(2, images.shape, device=images.device) * 2 - 1
        return epsilon * signs * magnitudes / (self.length(magnitudes) + slack).view(-1, 1, 1, 1)

    def bound(self, raw: Tensor, epsilon: float) -> Tensor:
        length = self.smooth_length(raw)
        return raw * (epsilon * torch.tanh(length / raw[0].numel()) / length)

    def diameter(self, values: int) -> float:
        return float(values)

    def covering_radius(self, values: int) -> float:
        return 0.5 * values

    def longest_l2(self, epsilon: float, values: int) -> float:
        full, remainder = divmod(min(epsilon, values), 1)  # a value changes by 1 at most
        return math.sqrt(full + remainder**2)

    def _support_size(self, values: int) -> int:
        return max(1, round(L1_SPARSITY * values))


LINF, L2, L1 = LinfNorm(), L2Norm(), L1Norm()
NORMS: dict[str, Norm] = {norm.name: norm for norm in (L2, LINF, L1)}


def find_norm(name: str) -> Norm:
    """The norm of that name, in upper or lower case; raises GapError with the most similar name when unknown."""
    if name.lower() not in NORMS:
        raise unknown_name_error("norm", name, NORMS)
    return NORMS[name.lower()]


@dataclass(frozen=True, init=False)
class Budget:
    """The largest perturbation allowed: a norm, or its name, and `epsilon` in pixels of [0, 1].

    Raises GapError when the norm is unknown, or the threshold is not positive and finite, or exceeds 1 for Linf.
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
        """A budget from its text: `linf:8/255`, `linf:0.1`, `l2:2.4`, `l1:12`."""
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
        """Raise GapError when the budget would allow every image of this size."""
        diameter = self.norm.diameter(channels * height * width)
        if not self.norm.per_value and self.epsilon >= diameter:
            raise GapError(
                f"{self} allows every picture of {channels}x{height}x{width} pixels in [0, 1]"
                f" (the largest distance is {diameter:.4g}); was {self.norm}:{self.epsilon:g}/255 meant?"
            )

    def bound(self, raw: Tensor) -> Tensor:
        """Map a network's unbounded output to a perturbation inside the budget that can use all of it.

        Linf: `epsilon * tanh(raw)` per pixel, after `raw` is scaled down to an rms of 4 where it is larger. L2: the
        direction of `raw` with the length `epsilon * tanh(rms(raw))`. L1: the same with the mean magnitude in place of
        the rms. The result is differentiable everywhere, and computed in float32 or float64.
        """
        return self.norm.bound(raw.float() if raw.dtype in (torch.float16, torch.bfloat16) else raw, self.epsilon)

    def apply(self, images: Tensor, raw: Tensor) -> Tensor:
        """The adversarial images of a network's unbounded output: bounded, added, clamped to [0, 1].

        Clamping lowers the norm of an L2 or L1 perturbation. Two iterations scale up the pixels that are not clamped
        to restore it. Linf needs no correction.
        """
        perturbation = self.bound(raw)
        adversarial = (images + perturbation).clamp(0, 1)
        if self.norm.per_value:
            return adversarial
        length = self.norm.smooth_length(perturbation)
        for _ in range(NORM_RESTORE_ITERATIONS):
            clamped = adversarial - images
            scale = length / self.norm.smooth_length(clamped)
            adversarial = (images + clamped * scale).clamp(0, 1)
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
        """The 8-bit adversarial image, as floats k / 255, with every pixel rounded towards the clean image.

        `clean` is rounded to the nearest 8-bit image. The result is inside the budget around that image and inside
        [0, 1], so the saved image is the one that was evaluated.
        """
        clean = to_8bit(clean)
        levels = self.project(adversarial - clean) * 255
        whole = _round_towards_zero(levels, LEVEL_TOLERANCE)
        # Measured in whole levels, which are exact in floats; k / 255 is not.
        exceeds = self.norm_of(whole) > self.epsilon * 255 * (1 + 1e-6)
        return _add_levels(clean, torch.where(exceeds.view(-1, 1, 1, 1), _round_towards_zero(levels, 0.0), whole))


def as_budget(budget: "Budget | str") -> Budget:
    """A Budget, from itself or from its text such as "linf:8/255"."""
    if isinstance(budget, str):
        return Budget.parse(budget)
    if not isinstance(budget, Budget):
        raise GapError(f"a budget is a gap.Budget or text such as linf:8/255, not {budget!r}")
    return budget


def to_8bit(images: Tensor) -> Tensor:
    """The nearest 8-bit images, as floats k / 255 in [0, 1]."""
    return images.clamp(0, 1).mul(255).round_().div_(255)


def quantize_towards(clean: Tensor, adversarial: Tensor) -> Tensor:
    """As `Budget.quantize`, without a budget: 8-bit images, rounded towards the clean image, in [0, 1]."""
    clean = to_8bit(clean)
    return _add_levels(clean, _round_towards_zero((adversarial - clean) * 255, LEVEL_TOLERANCE))


def _round_towards_zero(levels: Tensor, tolerance: float) -> Tensor:
    """Levels rounded towards 0. A value within the tolerance of the next level counts as having reached it."""
    return (levels.abs() + tolerance).floor() * levels.sign()


def _add_levels(clean: Tensor, levels: Tensor) -> Tensor:
    return clean.mul(255).round().add(levels).clamp(0, 255).div(255)
