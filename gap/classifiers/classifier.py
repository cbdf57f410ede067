"""Classifiers: any network from pixels in [0, 1] to logits, named by one string."""

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

from gap.classifiers.checkpoints import classes_in, fit_weights, read_weights, tensors_of
from gap.classifiers.registry import Facts, find_builder, is_code, split_name
from gap.core.artifact import TENSORS, Artefact, Count, Side, is_artefact, open_artefact
from gap.core.errors import GapError, GapWarning
from gap.core.frozen import frozen
from gap.core.network import device_of, output_types, run_network
from gap.core.paths import is_file
from gap.models.classifiers import ZOO


class Classifier(nn.Module):
    """A network with its normaliser inside, and the facts about it.

    Takes images N x C x H x W in [0, 1]; gives logits N x classes. Images of another size than its own are resized to
    it, so that one attack can meet several classifiers. `architecture` is the string that builds the network, `name`
    the one the user wrote. `settled` says that its normaliser, or that it has none, came with its weights.

    The network gets its own copy of the images, in the layout `memory_format`, and may return its logits in an object,
    a mapping or a tuple (see `gap.core.network`). What it raises becomes a NetworkError that names it.
    """

    # For `gap.core.network.call`: the network inside gets its own copy of the images.
    copies_images = True
    facts: Facts
    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self, network: nn.Module, facts: Facts, *, name: str, architecture: str, settled: bool = False
    ) -> None:
        super().__init__()
        self.settled = settled
        self.network = network
        self.facts = facts
        self.name = name
        self.architecture = architecture
        self.memory_format = torch.contiguous_format
        self.register_buffer("mean", _per_channel(facts.mean, facts.channels, "mean"), persistent=False)
        self.register_buffer("std", _per_channel(facts.std, facts.channels, "std"), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != self.facts.size:
            images = functional.interpolate(images, self.facts.size, mode="bilinear", antialias=True)
        return self.logits_at(images)

    def logits_at(self, images: Tensor) -> Tensor:
        """The logits of images in [0, 1] at the size that they have."""
        pixels = self.normalised(images)
        # A copy has the strides of its layout; `contiguous` leaves those of images of one channel as they are.
        if pixels is images or self.memory_format == torch.contiguous_format:
            pixels = pixels.clone(memory_format=self.memory_format)
        return run_network(self.network, pixels.contiguous(memory_format=self.memory_format), self.name)

    def lay_out(self, memory_format: torch.memory_format) -> None:
        """Bring weights and, from now on, images into a memory layout."""
        self.memory_format = memory_format
        self.to(memory_format=memory_format)

    @property
    def device(self) -> torch.device:
        """Where the classifier is."""
        return device_of(self)

    def normalised(self, images: Tensor) -> Tensor:
        """Images in [0, 1] of any size as the network itself takes them."""
        if self.mean is not None:
            images = images - self.mean
        if self.std is not None:
            images = images / self.std
        return images

    def label(self, index: int) -> str:
        """The name of a class where it is known, its number where not."""
        names = self.facts.class_names
        return names[index] if names and index < len(names) else str(index)

    def fingerprint(self) -> str:
        """A hash of the weights and buffers, the same for the same network wherever it is saved."""
        digest = hashlib.sha256()
        for name, tensor in sorted(tensors_of(self.network).items()):
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
    lenient: bool = False,
) -> Classifier:
    """The classifier that one string names, in eval mode, tried once on random pixels.

    The name is one of ours, `torchvision:NAME@WEIGHTS`, `timm:NAME`, `FILE.py:FACTORY`, `package.module:FACTORY`, or
    the folder that `gap pretrain` left; `@FILE` after any of them but the last loads a state dict (safetensors, or a
    checkpoint that runs nothing; see `checkpoints.py`), and `@FOLDER` after code of your own that of a folder
    that gap left, with what its card says. `channels`, `size` and `classes` are what the data has, for networks that do
    not say themselves. `mean` and `std` are for networks without a normaliser and for weights from a file that does not
    bring its own, whose training may have had another than is usual for the architecture; `lenient` leaves the others
    as they are.

    Raises GapError when there is no such classifier, its weights do not fit, what it returns are not logits, or it has
    a normaliser and is given another.
    """
    text = os.fspath(name)
    wanted = {"channels": channels, "size": size, "classes": classes}
    if is_artefact(Path(text)):
        classifier = _from_artefact(open_artefact(Path(text), "classifier"), text)
    else:
        classifier = _from_weights(text, wanted, silent=mean is not None or std is not None)
    given, facts = _normaliser(mean, std), classifier.facts
    foreign = is_file(split_name(text)[1])
    if given and not classifier.settled and (foreign or _normaliser(facts.mean, facts.std) is None):
        facts = replace(facts, mean=given[0], std=given[1])
        classifier = Classifier(classifier.network, facts, name=text, architecture=classifier.architecture)
    if not lenient:
        check_normaliser([classifier], mean, std)
    return _tried(classifier.eval())


