"""Classifiers: networks from pixels in [0, 1] to logits, and how they are loaded by name."""

import hashlib
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from gap.classifiers.checkpoints import infer_num_classes, read_weights
from gap.classifiers.registry import ClassifierSpec, resolve_builder, runs_user_code, split_name
from gap.core.artifact import TENSORS, Artifact, Count, Side, is_artifact, open_artifact
from gap.core.errors import GapError, GapWarning, unknown_name_error
from gap.core.frozen import frozen
from gap.core.network import device_of, output_types, run_network
from gap.core.paths import is_file
from gap.core.safe_load import load_state_dict_checked, tensors_of
from gap.models.classifiers import BUILTIN


class Classifier(nn.Module):
    """Any network as a classifier of images in [0, 1], with its normalization included.

    The network gets a copy of the images in the memory format `memory_format`. It may return its logits in an object,
    a mapping or a tuple (see `gap.core.network`). An error of the network becomes a NetworkError with its name.

    Args:
        network: any `nn.Module` from normalized images to logits.
        spec: a ClassifierSpec in place of the next five arguments.
        mean: mean for the normalization of pixels in [0, 1], for each channel or one for all; None where the network
            normalizes by itself.
        std: standard deviation for each channel, or one for all.
        class_names: the names of the classes, in the order of the logits.
        input_size: (H, W), or the side of a square: images of another size are resized to it. Without it, images are
            not resized.
        channels: 1 or 3. By default the length of `mean`, or the channels of the images if the network works with
            them, or those of its first convolution.
        name: the name in tables and errors; by default the class of the network.
        architecture: the name that builds the network again, for cards.
        normalizer_known: whether the normalization, or that there is none, was saved with the weights.
        takes_any_size: whether images are not resized although `spec` has a size.

    Shape:
        Images N x C x H x W to logits N x K.

    Raises:
        GapError: for a normalization that does not match the channels, and for arguments that `spec` already contains.
    """

    # For `gap.core.network.call`: the inner network already gets a copy of the images.
    copies_images = True
    spec: ClassifierSpec
    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        spec: ClassifierSpec | None = None,
        *,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        class_names: Sequence[str] | None = None,
        input_size: tuple[int, int] | int | None = None,
        channels: int | None = None,
        name: str | None = None,
        architecture: str = "",
        normalizer_known: bool = False,
        takes_any_size: bool = False,
    ) -> None:
        super().__init__()
        self.channels_known = True
        if spec is None:
            takes_any_size, normalizer_known = input_size is None, True
            spec = _spec_of(network, mean, std, class_names, input_size, channels)
            self.channels_known = channels is not None or max(len(spec.mean or ()), len(spec.std or ())) > 1
        elif any(value is not None for value in (mean, std, class_names, input_size, channels)):
            raise GapError("`spec` holds `mean`, `std`, `class_names`, `input_size` and `channels`; leave these out")
        self.normalizer_known = normalizer_known
        self.takes_any_size = takes_any_size
        self.network = network
        self.spec = spec
        self.name = name or type(network).__name__
        self.architecture = architecture
        self.memory_format = torch.contiguous_format
        for buffer, values in (("mean", spec.mean), ("std", spec.std)):
            tensor = _as_buffer(values, spec.channels, buffer)
            self.register_buffer(buffer, None if tensor is None else tensor.to(device_of(network)), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != self.spec.size and not self.takes_any_size:
            images = functional.interpolate(images, self.spec.size, mode="bilinear", antialias=True)
        return self.logits_at(images)

    def logits_at(self, images: Tensor) -> Tensor:
        """The logits of images in [0, 1], which are not resized."""
        pixels = self.normalize(images)
        # A clone has the strides of its memory format; `contiguous` does not change those of images of one channel.
        if pixels is images or self.memory_format == torch.contiguous_format:
            pixels = pixels.clone(memory_format=self.memory_format)
        return run_network(self.network, pixels.contiguous(memory_format=self.memory_format), self.name)

    def use_memory_format(self, memory_format: torch.memory_format) -> None:
        """Convert the weights, and from now on the images, to a memory format."""
        self.memory_format = memory_format
        self.to(memory_format=memory_format)

    @property
    def device(self) -> torch.device:
        """The device of the classifier."""
        return device_of(self)

    def normalize(self, images: Tensor) -> Tensor:
        """Images in [0, 1] of any size, normalized for the network."""
        if self.mean is not None:
            images = images - self.mean
        if self.std is not None:
            images = images / self.std
        return images

    def label(self, index: int) -> str:
        """The name of a class, or its number where the name is not known."""
        names = self.spec.class_names
        return names[index] if names and index < len(names) else str(index)

    def find_class(self, text: str) -> int:
        """The index of a class by its number or name. Raises GapError with the most similar name when unknown."""
        count = self.spec.classes
        if text.isdecimal():
            if int(text) < count:
                return int(text)
            raise GapError(f"{self.name} has the classes 0 to {count - 1}, not {text}")
        names = {self.label(index).casefold(): index for index in range(count)}
        if text.casefold() not in names:
            raise unknown_name_error("class", text, names)
        return names[text.casefold()]

    def fingerprint(self) -> str:
        """A hash of the weights and buffers, which does not depend on where they are saved."""
        digest = hashlib.sha256()
        for name, tensor in sorted(tensors_of(self.network).items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """The metadata for a card: the architecture, the fingerprint and the ClassifierSpec."""
        spec = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.spec).items()}
        return {"name": self.name, "architecture": self.architecture, "fingerprint": self.fingerprint(), **spec}


