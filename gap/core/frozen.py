"""A network held still: eval mode, no gradients for its weights, and put back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Hold networks in eval mode with frozen weights; on leaving, each module and weight is as it was before."""
    modules = [(module, module.training) for network in networks for module in network.modules()]
    weights = [(weight, weight.requires_grad) for network in networks for weight in network.parameters()]
    try:
        for network in networks:
            network.eval().requires_grad_(False)
        yield
    finally:
        for module, training in modules:
            module.training = training
        for weight, requires_grad in weights:
            weight.requires_grad_(requires_grad)
