"""Classifiers: any network from pixels in [0, 1] to logits, named by one string."""

import hashlib
import importlib
import importlib.util
import math
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from gap.artefact import Artefact, is_artefact, open_artefact
from gap.errors import GapError, GapWarning, unknown
from gap.frozen import frozen
from gap.models.classifiers import ZOO

FORMS = (
    "a name from `gap classifiers`, torchvision:NAME@WEIGHTS, timm:NAME, FILE.py:FACTORY, package.module:FACTORY"
    " or a saved artefact"
)


@dataclass(frozen=True)
class Facts:
    """What a classifier takes and says: images of `channels` x `size` in [0, 1] to `classes` logits.

    `mean` and `std`, per channel, are what the wrapper normalises by; None where the network does it itself.
    """

    channels: int
    size: tuple[int, int]
    classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None


class Classifier(nn.Module):
    """A network with its normaliser inside, and the facts about it.

    Takes images N x C x H x W in [0, 1]; gives logits N x classes. `architecture` is the string that builds the
    network, `name` the one the user wrote.
    """

    facts: Facts
    mean: Tensor | None
    std: Tensor | None

    def __init__(self, network: nn.Module, facts: Facts, *, name: str, architecture: str) -> None:
        super().__init__()
        self.network = network
        self.facts = facts
        self.name = name
        self.architecture = architecture
        self.register_buffer("mean", _per_channel(facts.mean, facts.channels, "mean"), persistent=False)
        self.register_buffer("std", _per_channel(facts.std, facts.channels, "std"), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.mean is not None:
            images = images - self.mean
        if self.std is not None:
            images = images / self.std
        return self.network(images)

    def label(self, index: int) -> str:
        """The name of a class where it is known, its number where not."""
        names = self.facts.class_names
        return names[index] if names and index < len(names) else str(index)

    def fingerprint(self) -> str:
        """A hash of the weights and buffers, the same for the same network wherever it is saved."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """The facts for a card: how to build it again and how to know it again."""
        facts = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.facts).items()}
        return {"name": self.name, "architecture": self.architecture, "fingerprint": self.fingerprint(), **facts}


def load_classifier(
    name: str | os.PathLike[str],
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """The classifier that one string names, in eval mode, tried once on random pixels.

    The name is one of ours, `torchvision:NAME@WEIGHTS`, `timm:NAME`, `FILE.py:FACTORY`, `package.module:FACTORY`, or
    the folder that `gap pretrain` left; `@FILE` after any of them but the last loads a state dict (safetensors, or a
    checkpoint that holds nothing but tensors). `channels`, `size` and `classes` are what the data has, for networks
    that do not say themselves; `mean` and `std` are for networks without a normaliser.

    Raises GapError when there is no such classifier, its weights do not fit, or what it returns are not logits.
    """
    text = os.fspath(name)
    wanted = {"channels": channels, "size": size, "classes": classes}
    if is_artefact(Path(text)):
        classifier = _from_artefact(open_artefact(Path(text), "classifier"), text)
    else:
        architecture, _, weights = text.partition("@")
        build = _find_builder(architecture, weights)
        network, facts = build(wanted)
        if _is_file(weights):
            _load_weights(network, Path(weights))
        classifier = Classifier(network, facts, name=text, architecture=architecture)
    if mean is not None or std is not None:
        facts = replace(classifier.facts, mean=tuple(mean or (0.0,)), std=tuple(std or (1.0,)))
        classifier = Classifier(classifier.network, facts, name=text, architecture=classifier.architecture)
    return _tried(classifier.eval())


def check_fits(classifier: Classifier, *, channels: int, classes: int | None, data: str) -> None:
    """Raise GapError when data of that many channels and classes cannot be given to this classifier."""
    facts = classifier.facts
    if channels != facts.channels:
        raise GapError(f"{classifier.name} takes {facts.channels}-channel images, but {data} has {channels}")
    if classes is not None and classes != facts.classes:
        raise GapError(
            f"{classifier.name} knows {facts.classes} classes, but {data} has {classes};"
            " use data with its classes, or --labels predicted"
        )


Wanted = dict[str, Any]
Builder = Callable[[Wanted], tuple[nn.Module, Facts]]


def _find_builder(architecture: str, weights: str) -> Builder:
    if architecture in ZOO:
        if weights and not _is_file(weights):
            raise GapError(f"there is no weights file {weights!r} for {architecture}")
        return lambda wanted: _from_zoo(architecture, wanted)
    kind, _, inner = architecture.partition(":")
    if kind == "torchvision" and inner:
        return lambda wanted: _from_torchvision(inner, weights, wanted)
    if kind == "timm" and inner:
        return lambda wanted: _from_timm(inner, weights)
    if inner:
        if weights and not _is_file(weights):
            raise GapError(f"there is no weights file {weights!r} for {architecture}")
        module, _, factory = architecture.rpartition(":")
        return lambda wanted: (_call_factory(module, factory), _facts_of_users(architecture, wanted))
    if Path(architecture).is_dir():
        raise GapError(f"{architecture} is a folder, but not one that gap left (it has no card.yaml)")
    if Path(architecture).is_file():
        raise GapError(f"{architecture} holds weights or code but no network; write ARCHITECTURE@{architecture}")
    if "/" in architecture or architecture.startswith("."):
        raise GapError(f"there is no classifier at {architecture}; a classifier is {FORMS}")
    raise unknown("classifier", architecture, ZOO)


def _from_zoo(name: str, wanted: Wanted) -> tuple[nn.Module, Facts]:
    entry = ZOO[name]
    channels, classes = entry.channels, entry.classes
    mean, std, names = entry.mean, entry.std, None
    if entry.pretrained:
        names = _imagenet_names(classes)
    else:
        classes = wanted["classes"] or classes
        if wanted["channels"] not in (None, channels):
            channels = wanted["channels"]
            mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    size = (wanted["size"] or entry.size) if name.startswith("cifar") else entry.size
    return entry.build(channels, classes), Facts(channels, size, classes, mean, std, names)


def _from_torchvision(name: str, weights: str, wanted: Wanted) -> tuple[nn.Module, Facts]:
    import torchvision.models

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown("torchvision classifier", name, known)
    entries = torchvision.models.get_model_weights(name)
    if weights == "none" or _is_file(weights):
        network = torchvision.models.get_model(name, weights=None)
        return network, Facts(3, wanted["size"] or (224, 224), 1000, IMAGENET_MEAN, IMAGENET_STD)
    if weights and weights not in entries.__members__:
        raise unknown(f"weights for torchvision:{name}", weights, [*entries.__members__, "none"])
    chosen = entries[weights] if weights else entries.DEFAULT
    try:
        network = torchvision.models.get_model(name, weights=chosen)
    except OSError as error:
        raise GapError(f"cannot download the weights {chosen} of torchvision:{name} ({error})") from error
    preset, names = chosen.transforms(), chosen.meta["categories"]
    crop = preset.crop_size[0]
    return network, Facts(3, (crop, crop), len(names), tuple(preset.mean), tuple(preset.std), tuple(names))


def _from_timm(name: str, weights: str) -> tuple[nn.Module, Facts]:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise unknown("timm classifier", name, timm.list_models())
    if weights and weights != "none" and not _is_file(weights):
        raise GapError(
            f"timm weights are part of the name (timm:resnet50.a1_in1k); {weights!r} is neither that nor a file"
        )
    try:
        network = timm.create_model(name, pretrained=not weights)
    except (OSError, RuntimeError, ValueError) as error:
        raise GapError(f"cannot get the weights of timm:{name} ({_first_line(error)})") from error
    told: Any = network.pretrained_cfg
    channels, height, width = told["input_size"]
    facts = Facts(channels, (height, width), int(told["num_classes"]), tuple(told["mean"]), tuple(told["std"]))
    return network, replace(facts, class_names=_imagenet_names(facts.classes))


def _call_factory(module: str, factory: str) -> nn.Module:
    source = Path(module)
    if source.suffix == ".py":
        if not source.is_file():
            raise GapError(f"there is no file {module} to take the classifier {factory} from")
        loaded = _import_file(source)
    else:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            loaded = importlib.import_module(module)
        except (ImportError, SyntaxError, ValueError, TypeError) as error:
            raise GapError(f"cannot import {module} for the classifier {factory}: {error}") from error
    if not hasattr(loaded, factory):
        callables = [name for name, value in vars(loaded).items() if callable(value) and not name.startswith("_")]
        raise unknown(f"factory in {module}", factory, callables)
    made = getattr(loaded, factory)
    try:
        network = made if isinstance(made, nn.Module) else made()
    except TypeError as error:
        raise GapError(f"cannot call {module}:{factory} without arguments: {error}") from error
    if not isinstance(network, nn.Module):
        raise GapError(f"{module}:{factory} gave a {type(network).__name__}, not a torch.nn.Module")
    return network


def _import_file(source: Path) -> Any:
    name = f"gap_user_{source.stem}_{hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, source)
    if spec is None or spec.loader is None:
        raise GapError(f"{source} cannot be imported as Python")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    if os.fspath(source.parent.resolve()) not in sys.path:
        sys.path.append(os.fspath(source.parent.resolve()))
    try:
        spec.loader.exec_module(loaded)
    except (ImportError, SyntaxError) as error:
        raise GapError(f"cannot import {source}: {error}") from error
    return loaded


def _facts_of_users(architecture: str, wanted: Wanted) -> Facts:
    if wanted["channels"] is None or wanted["size"] is None:
        raise GapError(f"{architecture} does not say what it takes; add --input CxHxW, for example --input 3x32x32")
    return Facts(wanted["channels"], wanted["size"], wanted["classes"] or 0)


def _from_artefact(artefact: Artefact, name: str) -> Classifier:
    told = artefact.card["classifier"]
    saved = Facts(
        told["channels"],
        tuple(told["size"]),
        told["classes"],
        *(tuple(told[key]) if told[key] is not None else None for key in ("mean", "std", "class_names")),
    )
    wanted = {"channels": saved.channels, "size": saved.size, "classes": saved.classes}
    architecture = told["architecture"]
    source, _, _ = architecture.rpartition(":")
    if source.endswith(".py") and not Path(source).is_file():
        raise GapError(f"{name} was made from {architecture}, which is not here; run from the folder that holds it")
    weights = "" if architecture in ZOO else "none" if architecture.startswith(("torchvision:", "timm:")) else ""
    network, _ = _find_builder(architecture, weights)(wanted)
    _fit(network, artefact.tensors(), name)
    return Classifier(network, saved, name=name, architecture=architecture)


def _load_weights(network: nn.Module, path: Path) -> None:
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise GapError(
            f"{path} is a pickle that holds more than tensors, and running it could run anything;"
            " save its state_dict() with safetensors and name that"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, safetensors.SafetensorError) as error:
        raise GapError(f"{path} is not a whole weights file: {_first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise GapError(f"{path} is not a state dict (names and tensors)")
    _fit(network, state, os.fspath(path))


def _fit(network: nn.Module, state: dict[str, Tensor], name: str) -> None:
    own = network.state_dict()
    missing, extra = [key for key in own if key not in state], [key for key in state if key not in own]
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    for kind, keys in (("lacks", missing), ("has an unexpected", extra), ("has another shape for", wrong)):
        if keys:
            raise GapError(
                f"the weights in {name} are for another architecture: it {kind} {keys[0]} ({len(keys)} in all)"
            )
    network.load_state_dict(state)


@torch.no_grad()
def _tried(classifier: Classifier) -> Classifier:
    facts = classifier.facts
    probe = torch.rand(2, facts.channels, *facts.size, generator=torch.Generator().manual_seed(0))
    name = classifier.name
    try:
        with frozen(classifier):
            logits = classifier(probe)
    except (RuntimeError, ValueError, TypeError) as error:
        shape = "x".join(map(str, probe.shape[1:]))
        raise GapError(f"{name} fails on images of {shape}: {_first_line(error)}") from error
    if not isinstance(logits, Tensor):
        raise GapError(
            f"{name} returns a {type(logits).__name__}, not a tensor of logits; wrap it to return the logits alone"
        )
    if logits.ndim != 2 or len(logits) != 2 or logits.shape[1] < 2:
        raise GapError(
            f"{name} returns the shape {tuple(logits.shape)} for 2 images; logits are images x classes, 2 or more"
        )
    if not logits.isfinite().all():
        raise GapError(f"{name} returns NaN or infinity on random pixels; check its weights and its normaliser")
    if facts.classes and facts.classes != logits.shape[1]:
        raise GapError(f"{name} returns {logits.shape[1]} classes where {facts.classes} were expected")
    sums = logits.sum(dim=1)
    if logits.min() >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        warnings.warn(
            f"{name} seems to return probabilities (a softmax); attacks work best on logits", GapWarning, stacklevel=3
        )
    classifier.facts = replace(facts, classes=logits.shape[1])
    return classifier


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _imagenet_names(classes: int) -> tuple[str, ...] | None:
    if classes != 1000:
        return None
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(index) for index in range(classes))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _is_file(weights: str) -> bool:
    return bool(weights) and Path(weights).is_file()


def _per_channel(values: Sequence[float] | None, channels: int, what: str) -> Tensor | None:
    if values is None:
        return None
    if len(values) not in (1, channels):
        raise GapError(f"--{what} has {len(values)} values for {channels} channels")
    if what == "std" and min(values) <= 0:
        raise GapError("--std must be positive")
    if not all(math.isfinite(value) for value in values):
        raise GapError(f"--{what} must be finite")
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
