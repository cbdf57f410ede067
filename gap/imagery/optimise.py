"""The loop that moves a canvas until an objective likes it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gap.attacks.gradient import check_differentiable, steepest
from gap.frozen import frozen
from gap.imagery.canvas import Pixels
from gap.imagery.objectives import Look, Objective


@dataclass(frozen=True)
class Sight:
    """What a listener sees after each of `steps` moves, and before the first: the images, their logits, N values."""

    step: int
    steps: int
    images: Tensor
    logits: Tensor
    values: Tensor


def descend(
    canvas: Pixels,
    objective: Objective,
    network: nn.Module,
    *,
    steps: int,
    size: float,
    tell: Callable[[Sight], None] = lambda sight: None,
) -> None:
    """Move each image of a canvas `steps` times, by an L2 length of `size`, down its own gradient of an objective.

    Steps of one length are what drawing on robust networks uses (Santurkar et al., 2019): no prior shapes the picture.
    The network is held in eval mode and left as it was found. Raises GapError when it passes no gradient.
    """
    with frozen(network), torch.enable_grad():
        for step in range(steps + 1):
            images = canvas()
            logits = network(images)
            values = objective(Look(images, logits))
            tell(Sight(step, steps, images.detach().clone(), logits.detach(), values.detach()))
            if step == steps:
                return
            check_differentiable(values)
            (gradient,) = torch.autograd.grad(values.sum(), canvas.images)
            canvas.images.data = canvas.images.data - size * steepest(gradient, "l2")
            canvas.settle()
