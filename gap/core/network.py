"""Calls of networks that the user wrote: copies of the images, logits, devices and errors."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gap.core.errors import GapError, first_line, is_out_of_memory

# From so many input channels on, strided convolutions of one pixel are safe: the block of oneDNN with AVX-512.
SAFE_INPUT_CHANNELS = 16
NetworkT = TypeVar("NetworkT", bound=nn.Module)


class NetworkError(GapError):
    """A network raised an error, which is the cause of this one."""


def run_network(network: Callable[[Tensor], Any], images: Tensor, name: str | None = None) -> Tensor:
    """The logits, N x K, of a network for images N x C x H x W.

    The network may change the images in place: pass a copy where they are still needed. `name` is the name of the
    network in errors, by default its class. Raises NetworkError where the network raises an error, and GapError where
    its output has no logits.
    """
    name = name or type(network).__name__
    try:
        output = network(images)
    except (GapError, MemoryError):
        raise
    except Exception as error:  # a foreign forward may raise anything
        if is_out_of_memory(error):
            raise
        shape = "x".join(map(str, images.shape[1:]))
        count = "one image" if len(images) == 1 else f"{len(images)} images"
        raise NetworkError(
            f"{name} fails on {count} of {shape}: {type(error).__name__}: {first_line(error)}"
        ) from error
    return take_logits(output, images, name)


def call(network: nn.Module, images: Tensor) -> Tensor:
    """The logits of any network, for a contiguous copy of the images, which the network may change in place."""
    if getattr(network, "copies_images", False):
        return run_network(network, images)
    return run_network(network, images.clone(memory_format=torch.contiguous_format))


def check_images(images: Tensor) -> None:
    """Raise GapError unless images are floats in [0, 1], N x C x H x W."""
    if images.ndim != 4 or not images.is_floating_point():
        raise GapError(f"images are floats, N x C x H x W, not {images.dtype} of the shape {tuple(images.shape)}")
    if len(images) and not (images.min() >= -1e-4 and images.max() <= 1 + 1e-4):
        raise GapError(
            f"images are in [0, 1], and these go from {images.min():.3g} to {images.max():.3g}; give normalization to"
            " the classifier: gap.Classifier(model, mean=..., std=...)"
        )


def take_logits(output: Any, images: Tensor, name: str) -> Tensor:
    """The logits in the output of a network for images.

    They are the output itself, its attribute or key `logits`, or the first item of a tuple or list. Where a network
    squeezes the batch dimension of one image away, it is added again. Raises GapError for any other output.
    """
    logits = output
    if isinstance(logits, Mapping):
        logits = logits.get("logits", logits)
    elif not isinstance(logits, Tensor):
        logits = getattr(logits, "logits", logits)
    if isinstance(logits, tuple | list) and logits:
        logits = logits[0]
    if not isinstance(logits, Tensor):
        raise GapError(
            f"{name} returns a {type(output).__name__} without logits; return a tensor, an object with .logits,"
            ' a dictionary with "logits", or a tuple whose first part they are'
        )
    if logits.ndim == 1 and len(images) == 1:
        return logits[None]
    return logits


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's first parameter or buffer; the CPU where it has neither."""
    for tensors in (network.parameters(), network.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def is_on(network: nn.Module, device: torch.device | str) -> bool:
    """Whether a network is on that device; "cuda" is the current one of several."""
    return device_of(network) == torch.empty(0, device=device).device


def has_unsafe_convolution(network: nn.Module) -> bool:
    """Whether a convolution of a network writes outside of its memory on the CPU when it learns in channels last.

    That are strided convolutions of one pixel and few input channels, such as the first ones of RepVGG: their weight
    gradients are wrong, or the process ends (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    return device_of(network).type == "cpu" and any(
        module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and 1 < module.in_channels // module.groups < SAFE_INPUT_CHANNELS
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    )


def to_channels_last(network: NetworkT) -> NetworkT:
    """The network itself, in channels last; where its convolutions are unsafe there, its inputs become contiguous."""
    if not has_unsafe_convolution(network):
        return network.to(memory_format=torch.channels_last)
    network.register_forward_pre_hook(_with_contiguous_inputs)
    return network


def _with_contiguous_inputs(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(images.contiguous() for images in inputs)


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load tensors by their names; the other tensors of the network stay unchanged.

    The tensors are put into the network's own state dict, because that also holds the versions of its modules: some
    networks of torchvision do not load a state dict without them.
    """
    state = network.state_dict()
    state.update(weights)
    network.load_state_dict(state)


@contextmanager
def output_types(network: nn.Module) -> Iterator[list[type]]:
    """A list that collects the type of the network's output at each call inside the block.

    It stays empty for a TorchScript network, which supports no hooks and has a declared output type.
    """
    types: list[type] = []
    if isinstance(network, torch.jit.ScriptModule):
        yield types
        return
    hook = network.register_forward_hook(lambda module, inputs, output: types.append(type(output)))
    try:
        yield types
    finally:
        hook.remove()
