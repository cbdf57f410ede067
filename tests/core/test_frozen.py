import pytest
import torch
from torch import nn

from gap.core.frozen import frozen


def make_partly_frozen() -> nn.Module:
    """A network with some parts in eval mode and some weights frozen."""
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    network[1].eval()
    network[0].bias.requires_grad_(False)
    return network


def modes_and_gradient_flags(network: nn.Module) -> tuple[list[bool], list[bool]]:
    return [module.training for module in network.modules()], [w.requires_grad for w in network.parameters()]


def test_frozen_networks_are_in_eval_mode_and_pass_gradients_to_the_input() -> None:
    first, second = make_partly_frozen(), make_partly_frozen()
    images = torch.rand(3, 2, requires_grad=True)
    with frozen(first, second):
        for network in (first, second):
            assert not any(any(flags) for flags in modes_and_gradient_flags(network))
        second(first(images)).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in first.parameters())
    assert first[1].num_batches_tracked == 0


def test_frozen_exit_restores_the_mode_of_each_module() -> None:
    network = make_partly_frozen()
    before = modes_and_gradient_flags(network)
    with frozen(network):
        pass
    assert modes_and_gradient_flags(network) == before
    with pytest.raises(ZeroDivisionError), frozen(network):
        _ = 1 / 0
    assert modes_and_gradient_flags(network) == before


def test_frozen_nested_or_repeated_network_is_restored() -> None:
    network = make_partly_frozen()
    before = modes_and_gradient_flags(network)
    with frozen(network, network), frozen(network):
        pass
    assert modes_and_gradient_flags(network) == before
