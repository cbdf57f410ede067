"""Objectives of drawings, which are minimized. They can be added and scaled, and have names."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from gap.core.errors import GapError


@dataclass(frozen=True)
class Activations:
    """The inputs of objectives: the images, N x C x H x W in [0, 1], and the outputs of layers by name."""

    images: Tensor
    layers: Mapping[str, Tensor]


class Objective(ABC):
    """A function from Activations to N values, one for each image, to be minimized."""

    # The layers that it uses.
    layers: tuple[str, ...] = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in summaries."""

    @abstractmethod
    def __call__(self, activations: Activations) -> Tensor:
        """N values."""

    def summary(self, activations: Activations) -> str:
        """The name and the mean value; for sums and multiples also those of their parts, on further lines."""
        return f"{self.name}: {self(activations).mean().item():.4g}"

    def __add__(self, other: "Objective") -> "Objective":
        return Sum((*_parts(self), *_parts(other)))

    def __mul__(self, factor: float) -> "Objective":
        return Scaled(self, factor)

    __rmul__ = __mul__

    def __radd__(self, nothing: int) -> "Objective":
        """Support `sum`, which begins with 0."""
        return self if nothing == 0 else NotImplemented


class Sum(Objective):
    """The sum of its parts."""

    name = "sum"

    def __init__(self, parts: tuple[Objective, ...]) -> None:
        self.parts = parts
        self.layers = tuple(dict.fromkeys(layer for part in parts for layer in part.layers))

    def __call__(self, activations: Activations) -> Tensor:
        first, *others = (part(activations) for part in self.parts)
        return sum(others, start=first)

    def summary(self, activations: Activations) -> str:
        return "\n".join([super().summary(activations), *(_indented(part.summary(activations)) for part in self.parts)])


class Scaled(Objective):
    """An objective times a factor."""

    def __init__(self, part: Objective, factor: float) -> None:
        self.part, self.factor = part, factor
        self.layers = part.layers

    @property
    def name(self) -> str:
        return f"{self.factor:g} x {self.part.name}"

    def __call__(self, activations: Activations) -> Tensor:
        return self.factor * self.part(activations)

    def summary(self, activations: Activations) -> str:
        first_line, *lines = self.part.summary(activations).splitlines()
        value = self.part(activations).mean().item()
        return "\n".join([f"{first_line}, times {self.factor:g}: {self.factor * value:.4g}", *lines])


class PixelDistance(Objective):
    """The squared L2 distance, in pixels of [0, 1], to images N x C x H x W."""

    name = "pixel distance"

    def __init__(self, pictures: Tensor) -> None:
        self.pictures = pictures

    def __call__(self, activations: Activations) -> Tensor:
        return (activations.images - self.pictures).float().square().flatten(1).sum(dim=1)


class TotalVariation(Objective):
    """Total variation: the mean squared difference of neighboring pixels.

    In an image of a single row or column, the direction without neighbors contributes 0.
    """

    name = "total variation"

    def __call__(self, activations: Activations) -> Tensor:
        images = activations.images.float()
        return _mean_square(images.diff(dim=2)) + _mean_square(images.diff(dim=3))


def _mean_square(differences: Tensor) -> Tensor:
    """The mean square for each image; 0 for an empty tensor."""
    squares = differences.square().flatten(1)
    return squares.sum(dim=1) / max(1, squares.shape[1])


def check_gradients(objective: Objective, activations: Activations) -> None:
    """Raise GapError, naming the first part of an objective whose value has no gradient with respect to the images."""
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
