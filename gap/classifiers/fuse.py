"""Fusion of batch norms into the convolutions before them, for networks in eval mode."""

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
    """A copy of a network with fused batch norms, `lean`, which is faster in eval mode.

    It has the same outputs for images N x `channels` x `size`. All tensors that are not fused are shared with the
    network.

    One pass over random pixels shows which norm follows which convolution, and the outputs of the copy are compared on
    the same pixels. Where the outputs differ, the copy raises an error or there is nothing to fuse, `lean` is the
    network itself.
    """

    @torch.no_grad()
    def __init__(self, network: T, channels: int, size: tuple[int, int]) -> None:
        self.pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]] = []
        self.lean = network
        device = device_of(network)
        images = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0)).to(device)
        with frozen(network):
            expected = network(images)
            names = _find_conv_bn_pairs(network, images)
            try:
                fused = deepcopy(
                    network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
                )
            except Exception:  # copying a user's network may raise anything; it is then used unfused
                return
            pairs = _fuse(network, fused, names)
            try:
                actual = fused(images)
            except Exception:  # a user's forward may use its norms and raise anything; it is then used unfused
                return
        if pairs and torch.allclose(actual, expected, rtol=1e-3, atol=1e-3 * float(expected.std())):
            self.lean, self.pairs = fused, pairs

    @torch.no_grad()
    def refresh(self) -> T:
        """Update the copy after a change of the network's weights, and return it."""
        for convolution, norm, fused in self.pairs:
            assert norm.running_mean is not None and norm.running_var is not None and fused.bias is not None
            weight, bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            fused.weight.copy_(weight)
            fused.bias.copy_(bias)
        return self.lean


def fuse_conv_bn(network: T, channels: int, size: tuple[int, int]) -> T:
    """A fused copy of a network that is not trained any further."""
    return FusedCopy(network, channels, size).lean


def _fuse(
    network: nn.Module, copied: nn.Module, names: dict[str, str]
) -> list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]]:
    """Fuse norms into convolutions, by their names, in a copy of the network."""
    pairs = []
    for convolution_name, norm_name in names.items():
        convolution, norm = network.get_submodule(convolution_name), network.get_submodule(norm_name)
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        fused = fuse_conv_bn_eval(convolution, norm)
        copied.set_submodule(convolution_name, fused)
        # timm's norms include the activation that follows them.
        copied.set_submodule(norm_name, getattr(norm, "act", nn.Identity()))
        pairs.append((convolution, norm, fused))
    return pairs


def _find_conv_bn_pairs(network: nn.Module, images: Tensor) -> dict[str, str]:
    """The names of convolutions, with those of the norms whose input is their output; all run once in a pass."""
    outputs: dict[int, tuple[str, Tensor]] = {}
    pairs: dict[str, str] = {}
    calls: list[str] = []

    def record(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append(name)
        if isinstance(module, nn.Conv2d) and not _is_reparametrized(module):
            outputs[id(output)] = (name, output)
        elif isinstance(module, nn.BatchNorm2d) and module.running_var is not None and id(inputs[0]) in outputs:
            pairs[outputs[id(inputs[0])][0]] = name

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: record(name, module, inputs, output))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {first: second for first, second in pairs.items() if calls.count(first) == calls.count(second) == 1}


def _is_reparametrized(convolution: nn.Conv2d) -> bool:
    """Whether its weight is computed at each call, as by a spectral or a weight norm."""
    return is_parametrized(convolution) or bool(convolution._forward_pre_hooks)
