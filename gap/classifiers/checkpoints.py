"""State dicts in checkpoint files: under the usual keys of training scripts and with prefixes of wrappers."""

import pickle
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gap.core.errors import GapError, GapWarning
from gap.core.safe_load import BATCH_COUNTER, EXTRA, SAVE_AGAIN, load_untrusted, tensors_of

# The usual keys of the network's state dict in a checkpoint, which also has that of an optimizer and plain values.
STATE_DICT_KEYS = (
    "state_dict",
    "model",
    "net",
    "model_state_dict",
    "network",
    "classifier",
    "checkpoint",
    "params",
    "weights",
    "module",
    "ema",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "params_ema",
)
# The largest number of nested keys before a state dict, as in {"checkpoint": {"model": ...}}.
DEPTH = 2
# The last parts of the names of a normalizer's buffers.
MEANS, STDS = ("mean", "mu", "new_mean"), ("std", "sigma", "new_std")
# The formats of `gap export` that are not weights.
EXPORT_SUFFIXES = {".onnx": "ONNX", ".ts": "TorchScript"}
# The first bytes of files of torch.save: those of a zip archive, or of the pickle of torch's magic number.
WRITTEN_BY_TORCH = (b"PK", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")


@dataclass(frozen=True)
class Normalization:
    """The normalization of a checkpoint's wrapper, per channel, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_weights(path: Path, network: nn.Module) -> tuple[dict[str, Tensor], Normalization | None]:
    """The state dict for a network in a file, and the normalizer of its wrapper, if any.

    The file is safetensors, or a checkpoint of tensors and plain values: a state dict, or a mapping that contains one,
    up to two keys deep (MadryLab's robustness has it under `model`). The prefixes of wrappers (`module.`, `_orig_mod.`,
    `module.model.`) are removed: they are recognized by the network's own keys after them. A second copy of the same
    weights is ignored. So is an average of the weights (EMA), with a GapWarning where it differs. Raises GapError for
    any other file, and for one with two networks whose weights differ.
    """
    (keys, state), *alternatives = _state_dicts(_read(path), path)
    normalizer = _pop_normalization(state, network, path)
    weights = _strip_prefix(state, network, path, keys)
    for average_keys, average in alternatives:
        if any(map(_is_average, average_keys)) and _differs(average, weights, network):
            _warn_of_average(path, ".".join(average_keys), _hint_for_average(path, average_keys))
            break
    return weights, normalizer


def infer_num_classes(state: Mapping[str, Tensor], network: nn.Module, classes: int) -> int | None:
    """The number of classes of a state dict, where it differs from the `classes` of this network; else None."""
    heads = {
        len(state[key])
        for key, own in tensors_of(network).items()
        if not is_lazy(own)
        and own.shape[:1] == (classes,)
        and key in state
        and _is_dense(state[key])
        and state[key].ndim == own.ndim
        and state[key].shape != own.shape
        and state[key].shape[1:] == own.shape[1:]
    }
    return heads.pop() if len(heads) == 1 else None


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor holds all of its values in memory: it is not sparse, not a meta tensor and not expanded."""
    return tensor.layout == torch.strided and not tensor.is_meta and tensor.is_contiguous()


def check_not_exported(path: Path) -> None:
    """Raise GapError for a file with an exported network instead of weights."""
    if kind := EXPORT_SUFFIXES.get(path.suffix):
        raise GapError(
            f"{path} is a network as {kind}, for use elsewhere; gap reads weights (.safetensors, .pt),"
            " and the folder that it was exported from"
        )


def _read(path: Path) -> Any:
    check_not_exported(path)
    try:
        return load_untrusted(path)
    except pickle.UnpicklingError as error:
        raise GapError(_unsafe_pickle_message(path, "dill" in str(error))) from error


def _unsafe_pickle_message(path: Path, dill: bool) -> str:
    """The message that a pickle was not opened, with a command that converts it for users who trust it.

    The file that the command writes has the same keys. Networks become their state dicts, arrays become tensors, and
    other values are left out.
    """
    modules, load = "sys, torch", "torch.load(sys.argv[1], weights_only=False, map_location='cpu')"
    if dill:
        modules, load = f"{modules}, dill", load.replace("weights_only", "pickle_module=dill, weights_only")
    elif not _is_from_torch(path):
        modules, load = f"{modules}, pickle", "pickle.load(open(sys.argv[1], 'rb'), encoding='latin1')"
    script = (
        f"import {modules}; t = lambda v: v if torch.is_tensor(v) else t(v.state_dict()) if hasattr(v, 'state_dict')"
        " else {str(k): w for k, x in v.items() if (w := t(x)) is not None} if hasattr(v, 'items') else"
        " torch.as_tensor(v.astype(v.dtype.newbyteorder('='))) if getattr(getattr(v, 'dtype', 0), 'kind', '') in"
        f" [*'fiub'] else None; torch.save(t({load}), sys.argv[2])"
    )
    return (
        f"{path} is a pickle that holds more than tensors{' (written with dill)' if dill else ''}, and opening it could"
        f" run anything; if you trust it, convert it once: {_command(script, path, '-weights.pt')}"
    )


def _is_from_torch(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16).startswith(WRITTEN_BY_TORCH)


def _command(script: str, path: Path, ending: str) -> str:
    """A shell command that runs a Python script with two arguments: a file and the name of the file to write."""
    return f'python -c "{script}" {shlex.quote(str(path))} {shlex.quote(path.stem + ending)}'


State = dict[str, Tensor]


def _state_dicts(content: Any, path: Path) -> list[tuple[tuple[str, ...], State]]:
    """The state dicts in the content of a file, each with its path of keys: averages after the others."""
    states = [(keys, state) for keys, value in _nested(content) if (state := _as_state_dict(value))]
    if not states:
        raise GapError(f"{path} is not a state dict (names and tensors), nor holds one as {', '.join(STATE_DICT_KEYS)}")
    return sorted(states, key=lambda entry: (any(map(_is_average, entry[0])), len(entry[0])))


def _nested(content: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The content of a file, and the values under the usual keys in it, each with its path of keys."""
    yield keys, content
    if isinstance(content, Mapping) and len(keys) < DEPTH:
        for key in STATE_DICT_KEYS:
            if key in content:
                yield from _nested(content[key], (*keys, key))


def _as_state_dict(content: Any) -> State | None:
    """The tensors of a state dict; None for any other value. Extra state of modules is ignored."""
    if not isinstance(content, Mapping):
        return None
    entries = {key: value for key, value in content.items() if not str(key).endswith(EXTRA)}
    return dict(entries) if entries and all(map(_is_entry, entries.items())) else None


def _is_entry(entry: tuple[Any, Any]) -> bool:
    return isinstance(entry[0], str) and isinstance(entry[1], Tensor)


def _pop_normalization(state: State, network: nn.Module, path: Path) -> Normalization | None:
    """Remove the buffers of a wrapper's normalizer from a state dict, and return their values; None without any."""
    own = tuple(tensors_of(network))
    foreign = [key for key in state if not key.endswith(own)]
    means, stds = (
        [key for key in foreign if key.rpartition(".")[2] in names and state[key].numel() <= 16]
        for names in (MEANS, STDS)
    )
    if not means or not stds:
        return None
    mean, std = _channel_values(state, means[0], path), _channel_values(state, stds[0], path)
    if min(std) <= 0:
        raise GapError(f"the normalizer in {path} cannot be used: {stds[0]} is not above 0; {SAVE_AGAIN}")
    for key in (*means, *stds):
        del state[key]
    return Normalization(mean, std)


def _channel_values(state: State, key: str, path: Path) -> tuple[float, ...]:
    """The values of a normalizer's buffer; raises GapError where they are not finite numbers."""
    tensor = state[key]
    unusable = tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_complex()
    if unusable or not tensor.numel() or not tensor.float().isfinite().all():
        raise GapError(
            f"the normalizer in {path} cannot be used: {key} is not a finite number for each channel; {SAVE_AGAIN}"
        )
    return tuple(tensor.flatten().tolist())


def _equal(tensor: Tensor, other: Tensor) -> bool:
    try:
        return torch.equal(tensor, other)
    except RuntimeError:  # sparse tensors cannot be compared
        return False


def _is_average(name: str) -> bool:
    """Whether a key or a prefix is one of an exponential moving average of weights."""
    return any("ema" in part.split("_") for part in name.split("."))


def _copies(state: State, own: set[str]) -> dict[str, set[str]]:
    """The network's keys that a state dict has, for each prefix before them."""
    prefixes = {name[: -len(key)] for key in own for name in state if name.endswith(key)}
    return {prefix: {key for key in own if prefix + key in state} for prefix in prefixes}


def _best_prefix(copies: Mapping[str, set[str]], needed: set[str]) -> str:
    """The prefix of the most complete copy: averages come last, and of equal copies the shortest prefix is taken."""
    return max(
        copies,
        key=lambda prefix: (copies[prefix] >= needed, not _is_average(prefix), len(copies[prefix]), -len(prefix)),
        default="",
    )


def _needed(own: set[str]) -> set[str]:
    """The keys that every copy must have: all except batch counters, which older files do not have."""
    return {key for key in own if not key.endswith(BATCH_COUNTER)}


def _differs(average: State, weights: State, network: nn.Module) -> bool:
    """Whether a state dict has weights for the same network with other values."""
    own = set(tensors_of(network))
    copies = _copies(average, own)
    best = _best_prefix(copies, _needed(own))
    return any(not _equal(average[best + key], weights[key]) for key in copies.get(best, set()) if key in weights)


def _strip_prefix(state: State, network: nn.Module, path: Path, keys: tuple[str, ...]) -> State:
    """A state dict without the prefix of wrappers, and without further copies of the same weights.

    `keys` is the path of keys to it in the file.
    """
    own, parameters = set(tensors_of(network)), {name for name, _ in network.named_parameters()}
    copies = _copies(state, own)
    best = _best_prefix(copies, _needed(own))
    averages = [copy for copy in copies if _is_average(copy) and copies[copy] >= parameters and copy != best]
    others = [copy for copy in copies if copies[copy] >= _needed(own) and copy not in (best, *averages)]
    differing = [
        copy
        for copy in (*others, *averages)
        if not all(_equal(state[copy + key], state[best + key]) for key in copies[copy] & copies[best])
    ]
    if other := next((copy for copy in differing if copy in others), None):
        pair = " and ".join(prefix or "(no prefix)" for prefix in (best, other))
        raise GapError(f"{path} holds two networks with other weights each, {pair}; leave one of them in it")
    average_keys = {name for name in state if _is_average(name) and name.removeprefix(best) not in own}
    ignored = {copy + key for copy in others for key in own} | (set() if _is_average(best) else average_keys)
    for average in differing:
        _warn_of_average(path, average, _hint_for_average(path, keys, average))
    if ignored & average_keys and not averages:
        _warn_of_average(path, min(average_keys), "")
    return {name.removeprefix(best): value for name, value in state.items() if name not in ignored}


def _warn_of_average(path: Path, name: str, hint: str) -> None:
    warnings.warn(
        f"{path} also holds an average of the weights (EMA), {name}, which is passed over{hint}",
        GapWarning,
        stacklevel=4,
    )


def _hint_for_average(path: Path, keys: Sequence[str], prefix: str = "") -> str:
    """A hint how to save an average of the weights to a file, given its path of keys and its prefix."""
    if not re.fullmatch(
        r"[\w.]*", prefix, re.ASCII
    ):  # the prefix comes from the file, and becomes part of a shell command
        return ""
    modules, load = "sys, torch", "torch.load(sys.argv[1], weights_only=True, map_location='cpu')"
    if path.suffix == ".safetensors":
        modules, load = f"{modules}, safetensors.torch", "safetensors.torch.load_file(sys.argv[1])"
    state = load + "".join(f"['{key}']" for key in keys)
    script = (
        f"import {modules}; h = {state}; torch.save({{k.removeprefix('{prefix}'): v"
        f" for k, v in h.items() if k.startswith('{prefix}')}}, sys.argv[2])"
    )
    return f"; to take it, save it once: {_command(script, path, '-ema.pt')}"
