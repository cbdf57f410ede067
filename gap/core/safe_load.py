"""Loading of tensors from untrusted files: no code in them is run, and values that cannot be weights are errors."""

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

# Errors of reading a file that is truncated, damaged or not a checkpoint. Flipped bytes can cause each of them.
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
# The key of values in a state dict that are not tensors.
EXTRA = "_extra_state"
# A buffer of batch norms, which checkpoints older than torch 0.4.1 do not have.
BATCH_COUNTER = "num_batches_tracked"
# The advice for a file of the user whose values cannot be weights.
SAVE_AGAIN = "download it or save it again, or take an earlier checkpoint"


class DamagedError(GapError):
    """A file that is truncated, damaged or not a checkpoint."""


def load_untrusted(path: Path) -> Any:
    """The tensors and plain values in a file, on the CPU. No code in the file is run.

    Raises DamagedError for a file that is not a complete checkpoint, GapError for one that cannot be read or does not
    fit into memory, and UnpicklingError for a pickle of more than tensors and plain values.
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
        if "not enough memory" in str(error):  # torch has no class for this error
            raise GapError(f"{path} asks for more memory than there is") from error
        reason = f"{type(error).__name__}, {first_line(error)}"
        raise DamagedError(f"{path} is not a whole weights file: {reason}") from error


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """The tensors in a network's state dict, without other values that modules store there."""
    return {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}


def load_state_dict_checked(
    network: nn.Module, state: Mapping[str, Tensor], source: Path | str, remedy: str = SAVE_AGAIN
) -> None:
    """Load a state dict that was read from `source`.

    Raises GapError, which names the first keys that do not match, or the first tensor whose values cannot be weights
    and the `remedy`.
    """
    own = tensors_of(network)
    check_shapes(own, state, source)
    check_values(own, state, source, remedy)
    try:
        load_weights(network, state)
    except Exception as error:  # a foreign module may raise anything; a sparse tensor of the right shape is not copied
        raise GapError(f"the weights in {source} cannot be copied into the network: {first_line(error)}") from error


def check_shapes(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: Path | str) -> None:
    """Raise GapError, naming the first keys, where a state dict has missing or additional keys or other shapes."""
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
    """Raise GapError, naming the first tensor, where values cannot be loaded into a network's own tensors.

    These are values of an incompatible type, NaN and infinity, and variances below 0.
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
    """Raise GapError, naming the first tensor, where a checkpoint contains NaN or infinite values."""
    empty = torch.empty(0)
    _check_counts(
        {name: (_not_finite(empty, tensor), tensor) for name, tensor in _tensors_within(held)}, source, remedy
    )


def _check_counts(counts: Mapping[str, tuple[int, Tensor]], source: Path | str, remedy: str) -> None:
    """Raise GapError where a count of values that are not finite is above 0, naming the first such tensor."""
    first = next((key for key, (count, _) in counts.items() if count), None)
    if first is not None:
        count, tensor = counts[first]
        raise GapError(
            f"the weights in {source} cannot be used: {first} has {count} of {tensor.numel()} values that are"
            f" NaN or infinite ({sum(count for count, _ in counts.values())} in all); {remedy}"
        )


def _type_fault(own: Tensor, value: Tensor) -> str | None:
    """Why a network's own tensor cannot be loaded from a tensor of this type; None where it can."""
    if value.is_meta:
        return "says a shape and holds no values"
    if value.dtype == own.dtype or value.is_floating_point():
        return None
    if value.is_complex() or value.is_quantized or own.is_floating_point() or own.is_complex():
        expected, actual = (str(tensor.dtype).removeprefix("torch.") for tensor in (own, value))
        return f"holds {actual} values, where {expected} is expected"
    return None


def _not_finite(own: Tensor, value: Tensor) -> int:
    """The number of NaN and infinite values; 0 for a constant of the network, such as a mask of minus infinity."""
    if value.layout != torch.strided or not value.is_floating_point():
        return 0
    value = value.detach().to(own.dtype if own.is_floating_point() else torch.float32)
    finite = value.isfinite()
    if finite.all() or (not is_lazy(own) and torch.equal(value, own.to(value.dtype))):
        return 0
    return int((~finite).sum())


def _tensors_within(content: object) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested mappings, lists and tuples, with the path of keys to each. Visits each container once."""
    queue, visited = [("", content)], set()
    while queue:
        name, value = queue.pop(0)
        if isinstance(value, Tensor):
            yield name, value
        if id(value) in visited or not isinstance(value, Mapping | list | tuple):
            continue
        visited.add(id(value))
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        queue += [(f"{name}.{key}" if name else str(key), item) for key, item in items]


def load_optimizer_checked(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimizer's state.

    Raises ValueError, TypeError or LookupError where the state does not match the optimizer's weights or options.
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
    for own, loaded in zip(optimizer.state_dict()["param_groups"], state["param_groups"], strict=True):
        for key, value in loaded.items():
            if key in own and type(value) is not type(own[key]):
                raise TypeError(f"the optimizer's {key} is {value!r}")
        groups.append(own | loaded)
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
