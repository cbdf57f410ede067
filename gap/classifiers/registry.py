"""Networks by name: builtin ones, those of torchvision and timm, and factories in the user's code."""

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

# Libraries whose networks are named FAMILY:NAME.
FAMILIES = ("torchvision", "timm")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ClassifierSpec:
    """The input and output of a classifier: images of `channels` x `size` in [0, 1] to `classes` logits.

    `mean` and `std`, per channel, are the normalization of the wrapper; None where the network normalizes by itself.
    """

    channels: int
    size: tuple[int, int]
    classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None


def split_name(text: str) -> tuple[str, str]:
    """A classifier's name split into its architecture and its weights, the text after an @; "" without an @.

    The path of an existing file or folder, also with a factory in it, is not split. With several @, the split is at the
    last one with a known architecture before it and an existing file or folder after it, or else at the last one with
    either of them.
    """
    if exists(text):
        return text, ""
    positions = [position for position, character in enumerate(text) if character == "@"]
    splits = [(text, ""), *((text[:position], text[position + 1 :]) for position in reversed(positions))]
    for is_valid in (_is_known_with_weights, _is_known, _has_weights, _is_factory):
        if split := next((candidate for candidate in splits if is_valid(*candidate)), None):
            return split
    before, _, after = text.partition("@")
    return (text, "") if "/" in before else (before, after)


def _is_known_with_weights(architecture: str, weights: str) -> bool:
    return _is_known(architecture, weights) and _has_weights(architecture, weights)


def _is_known(architecture: str, weights: str) -> bool:
    """Whether an architecture of this name exists."""
    family, _, inner = architecture.partition(":")
    if architecture in BUILTIN or (family in FAMILIES and inner):
        return "@" not in architecture
    module = _split_factory(architecture)[0]
    return exists(architecture) or is_file(module) or (bool(module) and not module.endswith(".py"))


def _has_weights(architecture: str, weights: str) -> bool:
    return exists(weights)


def _is_factory(architecture: str, weights: str) -> bool:
    """Whether an architecture has the form of a factory in a file or module, which need not exist."""
    return bool(_split_factory(architecture)[0])


def _split_factory(architecture: str) -> tuple[str, str]:
    """FILE.py:FACTORY or package.module:FACTORY as two names; two empty texts for any other form."""
    module, _, factory = architecture.rpartition(":")
    dotted = all(part.isidentifier() for part in module.split("."))
    if factory and "@" not in factory and (module.endswith(".py") or (dotted and factory.isidentifier())):
        return module, factory
    return "", ""


def runs_user_code(architecture: str) -> bool:
    """Whether building this architecture runs Python code of the user: a factory."""
    family, colon, _ = architecture.partition(":")
    return bool(colon) and family not in FAMILIES and not exists(architecture)


BuildRequest = dict[str, Any]
Builder = Callable[[BuildRequest], tuple[nn.Module, ClassifierSpec]]


def resolve_builder(architecture: str, weights: str) -> Builder:
    """The builder of a network; `weights` is the text after the @. Raises GapError for an unknown architecture."""
    if architecture in BUILTIN:
        _check_weights(architecture, weights)
        return lambda request: _from_builtin(architecture, request)
    if exists(architecture):
        raise _no_architecture(Path(architecture), weights)
    family, _, inner = architecture.partition(":")
    if family == "torchvision" and inner:
        return lambda request: _from_torchvision(inner, weights, request)
    if family == "timm" and inner:
        return lambda request: _from_timm(inner, weights, request)
    module, factory = _split_factory(architecture)
    if module:
        _check_weights(architecture, weights)
        return lambda request: (_call_factory(module, factory), _spec_from_request(architecture, request))
    if "/" in architecture or architecture.startswith("."):
        raise GapError(f"there is no classifier at {architecture}; a classifier is {NAME_SYNTAX}")
    raise unknown_name_error("classifier", architecture, BUILTIN)


def _no_architecture(path: Path, weights: str) -> GapError:
    """The error for a file or folder that is not an architecture. Raises a more specific error where there is one."""
    if is_folder(path):
        open_artifact(path, "classifier")  # raises where the folder holds anything else
        return GapError(f"{path} says itself which network it is; leave out @{weights}")
    if path.suffix == ".py":
        return GapError(f"{path} holds code; say what makes the network, as {path}:Net")
    check_not_exported(path)
    return GapError(f"{path} holds weights but no network; write ARCHITECTURE@{path}")


