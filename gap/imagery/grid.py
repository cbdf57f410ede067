"""The small search of the articles: a few style weights and sets of layers, the best chosen by a score."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from torch import Tensor

from gap.imagery.comparison.methods import PerceptualMetric

WEIGHTS = (3.0, 30.0, 300.0)


@dataclass(frozen=True, eq=False)
class Trial:
    """One drawing of a search, and how far it is from content and styles as the judge sees them (shares)."""

    weight: float
    layers: list[str]
    picture: Tensor
    content_distance: float
    style_distance: float

    @property
    def score(self) -> float:
        """The sum of both distances: the least is the best."""
        return self.content_distance + self.style_distance


def search(
    draw: Callable[[list[str], float], Tensor],
    judge: PerceptualMetric,
    layers: Sequence[str],
    weights: Sequence[float] = WEIGHTS,
) -> Iterator[Trial]:
    """Draw once for each of `layer_sets` of these layers, and each style weight; `draw` takes both."""
    for chosen, weight in product(layer_sets(list(layers)), weights):
        picture = draw(chosen, weight)
        yield Trial(weight, chosen, picture, *judge(picture))


def layer_sets(layers: list[str]) -> list[list[str]]:
    """All of the layers, all but the deepest, and all but the shallowest."""
    sets = [layers, layers[:-1], layers[1:]]
    return [each for place, each in enumerate(sets) if each and each not in sets[:place]]