def check_normaliser(
    classifiers: Sequence[Classifier], mean: Sequence[float] | None, std: Sequence[float] | None
) -> None:
    """Raise GapError when a normaliser is given that none of these classifiers has: each brought its own."""
    given = _normaliser(mean, std)
    if given and all(_normaliser(each.facts.mean, each.facts.std) != given for each in classifiers):
        names = " and ".join(classifier.name for classifier in classifiers)
        own = "has its own normaliser, or none" if len(classifiers) == 1 else "have their own normalisers, or none"
        raise GapError(f"{names} {own}; leave out --mean and --std")


def check_fits(classifier: Classifier, *, channels: int, classes: int | None, data: str, indexed: bool = False) -> None:
    """Raise GapError when data of that many channels and classes cannot be given to this classifier.

    `indexed` data has the classifier's own class indices for labels: it may have fewer classes, not more.
    """
    facts = classifier.facts
    if channels != facts.channels:
        raise GapError(f"{classifier.name} takes {facts.channels}-channel images, but {data} has {channels}")
    if classes is None:
        return
    if indexed and classes > facts.classes:
        raise GapError(
            f"{data} has the label {classes - 1}, but {classifier.name} knows the classes 0 to {facts.classes - 1};"
            " mend labels.csv, or use --labels predicted"
        )
    if not indexed and classes != facts.classes:
        raise GapError(
            f"{classifier.name} knows {facts.classes} classes, but {data} has {classes};"
            " use data with its classes, or, to attack it, --labels predicted"
        )


class Told(BaseModel):
    """What a card tells of a classifier, as `Classifier.describe` gave it."""

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
    def facts(self) -> Facts:
        return Facts(self.channels, self.size, self.classes, self.mean, self.std, self.class_names)

    def is_about(self, classifier: Classifier) -> bool:
        """Whether it is this very classifier: its weights and its normaliser."""
        own = classifier.facts
        told = _effect(self.mean, self.std, self.channels)
        return told == _effect(own.mean, own.std, own.channels) and self.fingerprint == classifier.fingerprint()


class _Card(BaseModel):
    classifier: Told


def folder_of(name: str) -> Path | None:
    """The folder that gap left with a classifier of this name in it, where there is one."""
    if is_artefact(Path(name)):
        return Path(name)
    where = Path(split_name(name)[1] or name)
    folder = where.parent if where.name == TENSORS else where
    return folder if is_artefact(folder) else None


def card_of(classifier: Classifier) -> Path | None:
    """The folder whose card is about this very classifier, its weights and its normaliser, where there is one."""
    folder = folder_of(classifier.name)
    if folder is None or (artefact := open_artefact(folder)).kind != "classifier":
        return None
    return folder if artefact.read(_Card).classifier.is_about(classifier) else None