def _spec_of(
    network: nn.Module,
    mean: Sequence[float] | float | None,
    std: Sequence[float] | float | None,
    class_names: Sequence[str] | None,
    input_size: tuple[int, int] | int | None,
    channels: int | None,
) -> ClassifierSpec:
    """The ClassifierSpec of a user's network. Its number of classes is set in `validate_forward`."""
    convolution = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    means, stds = (
        None if value is None else (float(value),) if isinstance(value, int | float) else tuple(map(float, value))
        for value in (mean, std)
    )
    size = (input_size, input_size) if isinstance(input_size, int) else input_size or (224, 224)
    if isinstance(class_names, str):
        raise GapError(f"`class_names` is a list of names, not {class_names!r}")
    num_values = next((len(values) for values in (means, stds) if values and len(values) > 1), 0)
    # A lazy convolution has 0 channels before its first call.
    default_channels = num_values or (convolution.in_channels if convolution else 0) or (3 if means is None else 1)
    names = None if class_names is None else tuple(map(str, class_names))
    return ClassifierSpec(channels or default_channels, size, 0, means, stds, names)


def load_classifier(
    name: str | os.PathLike[str],
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    lenient: bool = False,
) -> Classifier:
    """The classifier of that name, in eval mode, tried once on random pixels.

    Args:
        name: a name from `gap classifiers`, `torchvision:NAME@WEIGHTS`, `timm:NAME`, `FILE.py:FACTORY`,
            `package.module:FACTORY`, or a folder that `gap pretrain` wrote. `@FILE` after any of them except the folder
            loads a state dict (safetensors, or a checkpoint without code; see `checkpoints.py`). `@FOLDER` after a
            factory loads the weights in a folder that gap wrote, with the ClassifierSpec of its card.
        channels: channels of the data, for networks that do not define their input.
        size: (H, W) of the data, for these networks.
        classes: number of classes of the data, for these networks.
        mean: mean of the normalization, for networks without a normalizer, and for weights from a file that has none:
            their training may have used another normalization than is usual for the architecture.
        std: standard deviation of that normalization.
        lenient: ignore `mean` and `std` for other networks, instead of raising an error.

    Raises:
        GapError: where there is no such classifier, its weights do not match, its output has no logits, or it has a
            normalizer and another one is given.
    """
    text = os.fspath(name)
    request = {"channels": channels, "size": size, "classes": classes}
    if is_artifact(Path(text)):
        classifier = _from_artifact(open_artifact(Path(text), "classifier"), text)
    else:
        classifier = _from_weights(text, request, silent=mean is not None or std is not None)
    given_normalizer, spec = _mean_std(mean, std), classifier.spec
    weights_from_file = is_file(split_name(text)[1])
    if (
        given_normalizer
        and not classifier.normalizer_known
        and (weights_from_file or _mean_std(spec.mean, spec.std) is None)
    ):
        spec = replace(spec, mean=given_normalizer[0], std=given_normalizer[1])
        classifier = Classifier(classifier.network, spec, name=text, architecture=classifier.architecture)
    if not lenient:
        check_normalizer([classifier], mean, std)
    return validate_forward(classifier.eval())


def check_normalizer(
    classifiers: Sequence[Classifier], mean: Sequence[float] | None, std: Sequence[float] | None
) -> None:
    """Raise GapError when the given normalizer is not used by any of these classifiers: all have their own."""
    requested = _mean_std(mean, std)
    if requested and all(
        _mean_std(classifier.spec.mean, classifier.spec.std) != requested for classifier in classifiers
    ):
        names = " and ".join(classifier.name for classifier in classifiers)
        problem = "has its own normalizer, or none" if len(classifiers) == 1 else "have their own normalizers, or none"
        raise GapError(f"{names} {problem}; leave out `mean` and `std`")


