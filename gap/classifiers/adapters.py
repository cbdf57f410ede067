"""A classifier out of whatever a user holds: a name, a folder, or a network of one's own."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike

import torch
from torch import nn

from gap.classifiers.classifier import Classifier, load_classifier, validate_forward
from gap.core.errors import GapError, GapWarning

ClassifierLike = Classifier | nn.Module | str | PathLike[str]

# The sides that a network of the user's own is tried with where nothing says which images it takes.
SIDES = (224, 32, 28, 64, 96, 299)


def as_classifier(
    model: ClassifierLike,
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """The classifier that a name, a folder, a `Classifier` or any other network stands for, tried on random pixels.

    Args:
        model: a name or folder as `load_classifier` takes it, a `gap.Classifier`, or any `nn.Module` that turns images
            N x C x H x W in [0, 1] into logits N x K. The logits may also be the attribute or key "logits" of what it
            returns, or the first part of a tuple. A network in half precision is copied to float32.
        channels: channels of the images at hand, for networks that do not say what they take.
        size: (H, W) of the images at hand, for networks that do not say what they take.
        mean: mean of the normalization, for networks without one.
        std: standard deviation of that normalization.

    Returns:
        A classifier in the mode, and on the device, in which the network is. It shares the network's weights.

    Raises:
        GapError: where it is no classifier, or the network does not take such images.
    """
    if isinstance(model, str | PathLike):
        return load_classifier(model, channels=channels, size=size, mean=mean, std=std, lenient=True)
    if not isinstance(model, nn.Module):
        raise GapError(f"a classifier is a name, a folder or a torch.nn.Module, not a {type(model).__name__}")
    classifier = model if isinstance(model, Classifier) else Classifier(model, channels=channels, mean=mean, std=std)
    classifier = _in_float32(classifier)
    if not classifier.takes_any_size:
        return classifier if classifier.spec.classes else validate_forward(classifier)
    if size is not None:
        return validate_forward(_at_size(classifier, size))
    return _at_size_that_works(classifier)


def name_of(model: ClassifierLike) -> str:
    """How tables and cards call a model: by its name, or by the class of a network."""
    if isinstance(model, Classifier):
        return model.name
    return type(model).__name__ if isinstance(model, nn.Module) else str(model)


def copied(model: ClassifierLike) -> ClassifierLike:
    """A copy of a network, so that the user's own stays as it is; names are the same."""
    return copy.deepcopy(model) if isinstance(model, nn.Module) else model


def _at_size(classifier: Classifier, size: tuple[int, int]) -> Classifier:
    """The same network for images of that size."""
    if size == classifier.spec.size and classifier.spec.classes:
        return classifier
    return Classifier(
        classifier.network,
        replace(classifier.spec, size=size),
        name=classifier.name,
        architecture=classifier.architecture,
        normalizer_known=classifier.normalizer_known,
        takes_any_size=True,
    )


def _at_size_that_works(classifier: Classifier) -> Classifier:
    """The classifier at the first of SIDES that its network takes."""
    first: GapError | None = None
    for side in SIDES:
        try:
            return validate_forward(_at_size(classifier, (side, side)))
        except GapError as error:
            first = first or error
    assert first is not None
    raise GapError(f"{first}; say which images it takes: gap.Classifier(model, input_size=(H, W))") from first


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
    return copy.deepcopy(classifier).float()