def _from_weights(text: str, wanted: dict[str, Any], *, silent: bool) -> Classifier:
    """A network by the name of its architecture, with the weights named behind an @; a card beside them is believed.

    Unless `silent`, it is said where a normaliser is only supposed.
    """
    architecture, weights = split_name(text)
    told = None
    if is_code(architecture) and (folder := folder_of(weights)):
        told = open_artefact(folder, "classifier").read(_Card).classifier.facts
        wanted = {"channels": told.channels, "size": told.size, "classes": told.classes}
        weights = str(folder / TENSORS)
    build = find_builder(architecture, weights)
    network, facts = build(wanted)
    _as_float32(network, text)
    if not is_file(weights):
        return Classifier(network, facts, name=text, architecture=architecture)
    state, normaliser = read_weights(Path(weights), network)
    if classes := classes_in(state, network, facts.classes):
        network, facts = build(wanted | {"classes": classes})
    fit_weights(network, state, weights)
    facts = told or facts
    if normaliser:
        facts = replace(facts, mean=normaliser.mean, std=normaliser.std)
    elif not silent and not folder_of(weights):
        _warn_of_supposed(facts, architecture, weights)
    settled = told is not None or normaliser is not None
    return Classifier(network, facts, name=text, architecture=architecture, settled=settled)


def _as_float32(network: nn.Module, name: str) -> None:
    """Bring weights and buffers of another precision to float32, in which everything is measured, and say so."""
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


def _warn_of_supposed(facts: Facts, architecture: str, weights: str) -> None:
    """Say which normaliser is supposed for weights that bring none, where another would be as likely."""
    if facts.mean is not None and any(facts.mean):
        shown = " ".join(f"{value:.3g}" for value in facts.mean)
        supposed = f"pixels are normalised as is usual for {architecture} (mean {shown}); if it takes them as they are"
    elif is_code(architecture):
        supposed = (
            "the network gets pixels from 0 to 1; if it learned from others, give each verb --mean and --std; if not"
        )
    else:
        return
    warnings.warn(f"{weights} brings no normaliser; {supposed}, say --mean 0 --std 1", GapWarning, stacklevel=4)


def _from_artefact(artefact: Artefact, name: str) -> Classifier:
    told = artefact.read(_Card).classifier
    saved, architecture = told.facts, told.architecture
    wanted = {"channels": saved.channels, "size": saved.size, "classes": saved.classes}
    if is_code(architecture):
        raise GapError(
            f"{name} was made from {architecture}, and code that only a card names is not run;"
            f" write {architecture}@{artefact.folder}"
        )
    weights = "" if architecture in ZOO else "none" if architecture.startswith(("torchvision:", "timm:")) else ""
    artefact.check_sizes("classifier", (saved.channels, saved.classes))
    network, _ = find_builder(architecture, weights)(wanted)
    artefact.fit(network)
    return Classifier(network, saved, name=name, architecture=architecture, settled=True)


@torch.no_grad()
def _tried(classifier: Classifier) -> Classifier:
    """The classifier after a look at its logits for two images and for one; raises GapError where they are none."""
    facts, name = classifier.facts, classifier.name
    probe = torch.rand(2, facts.channels, *facts.size, generator=torch.Generator().manual_seed(0))
    if any(map(is_lazy, classifier.parameters())):
        classifier(probe)  # the first images say how large the weights are
    with frozen(classifier), output_types(classifier.network) as types:
        logits = classifier(probe)
        single = classifier(probe[:1])
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


def _normaliser(
    mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation, the one that is missing filled in; None where both are."""
    if mean is None and std is None:
        return None
    return tuple(mean or (0.0,)), tuple(std or (1.0,))


def _effect(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> list[tuple[float, float]]:
    """What a normaliser does to each channel, the same however it was written."""
    means, stds = tuple(mean or (0.0,)), tuple(std or (1.0,))
    return [(means[each % len(means)], stds[each % len(stds)]) for each in range(channels)]


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
