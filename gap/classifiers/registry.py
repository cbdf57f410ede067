"""Networks by name: one way to build for each way to name one, and their weights."""

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from gap.classifiers.checkpoints import check_not_exported
from gap.classifiers.options import NAME_SYNTAX
from gap.core.artifact import open_artifact
from gap.core.errors import GapError, first_line, unknown_name_error
from gap.core.paths import exists, is_file, is_folder
from gap.models.classifiers import BUILTIN

# Libraries whose networks are had by name, as FAMILY:NAME.
FAMILIES = ("torchvision", "timm")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ClassifierSpec:
    """What a classifier takes and says: images of `channels` x `size` in [0, 1] to `classes` logits.

    `mean` and `std`, per channel, are what the wrapper normalizes by; None where the network does it itself.
    """

    channels: int
    size: tuple[int, int]
    classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None


def split_name(text: str) -> tuple[str, str]:
    """A classifier's name as its architecture and its weights: what stands behind an @, or "" where there is none.

    Files and folders that exist, and code in them, are not taken apart. Of several @, the last counts that has a known
    architecture before it and a file or a folder behind it. If there is none, the last counts that has either.
    """
    if exists(text):
        return text, ""
    places = [place for place, letter in enumerate(text) if letter == "@"]
    splits = [(text, ""), *((text[:place], text[place + 1 :]) for place in reversed(places))]
    for fits in (_is_known_and_there, _is_known, _has_weights_there, _is_code_elsewhere):
        if split := next((each for each in splits if fits(*each)), None):
            return split
    first, _, rest = text.partition("@")
    return (text, "") if "/" in first else (first, rest)


def _is_known_and_there(architecture: str, weights: str) -> bool:
    return _is_known(architecture, weights) and _has_weights_there(architecture, weights)


def _is_known(architecture: str, weights: str) -> bool:
    """Whether something is to be had by the name of an architecture."""
    family, _, inner = architecture.partition(":")
    if architecture in BUILTIN or (family in FAMILIES and inner):
        return "@" not in architecture
    module = _split_factory(architecture)[0]
    return exists(architecture) or is_file(module) or (bool(module) and not module.endswith(".py"))


def _has_weights_there(architecture: str, weights: str) -> bool:
    return exists(weights)


def _is_code_elsewhere(architecture: str, weights: str) -> bool:
    """Whether an architecture is written as a factory in a file, which need not exist."""
    return bool(_split_factory(architecture)[0])


def _split_factory(architecture: str) -> tuple[str, str]:
    """FILE.py:FACTORY or package.module:FACTORY as two names; both are "" for what is written otherwise."""
    module, _, factory = architecture.rpartition(":")
    dotted = all(part.isidentifier() for part in module.split("."))
    if factory and "@" not in factory and (module.endswith(".py") or (dotted and factory.isidentifier())):
        return module, factory
    return "", ""


def runs_user_code(architecture: str) -> bool:
    """Whether building this architecture runs Python that is not installed with gap: a factory of somebody's own."""
    family, colon, _ = architecture.partition(":")
    return bool(colon) and family not in FAMILIES and not exists(architecture)


BuildRequest = dict[str, Any]
Builder = Callable[[BuildRequest], tuple[nn.Module, ClassifierSpec]]


def resolve_builder(architecture: str, weights: str) -> Builder:
    """How to build the network of that name; `weights` is what stood behind the @. Raises GapError for no such name."""
    if architecture in BUILTIN:
        _check_weights(architecture, weights)
        return lambda wanted: _from_builtin(architecture, wanted)
    if exists(architecture):
        raise _no_architecture(Path(architecture), weights)
    family, _, inner = architecture.partition(":")
    if family == "torchvision" and inner:
        return lambda wanted: _from_torchvision(inner, weights, wanted)
    if family == "timm" and inner:
        return lambda wanted: _from_timm(inner, weights, wanted)
    module, factory = _split_factory(architecture)
    if module:
        _check_weights(architecture, weights)
        return lambda wanted: (_call_factory(module, factory), _spec_from_request(architecture, wanted))
    if "/" in architecture or architecture.startswith("."):
        raise GapError(f"there is no classifier at {architecture}; a classifier is {NAME_SYNTAX}")
    raise unknown_name_error("classifier", architecture, BUILTIN)


def _no_architecture(path: Path, weights: str) -> GapError:
    """The error for a file or folder that is no architecture; raises the one that says what else it is."""
    if is_folder(path):
        open_artifact(path, "classifier")  # says what stands there instead
        return GapError(f"{path} says itself which network it is; leave out @{weights}")
    if path.suffix == ".py":
        return GapError(f"{path} holds code; say what makes the network, as {path}:Net")
    check_not_exported(path)
    return GapError(f"{path} holds weights but no network; write ARCHITECTURE@{path}")


def _check_weights(architecture: str, weights: str) -> None:
    if is_folder(weights):
        open_artifact(Path(weights), "classifier")  # says what stands there instead
        raise GapError(f"{weights} says itself which network it is; leave out {architecture}@")
    if weights and not is_file(weights):
        raise GapError(f"there is no weights file {weights!r} for {architecture}")


