"""What is asked of a drawing. Objectives add and scale like numbers, know their names, and are low where it is good."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from gap.core.errors import GapError


@dataclass(frozen=True)
class Activations:
    """What an objective looks at: the images, N x C x H x W in [0, 1], and the outputs of layers, by name."""

    images: Tensor
    layers: Mapping[str, Tensor]


class Objective(ABC):
    """A value for each image of a look, low where it is good."""

    # The layers that it looks at.
    layers: tuple[str, ...] = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """What summaries call it."""

    @abstractmethod
    def __call__(self, activations: Activations) -> Tensor:
        """N values."""

    def summary(self, activations: Activations) -> str:
        """The name and the mean value; of a sum or a multiple, those of its parts beneath."""
        return f"{self.name}: {self(activations).mean().item():.4g}"

    def __add__(self, other: "Objective") -> "Objective":
        return Sum((*_parts(self), *_parts(other)))

    def __mul__(self, factor: float) -> "Objective":
        return Scaled(self, factor)

    __rmul__ = __mul__

    def __radd__(self, nothing: int) -> "Objective":
        """So that `sum` can begin with its 0."""
        return self if nothing == 0 else NotImplemented


class Sum(Objective):
    """The sum of its parts."""

    name = "sum"

    def __init__(self, parts: tuple[Objective, ...]) -> None:
        self.parts = parts
        self.layers = tuple(dict.fromkeys(layer for part in parts for layer in part.layers))

    def __call__(self, activations: Activations) -> Tensor:
        first, *rest = (part(activations) for part in self.parts)
        return sum(rest, start=first)

    def summary(self, activations: Activations) -> str:
        return "\n".join([super().summary(activations), *(_indented(part.summary(activations)) for part in self.parts)])


class Scaled(Objective):
    """So many times an objective."""

    def __init__(self, part: Objective, factor: float) -> None:
        self.part, self.factor = part, factor
        self.layers = part.layers

    @property
    def name(self) -> str:
        return f"{self.factor:g} x {self.part.name}"

    def __call__(self, activations: Activations) -> Tensor:
        return self.factor * self.part(activations)

    def summary(self, activations: Activations) -> str:
        own, *beneath = self.part.summary(activations).splitlines()
        value = self.part(activations).mean().item()
        return "\n".join([f"{own}, times {self.factor:g}: {self.factor * value:.4g}", *beneath])


class PixelDistance(Objective):
    """The squared L2 distance, in pixels of [0, 1], to pictures N x C x H x W."""

    name = "pixel distance"

    def __init__(self, pictures: Tensor) -> None:
        self.pictures = pictures

    def __call__(self, activations: Activations) -> Tensor:
        return (activations.images - self.pictures).float().square().flatten(1).sum(dim=1)


class TotalVariation(Objective):
    """Total variation: the mean squared difference of neighboring pixels.

    A picture of one row has no neighbors above each other, and that direction adds 0. So it is with one column.
    """

    name = "total variation"

    def __call__(self, activations: Activations) -> Tensor:
        images = activations.images.float()
        return _mean_square(images.diff(dim=2)) + _mean_square(images.diff(dim=3))


def _mean_square(differences: Tensor) -> Tensor:
    """The mean square for each image; 0 where there are no differences."""
    squares = differences.square().flatten(1)
    return squares.sum(dim=1) / max(1, squares.shape[1])


def check_gradients(objective: Objective, activations: Activations) -> None:
    """Raise GapError naming the first part of an objective whose value carries no gradient to the images of a look."""
    match objective:
        case Sum():
            for part in objective.parts:
                check_gradients(part, activations)
        case Scaled():
            check_gradients(objective.part, activations)
        case _ if not objective(activations).requires_grad:
            raise GapError(
                f"{objective.name} passes no gradient to the image: nothing can be drawn with it;"
                " name a layer outside of a checkpoint, or use a network that passes gradients"
            )


def _parts(objective: Objective) -> tuple[Objective, ...]:
    return objective.parts if isinstance(objective, Sum) else (objective,)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
