"""Other explanations of why a backbone draws well, made ready to draw beside it."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace

import torch

from gap.classifiers.classifier import Classifier
from gap.core.errors import GapError, unknown
from gap.imagery.backbone import default_content_layers, default_layers
from gap.imagery.style_transfer import Manner


@dataclass(frozen=True, eq=False)
class Painter:
    """What draws: a backbone and its manner, under a name."""

    name: str
    backbone: Classifier
    manner: Manner


def smoothed(painter: Painter) -> Painter:
    """The same with the peaks of its layers' outputs smoothed by a softmax (SWAG, Wang et al., 2021)."""
    return replace(painter, manner=replace(painter.manner, smoothed=True))


def shallow(painter: Painter) -> Painter:
    """The same looking at the first half of its layers only; content too, where that is read in one of them."""
    layers = list(painter.manner.layers or default_layers(painter.backbone))
    half = layers[: max(1, len(layers) // 2)]
    content = list(painter.manner.content_layers or default_content_layers(painter.backbone))
    kept = [layer for layer in content if layer in half] or half[-1:]
    return replace(painter, manner=replace(painter.manner, layers=half, content_layers=kept))


def random(painter: Painter, seed: int = 0) -> Painter:
    """The same network with weights that have learned nothing; raises GapError where some cannot be drawn anew."""
    backbone = deepcopy(painter.backbone)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in backbone.modules():
            own = list(module.parameters(recurse=False))
            reset = getattr(module, "reset_parameters", None)
            if own and not callable(reset):
                raise GapError(f"{painter.name} has weights that cannot be drawn anew ({type(module).__name__})")
            if callable(reset):
                reset()
    return replace(painter, backbone=backbone.eval())


ABLATIONS: dict[str, Callable[[Painter], Painter]] = {"smoothed": smoothed, "shallow": shallow, "random": random}


def ablated(painter: Painter, kind: str) -> Painter:
    """A painter by the name of its ablation; raises GapError for an unknown one."""
    if kind not in ABLATIONS:
        raise unknown("ablation", kind, ABLATIONS)
    return replace(ABLATIONS[kind](painter), name=f"{painter.name} {kind}")
