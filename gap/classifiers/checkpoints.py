"""Weights from files, as the field publishes them: read without running anything in them, and fitted to a network."""

import io
import pickle
import re
import shlex
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gap.core.errors import GapError, GapWarning, first_line

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
# What modules keep in a state dict besides tensors.
EXTRA = "_extra_state"
# What norms count, and what checkpoints older than torch 0.4.1 do not have.
BATCH_COUNTER = "num_batches_tracked"
# What the buffers of a normalizer are called, by the end of their names.
MEANS, STDS = ("mean", "mu", "new_mean"), ("std", "sigma", "new_std")
# What `gap export` writes besides weights.
EXPORT_SUFFIXES = {".onnx": "ONNX", ".ts": "TorchScript"}
# How files begin that torch.save wrote: a zip archive, or the pickle of a number that torch picked.
WRITTEN_BY_TORCH = (b"PK", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")
# What to do about a file of somebody else's whose values cannot be weights.
SAVE_AGAIN = "download it or save it again, or take an earlier checkpoint"


class DamagedError(GapError):
    """A file that is cut short, damaged, or no checkpoint at all."""


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
        network.load_state_dict(network.state_dict() | dict(state))
    except RuntimeError as error:  # a sparse tensor of the right shape cannot be copied
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
