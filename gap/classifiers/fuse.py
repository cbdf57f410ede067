"""A network that is only run, not trained, needs no BatchNorm of its own: it goes into the convolution before it."""

from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from gap.core.frozen import frozen
from gap.core.network import device_of

T = TypeVar("T", bound=nn.Module)


class FusedCopy(Generic[T]):
    """A network and its lean copy: the same function of images N x `channels` x `size` in eval mode, with fewer passes
    over memory. What is not folded is one and the same tensor in both.

    Which norm follows which convolution is seen in one pass over random pixels, and the copy is compared on them.
    Where it is not the same, where a network cannot do without its norms, and where there is nothing to fold, the
    network is its own copy.
    """

    @torch.no_grad()
    def __init__(self, network: T, channels: int, size: tuple[int, int]) -> None:
        self.pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]] = []
        self.lean = network
        device = device_of(network)
        probe = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0)).to(device)
        with frozen(network):
            expected = network(probe)
            names = _find_conv_bn_pairs(network, probe)
            try:
                lean = deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())})
            except Exception:  # a user's network may refuse to be copied, in any way; it stays as it is, only slower
                return
            pairs = _fuse(network, lean, names)
            try:
                found = lean(probe)
            except Exception:  # a user's forward may need its norms and raise anything; it stays as it is, only slower
                return
        if pairs and torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.std())):
            self.lean, self.pairs = lean, pairs

    @torch.no_grad()
    def refresh(self) -> T:
        """The copy, after the network's weights have changed."""
        for convolution, norm, into in self.pairs:
            assert norm.running_mean is not None and norm.running_var is not None and into.bias is not None
            weight, bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            into.weight.copy_(weight)
            into.bias.copy_(bias)
        return self.lean


def fuse_conv_bn(network: T, channels: int, size: tuple[int, int]) -> T:
    """The lean copy of a network that is only run from now on."""
    return FusedCopy(network, channels, size).lean


def _fuse(
    network: nn.Module, lean: nn.Module, names: dict[str, str]
) -> list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]]:
    """Fold norms into convolutions, by their names, in a copy of the network."""
    pairs = []
    for first, second in names.items():
        convolution, norm = network.get_submodule(first), network.get_submodule(second)
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        into = fuse_conv_bn_eval(convolution, norm)
        lean.set_submodule(first, into)
        # timm's norms hold the activation that follows them.
        lean.set_submodule(second, getattr(norm, "act", nn.Identity()))
        pairs.append((convolution, norm, into))
    return pairs


def _find_conv_bn_pairs(network: nn.Module, probe: Tensor) -> dict[str, str]:
    """The names of convolutions and of the norms that take their output as it is, each met once in a pass."""
    made: dict[int, tuple[str, Tensor]] = {}
    pairs: dict[str, str] = {}
    calls: list[str] = []

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append(name)
        if isinstance(module, nn.Conv2d) and not _is_reparametrized(module):
            made[id(output)] = (name, output)
        elif isinstance(module, nn.BatchNorm2d) and module.running_var is not None and id(inputs[0]) in made:
            pairs[made[id(inputs[0])][0]] = name

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: note(name, module, inputs, output))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    try:
        network(probe)
    finally:
        for hook in hooks:
            hook.remove()
    return {first: second for first, second in pairs.items() if calls.count(first) == calls.count(second) == 1}


def _is_reparametrized(convolution: nn.Conv2d) -> bool:
    """Whether its weight is computed anew at each call, as by a spectral or a weight norm."""
    return is_parametrized(convolution) or bool(convolution._forward_pre_hooks)
