"""The state dict of a network in a file, as the field publishes weights: under its keys and behind its prefixes."""

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

# Under which keys training scripts keep the network's state dict, beside an optimizer's and plain values.
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
# How many of those keys lead to a state dict at most, as in {"checkpoint": {"model": ...}}.
DEPTH = 2
# What the buffers of a normalizer are called, by the end of their names.
MEANS, STDS = ("mean", "mu", "new_mean"), ("std", "sigma", "new_std")
# What `gap export` writes besides weights.
EXPORT_SUFFIXES = {".onnx": "ONNX", ".ts": "TorchScript"}
# How files begin that torch.save wrote: a zip archive, or the pickle of a number that torch picked.
WRITTEN_BY_TORCH = (b"PK", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")


@dataclass(frozen=True)
class Normalization:
    """What a checkpoint's wrapper normalized by, per channel, in pixels of [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_weights(path: Path, network: nn.Module) -> tuple[dict[str, Tensor], Normalization | None]:
    """The state dict for a network that a file holds, and the normalizer that stood beside it, where there was one.

    The file is safetensors, or a checkpoint of tensors and plain values: a state dict, or a mapping that holds one
    beside other things (MadryLab's robustness keeps it under `model`), up to two keys deep. Wrappers' prefixes
    (`module.`, `_orig_mod.`, `module.model.`) are found by what they stand before. A second copy of the same weights is
    passed over. So is an average of the weights (EMA), with a GapWarning where it differs. Raises GapError for any
    other file, and for one that holds two networks whose weights differ.
    """
    (keys, state), *others = _state_dicts(_read(path), path)
    normalizer = _pop_normalization(state, network, path)
    weights = _strip_prefix(state, network, path, keys)
    for other_keys, other in others:
        if any(map(_is_average, other_keys)) and _differs(other, weights, network):
            _warn_of_average(path, ".".join(other_keys), _way_to_average(path, other_keys))
            break
    return weights, normalizer


def infer_num_classes(state: Mapping[str, Tensor], network: nn.Module, classes: int) -> int | None:
    """How many classes a state dict is for, where it is for others than the `classes` of this network; else None."""
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
    """Whether a tensor is as large as it says: neither sparse, nor without memory, nor one number repeated."""
    return tensor.layout == torch.strided and not tensor.is_meta and tensor.is_contiguous()


def check_not_exported(path: Path) -> None:
    """Raise GapError for a file that is a whole network for use elsewhere, and not weights."""
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
    """Why a pickle was not opened, and how whoever trusts it can take the weights out once.

    The file that the command writes has the same keys. Networks become their state dicts, arrays become tensors, and
    what is neither is left out.
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
    """A shell command that runs Python on a file, and on the name of the file to write."""
    return f'python -c "{script}" {shlex.quote(str(path))} {shlex.quote(path.stem + ending)}'


State = dict[str, Tensor]


def _state_dicts(held: Any, path: Path) -> list[tuple[tuple[str, ...], State]]:
    """The state dicts in what a file held, each with the keys that lead to it: plain ones first, then averages."""
    found = [(keys, state) for keys, each in _nested(held) if (state := _as_state_dict(each))]
    if not found:
        raise GapError(f"{path} is not a state dict (names and tensors), nor holds one as {', '.join(STATE_DICT_KEYS)}")
    return sorted(found, key=lambda each: (any(map(_is_average, each[0])), len(each[0])))


def _nested(held: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What a file held, and what it held under the usual keys, each with the keys that lead to it."""
    yield keys, held
    if isinstance(held, Mapping) and len(keys) < DEPTH:
        for key in STATE_DICT_KEYS:
            if key in held:
                yield from _nested(held[key], (*keys, key))


def _as_state_dict(held: Any) -> State | None:
    """The tensors of a state dict, None for anything else. What modules keep besides tensors is passed over."""
    if not isinstance(held, Mapping):
        return None
    entries = {key: value for key, value in held.items() if not str(key).endswith(EXTRA)}
    return dict(entries) if entries and all(map(_is_entry, entries.items())) else None


def _is_entry(entry: tuple[Any, Any]) -> bool:
    return isinstance(entry[0], str) and isinstance(entry[1], Tensor)


def _pop_normalization(state: State, network: nn.Module, path: Path) -> Normalization | None:
    """Take the buffers of a wrapper's normalizer out of a state dict, where the network has none of its own."""
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
    """The values of a normalizer's buffer; raises GapError where they cannot be that."""
    tensor = state[key]
    strange = tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_complex()
    if strange or not tensor.numel() or not tensor.float().isfinite().all():
        raise GapError(
            f"the normalizer in {path} cannot be used: {key} is not a finite number for each channel; {SAVE_AGAIN}"
        )
    return tuple(tensor.flatten().tolist())


def _equal(one: Tensor, other: Tensor) -> bool:
    try:
        return torch.equal(one, other)
    except RuntimeError:  # sparse tensors cannot be compared
        return False


def _is_average(name: str) -> bool:
    """Whether a key or a prefix says that its weights are an exponential moving average."""
    return any("ema" in part.split("_") for part in name.split("."))


def _copies(state: State, own: set[str]) -> dict[str, set[str]]:
    """The network's keys that a state dict has, for each prefix that they stand behind."""
    prefixes = {name[: -len(key)] for key in own for name in state if name.endswith(key)}
    return {prefix: {key for key in own if prefix + key in state} for prefix in prefixes}


def _best_prefix(copies: Mapping[str, set[str]], needed: set[str]) -> str:
    """The prefix of the fullest copy: a plain one before an average, and the shortest prefix of those alike."""
    return max(
        copies,
        key=lambda prefix: (copies[prefix] >= needed, not _is_average(prefix), len(copies[prefix]), -len(prefix)),
        default="",
    )


def _needed(own: set[str]) -> set[str]:
    """The keys that every copy has; older files have no counters."""
    return {key for key in own if not key.endswith(BATCH_COUNTER)}


def _differs(average: State, weights: State, network: nn.Module) -> bool:
    """Whether a state dict holds other weights for the same network."""
    own = set(tensors_of(network))
    copies = _copies(average, own)
    best = _best_prefix(copies, _needed(own))
    return any(not _equal(average[best + key], weights[key]) for key in copies.get(best, set()) if key in weights)


def _strip_prefix(state: State, network: nn.Module, path: Path, keys: tuple[str, ...]) -> State:
    """A state dict with the prefix of the wrappers off, and without the copies that they hold of the same weights.

    `keys` lead to it in the file.
    """
    own, learned = set(tensors_of(network)), {name for name, _ in network.named_parameters()}
    copies = _copies(state, own)
    best = _best_prefix(copies, _needed(own))
    averages = [each for each in copies if _is_average(each) and copies[each] >= learned and each != best]
    others = [each for each in copies if copies[each] >= _needed(own) and each not in (best, *averages)]
    differing = [
        each
        for each in (*others, *averages)
        if not all(_equal(state[each + key], state[best + key]) for key in copies[each] & copies[best])
    ]
    if other := next((each for each in differing if each in others), None):
        pair = " and ".join(prefix or "(no prefix)" for prefix in (best, other))
        raise GapError(f"{path} holds two networks with other weights each, {pair}; leave one of them in it")
    spare = {name for name in state if _is_average(name) and name.removeprefix(best) not in own}
    passed = {copy + key for copy in others for key in own} | (set() if _is_average(best) else spare)
    for average in differing:
        _warn_of_average(path, average, _way_to_average(path, keys, average))
    if passed & spare and not averages:
        _warn_of_average(path, min(spare), "")
    return {name.removeprefix(best): value for name, value in state.items() if name not in passed}


def _warn_of_average(path: Path, name: str, way: str) -> None:
    warnings.warn(
        f"{path} also holds an average of the weights (EMA), {name}, which is passed over{way}",
        GapWarning,
        stacklevel=4,
    )


def _way_to_average(path: Path, keys: Sequence[str], prefix: str = "") -> str:
    """How to take an average of the weights: the keys that lead to it in the file, and the prefix it stands behind."""
    if not re.fullmatch(r"[\w.]*", prefix, re.ASCII):  # it comes from the file, and the shell would read it
        return ""
    modules, load = "sys, torch", "torch.load(sys.argv[1], weights_only=True, map_location='cpu')"
    if path.suffix == ".safetensors":
        modules, load = f"{modules}, safetensors.torch", "safetensors.torch.load_file(sys.argv[1])"
    held = load + "".join(f"['{key}']" for key in keys)
    script = (
        f"import {modules}; h = {held}; torch.save({{k.removeprefix('{prefix}'): v"
        f" for k, v in h.items() if k.startswith('{prefix}')}}, sys.argv[2])"
    )
    return f"; to take it, save it once: {_command(script, path, '-ema.pt')}"
