"""Weights from files, as the field publishes them: read without running anything in them, and fitted to a network."""

import io
import pickle
import shlex
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from gap.errors import GapError, first_line

# What readers raise at a file that is cut short, damaged or no checkpoint at all: flipped bytes bring out each of them.
DAMAGE = (
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
# Under which keys training scripts keep the network's state dict, beside an optimizer's and plain values.
HOLDERS = ("state_dict", "model", "net", "model_state_dict", "network", "classifier")
# What norms count, and what checkpoints older than torch 0.4.1 do not have.
COUNTER = "num_batches_tracked"
# What the buffers of a normaliser are called, by the end of their names.
MEANS, STDS = ("mean", "mu", "new_mean"), ("std", "sigma", "new_std")
# What `gap export` writes besides weights.
EXPORTED = {".onnx": "ONNX", ".ts": "TorchScript"}


class DamagedError(GapError):
    """A file that is cut short, damaged, or no checkpoint at all."""


@dataclass(frozen=True)
class Normaliser:
    """What a checkpoint's wrapper normalised by, per channel, in pixels of [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_weights(path: Path, network: nn.Module) -> tuple[dict[str, Tensor], Normaliser | None]:
    """The state dict for a network that a file holds, and the normaliser that stood beside it, where there was one.

    The file is safetensors, or a checkpoint of tensors and plain values: a state dict, or a mapping that holds one
    beside other things (MadryLab's robustness keeps it under `model`). Wrappers' prefixes (`module.`, `_orig_mod.`,
    `module.model.`) are found by what they stand before, and a second copy of the same weights is passed over. Raises
    GapError for any other file, and for one that holds two networks whose weights differ.
    """
    state = _state_dict(_read(path), path)
    normaliser = _take_normaliser(state, network)
    return _unwrapped(state, network, path), normaliser


def classes_in(state: Mapping[str, Tensor], network: nn.Module, classes: int) -> int | None:
    """How many classes a state dict is for, where it is for others than the `classes` of this network; else None."""
    heads = {
        len(state[key])
        for key, own in network.state_dict().items()
        if own.shape[:1] == (classes,)
        and key in state
        and _is_whole(state[key])
        and state[key].ndim == own.ndim
        and state[key].shape != own.shape
        and state[key].shape[1:] == own.shape[1:]
    }
    return heads.pop() if len(heads) == 1 else None


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor is as large as it says: neither sparse, nor without memory, nor one number repeated."""
    return tensor.layout == torch.strided and not tensor.is_meta and tensor.is_contiguous()


def fit_weights(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load a state dict; raises GapError naming the first keys that do not fit."""
    own = network.state_dict()
    missing = [key for key in own if key not in state and not key.endswith(COUNTER)]
    extra = [key for key in state if key not in own]
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    faults = [
        f"{verb} {keys[0]} ({len(keys)} in all)"
        for verb, keys in (("lacks", missing), ("has an unexpected", extra), ("has another shape for", wrong))
        if keys
    ]
    if faults:
        raise GapError(f"the weights in {name} are for another architecture: it {' and '.join(faults)}")
    try:
        network.load_state_dict(own | dict(state))
    except RuntimeError as error:  # a sparse or meta tensor of the right shape cannot be copied
        raise GapError(f"the weights in {name} cannot be copied into the network: {first_line(error)}") from error


def read_plain(path: Path) -> Any:
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
    except DAMAGE as error:
        if "not enough memory" in str(error):  # torch's own word for it
            raise GapError(f"{path} asks for more memory than there is") from error
        why = f"{type(error).__name__}, {first_line(error)}"
        raise DamagedError(f"{path} is not a whole weights file: {why}") from error


def check_not_exported(path: Path) -> None:
    """Raise GapError for a file that is a whole network for use elsewhere, and not weights."""
    if kind := EXPORTED.get(path.suffix):
        raise GapError(
            f"{path} is a network as {kind}, for use elsewhere; gap reads weights (.safetensors, .pt),"
            " and the folder that it was exported from"
        )


def _read(path: Path) -> Any:
    check_not_exported(path)
    try:
        return read_plain(path)
    except pickle.UnpicklingError as error:
        raise GapError(_refusal(path, "dill" in str(error))) from error


def _refusal(path: Path, dill: bool) -> str:
    """Why a pickle was not opened, and how whoever trusts it can take the weights out once."""
    modules, option = ("sys, torch, dill", "pickle_module=dill, ") if dill else ("sys, torch", "")
    script = (
        f"import {modules}; h = torch.load(sys.argv[1], {option}weights_only=False, map_location='cpu');"
        f" h = next((h[k] for k in {HOLDERS} if k in h), h) if isinstance(h, dict) else h;"
        " torch.save(h.state_dict() if hasattr(h, 'state_dict') else h, sys.argv[2])"
    )
    return (
        f"{path} is a pickle that holds more than tensors{' (written with dill)' if dill else ''}, and opening it could"
        f' run anything; if you trust it, convert it once: python -c "{script}" {shlex.quote(str(path))}'
        f" {shlex.quote(path.stem + '-weights.pt')}"
    )


def _state_dict(held: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file held: itself, or under one of the usual keys."""
    nested = [held, *(held[key] for key in HOLDERS if key in held)] if isinstance(held, Mapping) else []
    for each in nested:
        if isinstance(each, Mapping) and each and all(map(_is_entry, each.items())):
            return dict(each)
    raise GapError(f"{path} is not a state dict (names and tensors), nor holds one as {', '.join(HOLDERS)}")


def _is_entry(entry: tuple[Any, Any]) -> bool:
    return isinstance(entry[0], str) and isinstance(entry[1], Tensor)


def _take_normaliser(state: dict[str, Tensor], network: nn.Module) -> Normaliser | None:
    """Take the buffers of a wrapper's normaliser out of a state dict, where the network has none of its own."""
    own = tuple(network.state_dict())
    foreign = [key for key in state if not key.endswith(own)]
    means, stds = (
        [key for key in foreign if key.rpartition(".")[2] in names and state[key].numel() <= 16]
        for names in (MEANS, STDS)
    )
    if not means or not stds:
        return None
    mean, std = state[means[0]], state[stds[0]]
    for key in (*means, *stds):
        del state[key]
    return Normaliser(tuple(mean.flatten().tolist()), tuple(std.flatten().tolist()))


def _same(one: Tensor, other: Tensor) -> bool:
    try:
        return torch.equal(one, other)
    except RuntimeError:  # sparse tensors cannot be compared
        return False


def _unwrapped(state: dict[str, Tensor], network: nn.Module, path: Path) -> dict[str, Tensor]:
    """A state dict with the prefix of the wrappers off, and without the copies that they hold of the same weights."""
    own = set(network.state_dict())
    prefixes = {name[: -len(key)] for key in own for name in state if name.endswith(key)}
    held = {prefix: {key for key in own if prefix + key in state} for prefix in prefixes}
    best = max(held, key=lambda prefix: (len(held[prefix]), -len(prefix)), default="")
    told = {key for key in own if not key.endswith(COUNTER)}  # older files have no counters
    others = [prefix for prefix in held if held[prefix] >= told and prefix != best]
    for other in others:
        if not all(_same(state[other + key], state[best + key]) for key in held[other] & held[best]):
            pair = " and ".join(prefix or "(no prefix)" for prefix in (best, other))
            raise GapError(f"{path} holds two networks with other weights each, {pair}; leave one of them in it")
    copies = {copy + key for copy in others for key in own}
    return {name.removeprefix(best): value for name, value in state.items() if name not in copies}
