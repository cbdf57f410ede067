"""Tensors from files that anyone may have written: nothing in them is run, and what cannot be weights is refused."""

import io
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gap.core.errors import GapError, first_line
from gap.core.network import load_weights

# What readers raise at a file that is cut short, damaged or no checkpoint at all: flipped bytes bring out each of them.
READ_ERRORS = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
    SafetensorError,
)
# What modules keep in a state dict besides tensors.
EXTRA = "_extra_state"
# What norms count, and what checkpoints older than torch 0.4.1 do not have.
BATCH_COUNTER = "num_batches_tracked"
# What to do about a file of somebody else's whose values cannot be weights.
SAVE_AGAIN = "download it or save it again, or take an earlier checkpoint"


class DamagedError(GapError):
    """A file that is cut short, damaged, or no checkpoint at all."""


def load_untrusted(path: Path) -> Any:
    """The tensors and plain values in a file, on the CPU; nothing in it is run.

    Raises DamagedError for a file that is no whole checkpoint, GapError for one that cannot be read from disk or held
    in memory, and UnpicklingError for a pickle of more than tensors and plain values.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GapError(f"cannot read {path}: {error.strerror}") from error
    except MemoryError as error:
        raise GapError(f"{path} asks for more memory than there is") from error
    try:
        if path.suffix == ".safetensors":
            return dict(sorted(safetensors.torch.load(content).items()))
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise GapError(f"{path} asks for more memory than there is") from error
    except READ_ERRORS as error:
        if "not enough memory" in str(error):  # torch's own word for it
            raise GapError(f"{path} asks for more memory than there is") from error
        why = f"{type(error).__name__}, {first_line(error)}"
        raise DamagedError(f"{path} is not a whole weights file: {why}") from error


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """The tensors in a network's state dict, without what its modules keep there besides."""
    return {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}


def load_state_dict_checked(
    network: nn.Module, state: Mapping[str, Tensor], source: Path | str, remedy: str = SAVE_AGAIN
) -> None:
    """Load a state dict that comes from `source`.

    Raises GapError, naming the first keys that do not fit, or the first tensor whose values cannot be weights and the
    `remedy`.
    """
    own = tensors_of(network)
    check_shapes(own, state, source)
    check_values(own, state, source, remedy)
    try:
        load_weights(network, state)
    except Exception as error:  # a foreign module may raise anything; a sparse tensor of the right shape is not copied
        raise GapError(f"the weights in {source} cannot be copied into the network: {first_line(error)}") from error


def check_shapes(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: Path | str) -> None:
    """Raise GapError, naming the first keys, where a state dict lacks any, has more, or has them in another shape."""
    missing = [key for key in own if key not in state and not key.endswith(BATCH_COUNTER)]
    extra = [key for key in state if key not in own and not key.endswith(EXTRA)]
    wrong = [key for key in own if key in state and not is_lazy(own[key]) and own[key].shape != state[key].shape]
    faults = [
        f"{verb} {keys[0]} ({len(keys)} in all)"
        for verb, keys in (("lacks", missing), ("has an unexpected", extra), ("has another shape for", wrong))
        if keys
    ]
    if faults:
        raise GapError(f"the weights in {source} are for another architecture: it {' and '.join(faults)}")


def check_values(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: Path | str, remedy: str) -> None:
    """Raise GapError, naming the first tensor, where values cannot be those of a network's own tensors.

    Those are values of another type, NaN and infinity, and variances below 0.
    """
    shared = [key for key in own if key in state]
    for key in shared:
        if fault := _type_fault(own[key], state[key]):
            raise GapError(f"the weights in {source} cannot be used: {key} {fault}; {remedy}")
    _check_counts({key: (_not_finite(own[key], state[key]), state[key]) for key in shared}, source, remedy)
    for key in shared:
        if key.endswith("running_var") and (state[key].to_dense().float() < 0).any():
            raise GapError(f"the weights in {source} cannot be used: {key} has a variance below 0; {remedy}")


def check_finite(held: object, source: Path | str, remedy: str) -> None:
    """Raise GapError, naming the first, where tensors anywhere in a checkpoint hold NaN or infinite values."""
    empty = torch.empty(0)
    _check_counts({name: (_not_finite(empty, each), each) for name, each in _tensors_within(held)}, source, remedy)


def _check_counts(counts: Mapping[str, tuple[int, Tensor]], source: Path | str, remedy: str) -> None:
    """Raise GapError where tensors have a count of values that are not finite, naming the first of them."""
    first = next((key for key, (count, _) in counts.items() if count), None)
    if first is not None:
        count, tensor = counts[first]
        raise GapError(
            f"the weights in {source} cannot be used: {first} has {count} of {tensor.numel()} values that are"
            f" NaN or infinite ({sum(each for each, _ in counts.values())} in all); {remedy}"
        )


def _type_fault(own: Tensor, value: Tensor) -> str | None:
    """Why a tensor's type is none that a network's own tensor can be loaded from, None where it is one."""
    if value.is_meta:
        return "says a shape and holds no values"
    if value.dtype == own.dtype or value.is_floating_point():
        return None
    if value.is_complex() or value.is_quantized or own.is_floating_point() or own.is_complex():
        expected, held = (str(each.dtype).removeprefix("torch.") for each in (own, value))
        return f"holds {held} values, where {expected} is expected"
    return None


def _not_finite(own: Tensor, value: Tensor) -> int:
    """How many values are NaN or infinite. A constant of the network, as a mask of minus infinity, counts as none."""
    if value.layout != torch.strided or not value.is_floating_point():
        return 0
    value = value.detach().to(own.dtype if own.is_floating_point() else torch.float32)
    finite = value.isfinite()
    if finite.all() or (not is_lazy(own) and torch.equal(value, own.to(value.dtype))):
        return 0
    return int((~finite).sum())


def _tensors_within(held: object) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested mappings, lists and tuples, each with the keys that lead to it, each container once."""
    waiting, seen = [("", held)], set()
    while waiting:
        name, each = waiting.pop(0)
        if isinstance(each, Tensor):
            yield name, each
        if id(each) in seen or not isinstance(each, Mapping | list | tuple):
            continue
        seen.add(id(each))
        parts = each.items() if isinstance(each, Mapping) else enumerate(each)
        waiting += [(f"{name}.{key}" if name else str(key), part) for key, part in parts]


def load_optimizer_checked(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimizer's state.

    Raises ValueError, TypeError or LookupError where it is of other weights or has other options.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    names: set[str] = next((set(moments) for moments in state["state"].values()), set())
    for index, moments in state["state"].items():
        if set(moments) != names:
            raise ValueError(f"the optimizer's weight {index} has other moments than the first")
        for name, value in moments.items():
            if not isinstance(value, Tensor) or value.shape not in (weights[index].shape, torch.Size()):
                raise ValueError(f"{name} of the optimizer's weight {index} is of another shape")
    groups = []
    for own, theirs in zip(optimizer.state_dict()["param_groups"], state["param_groups"], strict=True):
        for key, value in theirs.items():
            if key in own and type(value) is not type(own[key]):
                raise TypeError(f"the optimizer's {key} is {value!r}")
        groups.append(own | theirs)
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
