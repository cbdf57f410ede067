"""The gradient of a value by the images it was computed from, on any network."""

import warnings

import torch
from torch import Tensor

from gap.core.errors import GapError, GapWarning, first_line, is_out_of_memory
from gap.core.network import NetworkError

NO_GRADIENT = "the classifier passes no gradient to its input; attack it with noise or a trained perturbation"


def check_differentiable(value: Tensor) -> None:
    """Raise GapError when a value computed by a classifier carries no gradient."""
    if not value.requires_grad:
        raise GapError(NO_GRADIENT)


def input_gradient(value: Tensor, images: Tensor, *, retain_graph: bool = False) -> Tensor:
    """The gradient of a scalar by the leaf tensor `images`, in its shape.

    It is taken by `backward`: networks with reentrant checkpoints refuse `torch.autograd.grad`. Hold the networks
    frozen meanwhile, or their weights collect gradients. Raises GapError where no gradient reaches the images, and
    NetworkError where the backward pass of the network fails.
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
    """The gradient with NaN and infinity as 0, and for which of N images it has any: N booleans."""
    # A sum is finite only where all its parts are. On the CPU that is the cheap test; elsewhere it would wait.
    if gradient.device.type == "cpu" and gradient.sum().isfinite():
        return gradient, torch.zeros(len(gradient), dtype=torch.bool)
    undefined = ~gradient.flatten(1).isfinite().all(dim=1)
    return gradient.nan_to_num(0.0, 0.0, 0.0), undefined


def warn_if_undefined(attack: str, undefined: Tensor) -> None:
    """Warn for how many of N images (booleans) an attack met a gradient that is NaN or infinite."""
    count = int(undefined.sum())
    if count:
        warnings.warn(
            f"{attack}: the classifier's gradient is NaN or infinite for {count} of {len(undefined)} images;"
            " the attack searches without it there, and its figures say little",
            GapWarning,
            stacklevel=3,
        )
