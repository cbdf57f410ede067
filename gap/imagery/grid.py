"""Grid search over style weights and sets of layers, with a score for each drawing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from torch import Tensor

from gap.imagery.comparison.methods import PerceptualMetric

# The style weights of the search.
WEIGHTS = (3.0, 30.0, 300.0)


@dataclass(frozen=True, eq=False)
class Trial:
    """A drawing of a search, with its relative distances to content and styles by the metric network."""

    weight: float
    layers: list[str]
    picture: Tensor
    content_distance: float
    style_distance: float

    @property
    def score(self) -> float:
        """The sum of both distances; lower is better."""
        return self.content_distance + self.style_distance


def search(
    draw: Callable[[list[str], float], Tensor],
    judge: PerceptualMetric,
    layers: Sequence[str],
    weights: Sequence[float] = WEIGHTS,
) -> Iterator[Trial]:
    """Call `draw` with each set of `layer_sets` of these layers and each style weight, and yield the trials."""
    for layer_set, weight in product(layer_sets(list(layers)), weights):
        picture = draw(layer_set, weight)
        yield Trial(weight, layer_set, picture, *judge(picture))


def layer_sets(layers: list[str]) -> list[list[str]]:
    """All of the layers, all but the deepest, and all but the shallowest."""
    sets = [layers, layers[:-1], layers[1:]]
    return [layer_set for index, layer_set in enumerate(sets) if layer_set and layer_set not in sets[:index]]
