"""The one step that every gradient attack takes."""

from torch import Tensor

from gap.threat import Budget


def projected_step(clean: Tensor, adversarial: Tensor, gradient: Tensor, size: float, budget: Budget) -> Tensor:
    """One step of projected gradient descent (Madry et al., 2018).

    Args:
        clean: the images that the budget is around, N x C x H x W in [0, 1].
        adversarial: where the step begins, of the same shape.
        gradient: the gradient of the loss to be lowered, of the same shape.
        size: the norm of the step, in pixels of [0, 1].
        budget: what the result stays inside.

    Returns:
        The adversarial images after a step of that size down the steepest direction of the budget's norm, projected
        onto the budget, then clamped to [0, 1].
    """
    # In place: on the CPU, new tensors of this size cost more than the arithmetic.
    stepped = (adversarial - clean).sub_(budget.norm.steepest(gradient).mul_(size))
    return budget.project(stepped).add_(clean).clamp_(0, 1)
