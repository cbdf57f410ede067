"""What is asked of a drawing. Objectives add and scale like numbers, know their names, and are low where it is good."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Look:
    """What an objective looks at: the images, N x C x H x W in [0, 1], and the network's logits of them, N x K."""

    images: Tensor
    logits: Tensor


class Objective(ABC):
    """A value for each image of a look, low where it is good."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called where it is told."""

    @abstractmethod
    def __call__(self, look: Look) -> Tensor:
        """N values."""

    def told(self, look: Look) -> str:
        """The name and the mean value; of a sum or a multiple, those of its parts beneath."""
        return f"{self.name}: {self(look).mean().item():.4g}"

    def __add__(self, other: "Objective") -> "Objective":
        return Sum((self, other))

    def __mul__(self, factor: float) -> "Objective":
        return Multiple(self, factor)

    __rmul__ = __mul__


@dataclass(frozen=True)
class Sum(Objective):
    """The sum of its parts."""

    parts: tuple[Objective, ...]
    name = "sum"

    def __call__(self, look: Look) -> Tensor:
        first, *rest = (part(look) for part in self.parts)
        return sum(rest, start=first)

    def told(self, look: Look) -> str:
        return "\n".join([super().told(look), *(_indented(part.told(look)) for part in self.parts)])


@dataclass(frozen=True)
class Multiple(Objective):
    """So many times an objective."""

    part: Objective
    factor: float

    @property
    def name(self) -> str:
        return f"{self.factor:g} x {self.part.name}"

    def __call__(self, look: Look) -> Tensor:
        return self.factor * self.part(look)

    def told(self, look: Look) -> str:
        return "\n".join([super().told(look), _indented(self.part.told(look))])


@dataclass(frozen=True)
class Logit(Objective):
    """Minus the logit, before any softmax, of a class for each image (N integers)."""

    classes: Tensor
    name = "class logit"

    def __call__(self, look: Look) -> Tensor:
        return -look.logits.float().gather(1, self.classes.view(-1, 1)).squeeze(1)


@dataclass(frozen=True)
class Leash(Objective):
    """The squared L2 distance, in pixels of [0, 1], to pictures N x C x H x W."""

    pictures: Tensor
    name = "leash"

    def __call__(self, look: Look) -> Tensor:
        return (look.images - self.pictures).float().square().flatten(1).sum(dim=1)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