def check_compatible(
    classifier: Classifier, *, channels: int, classes: int | None, data: str, labels_index_model: bool = False
) -> None:
    """Raise GapError when data with these numbers of channels and classes does not match the classifier.

    With `labels_index_model`, the labels are class indices of the classifier, so the data may have fewer classes.
    """
    spec = classifier.spec
    if channels != spec.channels:
        raise GapError(f"{classifier.name} takes {spec.channels}-channel images, but {data} has {channels}")
    if classes is None:
        return
    if labels_index_model and classes > spec.classes:
        raise GapError(
            f"{data} has the label {classes - 1}, but {classifier.name} knows the classes 0 to {spec.classes - 1};"
            " use labels of its classes, or `labels` predicted"
        )
    if not labels_index_model and classes != spec.classes:
        raise GapError(
            f"{classifier.name} knows {spec.classes} classes, but {data} has {classes};"
            " use data with its classes, or, to attack it, `labels` predicted"
        )


class ClassifierMetadata(BaseModel):
    """A classifier in a card, as returned by `Classifier.describe`."""

    name: str
    architecture: str
    fingerprint: str
    channels: Count
    size: tuple[Side, Side]
    classes: Count
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    class_names: tuple[str, ...] | None

    @property
    def spec(self) -> ClassifierSpec:
        return ClassifierSpec(self.channels, self.size, self.classes, self.mean, self.std, self.class_names)

    def matches(self, classifier: Classifier) -> bool:
        """Whether a classifier has the same weights and the same normalizer."""
        own = classifier.spec
        expected = _canonical_mean_std(self.mean, self.std, self.channels)
        return (
            expected == _canonical_mean_std(own.mean, own.std, own.channels)
            and self.fingerprint == classifier.fingerprint()
        )


class _Card(BaseModel):
    classifier: ClassifierMetadata


def model_dir_of(name: str) -> Path | None:
    """The folder, written by gap, that a classifier of this name was loaded from; None for any other name."""
    if is_artifact(Path(name)):
        return Path(name)
    path = Path(split_name(name)[1] or name)
    folder = path.parent if path.name == TENSORS else path
    return folder if is_artifact(folder) else None


def artifact_dir_of(classifier: Classifier) -> Path | None:
    """The folder whose card describes a classifier with its present weights and normalizer; None without one."""
    folder = model_dir_of(classifier.name)
    if folder is None or (artifact := open_artifact(folder)).kind != "classifier":
        return None
    return folder if artifact.read(_Card).classifier.matches(classifier) else None


def _from_weights(text: str, request: dict[str, Any], *, silent: bool) -> Classifier:
    """A network by the name of its architecture, with the weights after an @ and the card in their folder, if any.

    Unless `silent`, warns where the normalizer is only assumed.
    """
    architecture, weights = split_name(text)
    metadata = None
    if runs_user_code(architecture) and (folder := model_dir_of(weights)):
        metadata = open_artifact(folder, "classifier").read(_Card).classifier.spec
        request = {"channels": metadata.channels, "size": metadata.size, "classes": metadata.classes}
        weights = str(folder / TENSORS)
    build = resolve_builder(architecture, weights)
    network, spec = build(request)
    _as_float32(network, text)
    if not is_file(weights):
        return Classifier(network, spec, name=text, architecture=architecture)
    state, normalizer = read_weights(Path(weights), network)
    if classes := infer_num_classes(state, network, spec.classes):
        network, spec = build(request | {"classes": classes})
    load_state_dict_checked(network, state, weights)
    spec = metadata or spec
    if normalizer:
        spec = replace(spec, mean=normalizer.mean, std=normalizer.std)
    elif not silent and not model_dir_of(weights):
        _warn_assumed_normalization(spec, architecture, weights)
    normalizer_known = metadata is not None or normalizer is not None
    return Classifier(network, spec, name=text, architecture=architecture, normalizer_known=normalizer_known)


def _as_float32(network: nn.Module, name: str) -> None:
    """Convert weights and buffers of another precision to float32, with a warning. All computation is in float32."""
    tensors = (*network.parameters(), *network.buffers())
    others = {tensor.dtype for tensor in tensors if tensor.is_floating_point()} - {torch.float32}
    if others:
        types = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in others))
        warnings.warn(
            f"{name} has weights in {types}; it is used in float32: its forward must not cast images to another",
            GapWarning,
            stacklevel=4,
        )
        network.float()


