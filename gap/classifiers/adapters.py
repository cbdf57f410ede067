"""Conversion of names, folders and networks of the user to classifiers."""

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
from gap.core.network import NetworkError, is_on

ClassifierLike = Classifier | nn.Module | str | PathLike[str]
T = TypeVar("T", bound=ClassifierLike)

# The input sizes that a user's network is tried with when its input size is unknown.
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
    """A classifier from a name, a folder, a `Classifier` or any other network, tried on random pixels.

    Args:
        model: a name or folder as for `load_classifier`, a `gap.Classifier`, or any `nn.Module` from images
            N x C x H x W in [0, 1] to logits N x K. The logits may also be the attribute or key "logits" of its
            output, or the first item of a tuple. A network in half precision is copied to float32.
        channels: channels of the images, for networks that do not define their input. If the network fails with this
            number, that of its first convolution is tried, to which the images are then converted.
        size: (H, W) of the images, for networks that do not define their input.
        mean: mean of the normalization, for networks without one.
        std: standard deviation of that normalization.
        lenient: ignore `mean` and `std` for networks that have a normalization, instead of raising an error.

    Returns:
        A classifier in the mode and on the device of the network. It shares the network's weights.

    Raises:
        GapError: where the model is not a classifier, the network fails on such images, the number of its class names
            differs from that of its logits, or it has a normalization and another one is given.
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
    """The name of a model in tables and cards: its own name, or the class of a network."""
    if isinstance(model, Classifier):
        return model.name
    return type(model).__name__ if isinstance(model, nn.Module) else str(model)


def copied(model: T) -> T:
    """A copy of a network, so that the user's network is not changed. A name is returned unchanged.

    Raises GapError where the network cannot be copied.
    """
    if not isinstance(model, nn.Module):
        return model
    try:
        return copy.deepcopy(model)
    except Exception as error:  # copying a user's network may raise anything
        raise GapError(
            f"{name_of(model)} cannot be copied ({first_line(error)}); let it keep no outputs of its layers"
        ) from error


def on_device(classifier: Classifier, device: torch.device | str) -> Classifier:
    """The classifier if it is on that device, else a copy on the device."""
    return classifier if is_on(classifier, device) else copied(classifier).to(device)


def _at_shape_that_works(classifier: Classifier, channels: int | None, size: tuple[int, int] | None) -> Classifier:
    """The classifier at the first input shape for which its network works.

    The shapes are those that the network defines, or else those of the images, or else those of SQUARES.
    """
    channel_counts = _possible_channels(classifier, channels)
    sizes = [classifier.spec.size] if not classifier.takes_any_size else [size] if size else SQUARES
    errors: dict[int, GapError] = {}
    for candidate_size in sizes:
        for count in channel_counts:
            at_shape = _at_shape(classifier, count, candidate_size)
            try:
                num_classes = at_shape is classifier and classifier.spec.classes
                return classifier if num_classes else validate_forward(at_shape)
            except GapError as error:
                errors.setdefault(count, error)
    # The error for the channels of a convolution says more than that for the channels of the images.
    failure = errors[channel_counts[-1] if _has_convolution(classifier) else channel_counts[0]]
    if len(channel_counts) == len(sizes) == 1 and not isinstance(failure, NetworkError):
        raise failure
    hint = "say which images it takes: gap.Classifier(model, input_size=(H, W), channels=C)"
    raise type(failure)(f"{failure}; {hint}") from failure


def _possible_channels(classifier: Classifier, channels: int | None) -> list[int]:
    """The numbers of channels to try for a network.

    They are the number that the network defines, or else that of the images and then that of its first convolution;
    without a convolution, also 1 and 3.
    """
    if classifier.channels_known or channels is None:
        return [classifier.spec.channels]
    others = [classifier.spec.channels] if _has_convolution(classifier) else [1, 3]
    return list(dict.fromkeys([channels, *others]))


def _has_convolution(classifier: Classifier) -> bool:
    return any(isinstance(module, nn.Conv2d) for module in classifier.modules())


def _at_shape(classifier: Classifier, channels: int, size: tuple[int, int]) -> Classifier:
    """A classifier of the same network for another input shape; the classifier itself where it has that shape."""
    spec = classifier.spec
    if (channels, size) == (spec.channels, spec.size) and (spec.classes or not classifier.takes_any_size):
        return classifier  # its number of classes is then known
    return Classifier(
        classifier.network,
        replace(spec, channels=channels, size=size),
        name=classifier.name,
        architecture=classifier.architecture,
        normalizer_known=classifier.normalizer_known,
        takes_any_size=classifier.takes_any_size,
    )


def _in_float32(classifier: Classifier) -> Classifier:
    """The classifier, or a copy in float32 where it has weights of another precision."""
    tensors = [*classifier.network.parameters(), *classifier.network.buffers()]
    if all(tensor.dtype == torch.float32 for tensor in tensors if tensor.is_floating_point()):
        return classifier
    warnings.warn(
        f"{classifier.name} has weights that are not in float32; a copy of it in float32 is used",
        GapWarning,
        stacklevel=3,
    )
    return copied(classifier).float()
