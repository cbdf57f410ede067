"""The projected gradient step that all gradient attacks share."""

from torch import Tensor

from gap.threat import Budget


def projected_step(clean: Tensor, adversarial: Tensor, gradient: Tensor, size: float, budget: Budget) -> Tensor:
    """One step of projected gradient descent (Madry et al., 2018).

    Args:
        clean: the images at the center of the budget, N x C x H x W in [0, 1].
        adversarial: the images before the step, of the same shape.
        gradient: the gradient of the loss to minimize, of the same shape.
        size: the norm of the step, in pixels of [0, 1].
        budget: the bound on the perturbation of the result.

    Returns:
        The adversarial images after a step of that size down the steepest direction of the budget's norm, projected
        onto the budget, then clamped to [0, 1].
    """
    # In place: on the CPU, allocating tensors of this size takes longer than the arithmetic.
    stepped = (adversarial - clean).sub_(budget.norm.steepest(gradient).mul_(size))
    return budget.project(stepped).add_(clean).clamp_(0, 1)