def _warn_assumed_normalization(spec: ClassifierSpec, architecture: str, weights: str) -> None:
    """Warn which normalizer is assumed for weights without one, where another one is as likely."""
    if spec.mean is not None and any(spec.mean):
        values = " ".join(f"{mean:.3g}" for mean in spec.mean)
        assumption = (
            f"pixels are normalized as is usual for {architecture} (mean {values}); if it takes them as they are"
        )
    elif runs_user_code(architecture):
        assumption = (
            "the network gets pixels from 0 to 1; if it learned from others, give each verb `mean` and `std`; if not"
        )
    else:
        return
    warnings.warn(f"{weights} brings no normalizer; {assumption}, say `mean` 0 `std` 1", GapWarning, stacklevel=4)


def _from_artifact(artifact: Artifact, name: str) -> Classifier:
    metadata = artifact.read(_Card).classifier
    spec, architecture = metadata.spec, metadata.architecture
    request = {"channels": spec.channels, "size": spec.size, "classes": spec.classes}
    if runs_user_code(architecture):
        raise GapError(
            f"{name} was made from {architecture}, and code that only a card names is not run;"
            f" write {architecture}@{artifact.folder}"
        )
    weights = "" if architecture in BUILTIN else "none" if architecture.startswith(("torchvision:", "timm:")) else ""
    artifact.check_sizes("classifier", (spec.channels, spec.classes))
    network, _ = resolve_builder(architecture, weights)(request)
    artifact.fit(network)
    return Classifier(network, spec, name=name, architecture=architecture, normalizer_known=True)


@torch.no_grad()
def validate_forward(classifier: Classifier) -> Classifier:
    """The classifier, after a check of its logits for two images and for one; raises GapError for invalid logits."""
    spec, name = classifier.spec, classifier.name
    images = torch.rand(2, spec.channels, *spec.size, generator=torch.Generator().manual_seed(0)).to(classifier.device)
    if any(map(is_lazy, classifier.parameters())):
        _run_in_eval(classifier, images)  # the first call sets the shapes of lazy weights
    with frozen(classifier), output_types(classifier.network) as types:
        logits = classifier(images)
        single = classifier(images[:1])
    if types and not issubclass(types[0], Tensor):
        warnings.warn(f"{name} returns a {types[0].__name__}; its logits are taken", GapWarning, stacklevel=3)
    if logits.ndim != 2 or len(logits) != 2 or logits.shape[1] < 2:
        raise GapError(
            f"{name} returns the shape {tuple(logits.shape)} for 2 images; logits are images x classes, 2 or more"
        )
    if single.shape != (1, logits.shape[1]):
        raise GapError(
            f"{name} returns the shape {tuple(single.shape)} for one image; logits are images x classes, here"
            f" 1 x {logits.shape[1]}"
        )
    if not logits.isfinite().all():
        raise GapError(f"{name} returns NaN or infinity on random pixels; check its weights and its normalizer")
    if spec.classes and spec.classes != logits.shape[1]:
        raise GapError(f"{name} returns {logits.shape[1]} classes where {spec.classes} were expected")
    sums = logits.sum(dim=1)
    if logits.min() >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        warnings.warn(
            f"{name} seems to return probabilities (a softmax); attacks work best on logits", GapWarning, stacklevel=3
        )
    classifier.spec = replace(spec, classes=logits.shape[1])
    return classifier


def _run_in_eval(network: nn.Module, images: Tensor) -> None:
    """Run a network in eval mode, without updates of statistics. `frozen` does not work with lazy weights."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        network(images)
    finally:
        for module, training in modes:
            module.training = training


def _mean_std(
    mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation with a default for a missing one; None where both are missing."""
    if mean is None and std is None:
        return None
    return tuple(mean or (0.0,)), tuple(std or (1.0,))


def _canonical_mean_std(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> list[tuple[float, float]]:
    """The mean and standard deviation of every channel, the same for equivalent normalizers."""
    means, stds = tuple(mean or (0.0,)), tuple(std or (1.0,))
    return [(means[channel % len(means)], stds[channel % len(stds)]) for channel in range(channels)]


def _as_buffer(values: Sequence[float] | None, channels: int, name: str) -> Tensor | None:
    if values is None:
        return None
    if len(values) not in (1, channels):
        raise GapError(f"`{name}` has {len(values)} values for {channels} channels")
    if name == "std" and min(values) <= 0:
        raise GapError("`std` must be positive")
    if not all(math.isfinite(value) for value in values):
        raise GapError(f"`{name}` must be finite")
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
