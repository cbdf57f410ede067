import pytest
import torch
from torch import nn

from gap.core.frozen import frozen


def mixed() -> nn.Module:
    """A network with some parts in eval mode and some weights frozen."""
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    network[1].eval()
    network[0].bias.requires_grad_(False)
    return network


def state(network: nn.Module) -> tuple[list[bool], list[bool]]:
    return [module.training for module in network.modules()], [w.requires_grad for w in network.parameters()]


def test_holds_still_and_lets_gradients_through_to_the_input() -> None:
    one, two = mixed(), mixed()
    images = torch.rand(3, 2, requires_grad=True)
    with frozen(one, two):
        for network in (one, two):
            assert not any(any(each) for each in state(network))
        two(one(images)).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in one.parameters())
    assert one[1].num_batches_tracked == 0


def test_each_part_is_put_back_as_it_was() -> None:
    network = mixed()
    before = state(network)
    with frozen(network):
        pass
    assert state(network) == before
    with pytest.raises(ZeroDivisionError), frozen(network):
        _ = 1 / 0
    assert state(network) == before


def test_nested_and_twice_the_same() -> None:
    network = mixed()
    before = state(network)
    with frozen(network, network), frozen(network):
        pass
    assert state(network) == before
