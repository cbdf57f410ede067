"""The gradient of a value with respect to images, for any network."""

import warnings

import torch
from torch import Tensor

from gap.core.errors import GapError, GapWarning, first_line, is_out_of_memory
from gap.core.network import NetworkError

NO_GRADIENT = "the classifier passes no gradient to its input; attack it with noise or a trained perturbation"


def check_differentiable(value: Tensor) -> None:
    """Raise GapError when a value that a classifier computed does not require a gradient."""
    if not value.requires_grad:
        raise GapError(NO_GRADIENT)


def input_gradient(value: Tensor, images: Tensor, *, retain_graph: bool = False) -> Tensor:
    """The gradient of a scalar with respect to the leaf tensor `images`, in its shape.

    It is computed by `backward`, because networks with reentrant checkpoints do not support `torch.autograd.grad`. The
    networks must be frozen, or their weights accumulate gradients. Raises GapError where no gradient reaches the
    images, and NetworkError where the backward pass of the network fails.
    """
    check_differentiable(value)
    images.grad = None
    try:
        value.backward(retain_graph=retain_graph)
    except (GapError, MemoryError):
        raise
    except Exception as error:  # a foreign backward may raise anything
        if is_out_of_memory(error):
            raise
        raise NetworkError(
            f"the gradient of the classifier cannot be computed: {type(error).__name__}: {first_line(error)}"
        ) from error
    gradient, images.grad = images.grad, None
    if gradient is None:
        raise GapError(NO_GRADIENT)
    return gradient


def zero_where_undefined(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient with 0 in place of NaN and infinity, and N booleans: which images had such values."""
    # A sum is finite only where all its terms are. This is cheap on the CPU; on an accelerator it would synchronize.
    if gradient.device.type == "cpu" and gradient.sum().isfinite():
        return gradient, torch.zeros(len(gradient), dtype=torch.bool)
    undefined = ~gradient.flatten(1).isfinite().all(dim=1)
    return gradient.nan_to_num(0.0, 0.0, 0.0), undefined


def warn_if_undefined(attack: str, undefined: Tensor) -> None:
    """Warn that an attack's gradient is NaN or infinite for some images. `undefined` holds N booleans."""
    count = int(undefined.sum())
    if count:
        warnings.warn(
            f"{attack}: the classifier's gradient is NaN or infinite for {count} of {len(undefined)} images;"
            " the attack searches without it there, and its figures say little",
            GapWarning,
            stacklevel=3,
        )