def _check_weights(architecture: str, weights: str) -> None:
    if is_folder(weights):
        open_artifact(Path(weights), "classifier")  # raises where the folder holds anything else
        raise GapError(f"{weights} says itself which network it is; leave out {architecture}@")
    if weights and not is_file(weights):
        raise GapError(f"there is no weights file {weights!r} for {architecture}")


def _from_builtin(name: str, request: BuildRequest) -> tuple[nn.Module, ClassifierSpec]:
    entry = BUILTIN[name]
    channels, classes = entry.channels, entry.classes
    mean, std, names = entry.mean, entry.std, None
    if entry.pretrained:
        names = entry.class_names or _imagenet_names(classes)
    else:
        classes = request["classes"] or classes
        if request["channels"] not in (None, channels):
            channels = request["channels"]
            mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    size = (request["size"] or entry.size) if name.startswith("cifar") else entry.size
    return entry.build(channels, classes), ClassifierSpec(channels, size, classes, mean, std, names)


def _from_torchvision(name: str, weights: str, request: BuildRequest) -> tuple[nn.Module, ClassifierSpec]:
    import torchvision.models

    model_names = torchvision.models.list_models(module=torchvision.models)
    if name not in model_names:
        raise unknown_name_error("torchvision classifier", name, model_names)
    entries = torchvision.models.get_model_weights(name)
    if weights == "none" or is_file(weights):
        classes = request["classes"] or 1000
        network = torchvision.models.get_model(name, weights=None, num_classes=classes)
        return network, ClassifierSpec(3, request["size"] or (224, 224), classes, IMAGENET_MEAN, IMAGENET_STD)
    if weights and weights not in entries.__members__:
        raise unknown_name_error(f"weights for torchvision:{name}", weights, [*entries.__members__, "none"])
    entry = entries[weights] if weights else entries.DEFAULT
    try:
        network = torchvision.models.get_model(name, weights=entry)
    except OSError as error:
        raise GapError(f"cannot download the weights {entry} of torchvision:{name} ({error})") from error
    preset, names = entry.transforms(), entry.meta["categories"]
    crop = preset.crop_size[0]
    return network, ClassifierSpec(3, (crop, crop), len(names), tuple(preset.mean), tuple(preset.std), tuple(names))


def _from_timm(name: str, weights: str, request: BuildRequest) -> tuple[nn.Module, ClassifierSpec]:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise unknown_name_error("timm classifier", name, timm.list_models())
    if weights and weights != "none" and not is_file(weights):
        raise GapError(
            f"timm weights are part of the name (timm:resnet50.a1_in1k); {weights!r} is neither that nor a file"
        )
    head = {"num_classes": request["classes"]} if weights and request["classes"] else {}
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
        except Exception as error:  # importing runs the user's code, which may raise anything
            raise GapError(f"cannot import {module} for the classifier {factory}: {first_line(error)}") from error
    if not hasattr(loaded, factory):
        callables = [name for name, value in vars(loaded).items() if callable(value) and not name.startswith("_")]
        raise unknown_name_error(f"factory in {module}", factory, callables)
    attribute = getattr(loaded, factory)
    try:
        network = attribute if isinstance(attribute, nn.Module) else attribute()
    except Exception as error:  # the user's factory may raise anything
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
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise GapError(f"cannot import {source}: {first_line(error)}") from error
    return loaded


def _spec_from_request(architecture: str, request: BuildRequest) -> ClassifierSpec:
    if request["channels"] is None or request["size"] is None:
        raise GapError(f"{architecture} does not say what it takes; add `input` CxHxW, for example `input` 3x32x32")
    return ClassifierSpec(request["channels"], request["size"], request["classes"] or 0)


def _imagenet_names(classes: int) -> tuple[str, ...] | None:
    if classes != 1000:
        return None
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(index) for index in range(classes))


def is_untrained(name: str) -> bool:
    """Whether a network of this name has random weights, and with them any number of classes."""
    architecture, weights = split_name(name)
    is_untrained_builtin = name in BUILTIN and not BUILTIN[name].pretrained
    return is_untrained_builtin or (weights == "none" and architecture.partition(":")[0] in FAMILIES)
