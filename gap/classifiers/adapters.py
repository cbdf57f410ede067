"""A classifier out of whatever a user holds: a name, a folder, or a network of one's own."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import TypeVar

import torch
from torch import nn

from gap.classifiers.classifier import Classifier, check_normalizer, load_classifier, validate_forward
from gap.core.errors import GapError, GapWarning, first_line
from gap.core.network import NetworkError

ClassifierLike = Classifier | nn.Module | str | PathLike[str]
T = TypeVar("T", bound=ClassifierLike)

# The sizes that a network of the user's own is tried with where nothing says which images it takes.
SQUARES = [(side, side) for side in (224, 32, 28, 64, 96, 299)]


def as_classifier(
    model: ClassifierLike,
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    lenient: bool = False,
) -> Classifier:
    """The classifier that a name, a folder, a `Classifier` or any other network stands for, tried on random pixels.

    Args:
        model: a name or folder as `load_classifier` takes it, a `gap.Classifier`, or any `nn.Module` that turns images
            N x C x H x W in [0, 1] into logits N x K. The logits may also be the attribute or key "logits" of what it
            returns, or the first part of a tuple. A network in half precision is copied to float32.
        channels: channels of the images at hand, for networks that do not say what they take. One that fails on so many
            is tried with those of its first convolution, to which the images are then converted.
        size: (H, W) of the images at hand, for networks that do not say what they take.
        mean: mean of the normalization, for networks without one.
        std: standard deviation of that normalization.
        lenient: leave networks that have a normalization as they are, where another is given.

    Returns:
        A classifier in the mode, and on the device, in which the network is. It shares the network's weights.

    Raises:
        GapError: where it is no classifier, the network does not take such images, its class names are not as many as
            its logits, or it has a normalization and another is given.
    """
    if isinstance(model, str | PathLike):
        return load_classifier(model, channels=channels, size=size, mean=mean, std=std, lenient=lenient)
    if not isinstance(model, nn.Module):
        raise GapError(f"a classifier is a name, a folder or a torch.nn.Module, not a {type(model).__name__}")
    classifier = _in_float32(model if isinstance(model, Classifier) else Classifier(model, mean=mean, std=std))
    if not lenient:
        check_normalizer([classifier], mean, std)
    classifier = _at_shape_that_works(classifier, channels, size)
    names, classes = classifier.spec.class_names, classifier.spec.classes
    if names and len(names) != classes:
        raise GapError(f"{classifier.name} has {classes} classes, and `class_names` has {len(names)} names")
    return classifier


def name_of(model: ClassifierLike) -> str:
    """How tables and cards call a model: by its name, or by the class of a network."""
    if isinstance(model, Classifier):
        return model.name
    return type(model).__name__ if isinstance(model, nn.Module) else str(model)


def copied(model: T) -> T:
    """A copy of a network, so that the user's own stays as it is; names are the same.

    Raises GapError where the network holds something that cannot be copied.
    """
    if not isinstance(model, nn.Module):
        return model
    try:
        return copy.deepcopy(model)
    except Exception as error:  # a network of the user's own may hold anything
        raise GapError(
            f"{name_of(model)} cannot be copied ({first_line(error)}); let it keep no outputs of its layers"
        ) from error


def _at_shape_that_works(classifier: Classifier, channels: int | None, size: tuple[int, int] | None) -> Classifier:
    """The classifier at the first shape of images that its network takes, of those that it says or are at hand, or else
    of SQUARES."""
    counts = _possible_channels(classifier, channels)
    sizes = [classifier.spec.size] if not classifier.takes_any_size else [size] if size else SQUARES
    errors: dict[int, GapError] = {}
    for height_width in sizes:
        for count in counts:
            at_shape = _at_shape(classifier, count, height_width)
            try:
                known = at_shape is classifier and classifier.spec.classes
                return classifier if known else validate_forward(at_shape)
            except GapError as error:
                errors.setdefault(count, error)
    # What a convolution says is more than what the images at hand have.
    failure = errors[counts[-1] if _has_convolution(classifier) else counts[0]]
    if len(counts) == len(sizes) == 1 and not isinstance(failure, NetworkError):
        raise failure
    hint = "say which images it takes: gap.Classifier(model, input_size=(H, W), channels=C)"
    raise type(failure)(f"{failure}; {hint}") from failure


def _possible_channels(classifier: Classifier, channels: int | None) -> list[int]:
    """How many channels a network may take: what it says, or else as many as the images at hand have, or as its first
    convolution has; without one, 1 or 3."""
    if classifier.channels_known or channels is None:
        return [classifier.spec.channels]
    others = [classifier.spec.channels] if _has_convolution(classifier) else [1, 3]
    return list(dict.fromkeys([channels, *others]))


def _has_convolution(classifier: Classifier) -> bool:
    return any(isinstance(module, nn.Conv2d) for module in classifier.modules())


def _at_shape(classifier: Classifier, channels: int, size: tuple[int, int]) -> Classifier:
    """The same network for images of that shape; the classifier itself where it is for these."""
    spec = classifier.spec
    if (channels, size) == (spec.channels, spec.size) and (spec.classes or not classifier.takes_any_size):
        return classifier  # which keeps how many classes it has
    return Classifier(
        classifier.network,
        replace(spec, channels=channels, size=size),
        name=classifier.name,
        architecture=classifier.architecture,
        normalizer_known=classifier.normalizer_known,
        takes_any_size=classifier.takes_any_size,
    )


def _in_float32(classifier: Classifier) -> Classifier:
    """The classifier itself, or a copy in float32 where it has weights of another precision."""
    tensors = [*classifier.network.parameters(), *classifier.network.buffers()]
    if all(tensor.dtype == torch.float32 for tensor in tensors if tensor.is_floating_point()):
        return classifier
    warnings.warn(
        f"{classifier.name} has weights that are not in float32; a copy of it in float32 is used",
        GapWarning,
        stacklevel=3,
    )
    return copied(classifier).float()
