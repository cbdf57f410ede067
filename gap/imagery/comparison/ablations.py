"""Ablations of a backbone: methods that test other explanations of why it draws well."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace

import torch

from gap.classifiers.classifier import Classifier
from gap.core.errors import GapError, unknown_name_error
from gap.imagery.backbone import default_content_layers, default_layers
from gap.imagery.options import StyleTransferOptions


@dataclass(frozen=True, eq=False)
class StylizationMethod:
    """A method of stylization: a backbone with its options, and a name."""

    name: str
    backbone: Classifier
    options: StyleTransferOptions


def smoothed_activations(method: StylizationMethod) -> StylizationMethod:
    """The method with activations smoothed by a softmax (SWAG, Wang et al., 2021)."""
    return replace(method, options=method.options.model_copy(update={"smooth_activations": True}))


def shallow_layers(method: StylizationMethod) -> StylizationMethod:
    """The method with only the first half of its style layers, and with content layers among these."""
    layers = list(method.options.layers or default_layers(method.backbone))
    first_half = layers[: max(1, len(layers) // 2)]
    all_content_layers = list(method.options.content_layers or default_content_layers(method.backbone))
    content_layers = [layer for layer in all_content_layers if layer in first_half] or first_half[-1:]
    options = method.options.model_copy(update={"layers": first_half, "content_layers": content_layers})
    return replace(method, options=options)


def random_weights(method: StylizationMethod, seed: int = 0) -> StylizationMethod:
    """The method with random weights; raises GapError where some weights cannot be reinitialized."""
    backbone = deepcopy(method.backbone)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in backbone.modules():
            parameters = list(module.parameters(recurse=False))
            reset = getattr(module, "reset_parameters", None)
            if parameters and not callable(reset):
                raise GapError(f"{method.name} has weights that cannot be drawn anew ({type(module).__name__})")
            if callable(reset):
                reset()
    return replace(method, backbone=backbone.eval())


ABLATIONS: dict[str, Callable[[StylizationMethod], StylizationMethod]] = {
    "smoothed": smoothed_activations,
    "shallow": shallow_layers,
    "random": random_weights,
}


def ablated(method: StylizationMethod, kind: str) -> StylizationMethod:
    """A method by the name of its ablation; raises GapError for an unknown one."""
    if kind not in ABLATIONS:
        raise unknown_name_error("ablation", kind, ABLATIONS)
    return replace(ABLATIONS[kind](method), name=f"{method.name} {kind}")