def _from_builtin(name: str, wanted: BuildRequest) -> tuple[nn.Module, ClassifierSpec]:
    entry = BUILTIN[name]
    channels, classes = entry.channels, entry.classes
    mean, std, names = entry.mean, entry.std, None
    if entry.pretrained:
        names = entry.class_names or _imagenet_names(classes)
    else:
        classes = wanted["classes"] or classes
        if wanted["channels"] not in (None, channels):
            channels = wanted["channels"]
            mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    size = (wanted["size"] or entry.size) if name.startswith("cifar") else entry.size
    return entry.build(channels, classes), ClassifierSpec(channels, size, classes, mean, std, names)


def _from_torchvision(name: str, weights: str, wanted: BuildRequest) -> tuple[nn.Module, ClassifierSpec]:
    import torchvision.models

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown_name_error("torchvision classifier", name, known)
    entries = torchvision.models.get_model_weights(name)
    if weights == "none" or is_file(weights):
        classes = wanted["classes"] or 1000
        network = torchvision.models.get_model(name, weights=None, num_classes=classes)
        return network, ClassifierSpec(3, wanted["size"] or (224, 224), classes, IMAGENET_MEAN, IMAGENET_STD)
    if weights and weights not in entries.__members__:
        raise unknown_name_error(f"weights for torchvision:{name}", weights, [*entries.__members__, "none"])
    chosen = entries[weights] if weights else entries.DEFAULT
    try:
        network = torchvision.models.get_model(name, weights=chosen)
    except OSError as error:
        raise GapError(f"cannot download the weights {chosen} of torchvision:{name} ({error})") from error
    preset, names = chosen.transforms(), chosen.meta["categories"]
    crop = preset.crop_size[0]
    return network, ClassifierSpec(3, (crop, crop), len(names), tuple(preset.mean), tuple(preset.std), tuple(names))


def _from_timm(name: str, weights: str, wanted: BuildRequest) -> tuple[nn.Module, ClassifierSpec]:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise unknown_name_error("timm classifier", name, timm.list_models())
    if weights and weights != "none" and not is_file(weights):
        raise GapError(
            f"timm weights are part of the name (timm:resnet50.a1_in1k); {weights!r} is neither that nor a file"
        )
    head = {"num_classes": wanted["classes"]} if weights and wanted["classes"] else {}
    try:
        network = timm.create_model(name, pretrained=not weights, **head)
    except (OSError, RuntimeError, ValueError) as error:
        raise GapError(f"cannot get the weights of timm:{name} ({first_line(error)})") from error
    config: Any = network.pretrained_cfg
    channels, height, width = config["input_size"]
    classes = head.get("num_classes", int(config["num_classes"]))
    spec = ClassifierSpec(channels, (height, width), classes, tuple(config["mean"]), tuple(config["std"]))
    return network, replace(spec, class_names=None if weights == "none" else _imagenet_names(spec.classes))


def _call_factory(module: str, factory: str) -> nn.Module:
    source = Path(module)
    if source.suffix == ".py":
        if not is_file(source):
            raise GapError(f"there is no file {module} to take the classifier {factory} from")
        loaded = _import_file(source)
    else:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            loaded = importlib.import_module(module)
        except Exception as error:  # importing runs the user's own code, which may raise anything; it becomes one line
            raise GapError(f"cannot import {module} for the classifier {factory}: {first_line(error)}") from error
    if not hasattr(loaded, factory):
        callables = [name for name, value in vars(loaded).items() if callable(value) and not name.startswith("_")]
        raise unknown_name_error(f"factory in {module}", factory, callables)
    made = getattr(loaded, factory)
    try:
        network = made if isinstance(made, nn.Module) else made()
    except Exception as error:  # the user's own factory may raise anything; it becomes one line
        raise GapError(f"cannot call {module}:{factory} without arguments: {first_line(error)}") from error
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
    except Exception as error:  # importing runs the user's own code, which may raise anything; it becomes one line
        raise GapError(f"cannot import {source}: {first_line(error)}") from error
    return loaded


def _spec_from_request(architecture: str, wanted: BuildRequest) -> ClassifierSpec:
    if wanted["channels"] is None or wanted["size"] is None:
        raise GapError(f"{architecture} does not say what it takes; add `input` CxHxW, for example `input` 3x32x32")
    return ClassifierSpec(wanted["channels"], wanted["size"], wanted["classes"] or 0)


def _imagenet_names(classes: int) -> tuple[str, ...] | None:
    if classes != 1000:
        return None
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(index) for index in range(classes))


def is_untrained(name: str) -> bool:
    """Whether a network of this name comes without weights, and with as many classes as are wanted."""
    architecture, weights = split_name(name)
    of_ours = name in BUILTIN and not BUILTIN[name].pretrained
    return of_ours or (weights == "none" and architecture.partition(":")[0] in FAMILIES)
