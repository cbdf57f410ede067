"""Optimizers that minimize an objective over a canvas."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from gap.core.errors import GapError
from gap.core.gradients import input_gradient
from gap.imagery.canvas import Canvas
from gap.imagery.objectives import Activations, Objective, check_gradients
from gap.imagery.options import Optimizer
from gap.threat import L2, Budget

# A function from images to the outputs of layers by name.
Outputs = Callable[[Tensor], Mapping[str, Tensor]]
# The history size of L-BFGS.
HISTORY = 20
# L-BFGS uses a line search for this many evaluations. Before it has estimates of the curvature, steps are too long.
LINE_SEARCH_EVALUATIONS = 10
# With a tolerance, the improvement is measured over this many evaluations.
PATIENCE = 20
# The sum of the lengths of all steps, relative to the largest distance that the budget allows.
PATH_RATIO = 3.0
# The default budget, relative to the largest distance between two images.
BUDGET_RATIO = 0.25


@dataclass(frozen=True)
class OptimizationProgress:
    """The argument of callbacks at each of `steps` evaluations: the activations with their images, and N values."""

    step: int
    steps: int
    activations: Activations
    values: Tensor


def no_callback(progress: OptimizationProgress) -> None:
    """A callback that does nothing."""


def default_budget(images: Tensor) -> Budget:
    """The default budget of a drawing without a prior."""
    return Budget("l2", round(BUDGET_RATIO * math.sqrt(images[0].numel()), 2))


def step_length(budget: Budget, images: Tensor, steps: int) -> float:
    """The L2 norm of a step, with which `steps` steps can cross the budget on a path that is not straight."""
    return PATH_RATIO * budget.norm.longest_l2(budget.epsilon, images[0].numel()) / steps


def normalized_gradient_descent(
    canvas: Canvas,
    objective: Objective,
    extractors: Outputs,
    *,
    steps: int,
    size: float,
    tell: Callable[[OptimizationProgress], None] = no_callback,
) -> None:
    """Take `steps` steps of L2 norm `size` along each image's own gradient of an objective.

    Steps of constant norm are used for drawings with robust networks, without a prior (Santurkar et al., 2019). The
    callback is also called with the initial images. Raises GapError when the network passes no gradient.
    """
    for step in range(steps + 1):
        progress = _evaluate(canvas, objective, extractors, step, steps + 1)
        tell(progress)
        if step == steps:
            return
        gradient = _gradient(canvas, progress.values.sum(), objective)
        canvas.weights.data = canvas.weights.data - size * L2.steepest(gradient)
        canvas.project_()


def optimize(
    canvas: Canvas,
    objective: Objective,
    extractors: Outputs,
    *,
    evaluations: int,
    optimizer: Optimizer = "lbfgs",
    lr: float | None = None,
    tolerance: float = 0.0,
    tell: Callable[[OptimizationProgress], None] = no_callback,
) -> int:
    """Minimize an objective over a canvas, with at most `evaluations` forward and backward passes of the network.

    `lbfgs` uses estimates of the curvature (Liu and Nocedal, 1989), as the articles on style transfer do, and a line
    search for the first steps; `adam` takes steps of about `lr` (by default 0.02). The optimization stops early only if
    PATIENCE evaluations improve the objective by less than `tolerance`, a relative value. The result is the canvas with
    the lowest value. Returns the number of evaluations. Raises GapError when the network passes no gradient, or the
    objective is no longer finite.
    """
    num_evaluations, best, lowest = 0, canvas.weights.detach().clone(), math.inf
    lowest_values: list[float] = []

    def evaluate() -> float:
        nonlocal num_evaluations, best, lowest
        if num_evaluations == evaluations or _has_plateaued(lowest_values, tolerance):
            raise _EvaluationLimitError
        canvas.project_()
        progress = _evaluate(canvas, objective, extractors, num_evaluations, evaluations)
        tell(progress)
        num_evaluations += 1
        # The objectives are relative values of about 1. For L-BFGS, the gradient of a pixel should have that scale.
        value = progress.values.sum() * canvas.weights[0].numel()
        if value < lowest:
            best, lowest = canvas.weights.detach().clone(), value.item()
        lowest_values.append(lowest)
        canvas.weights.grad = _gradient(canvas, value, objective).contiguous()
        return value.item()

    torch_optimizer = _make_optimizer(canvas, optimizer, lr, evaluations)
    with suppress(_EvaluationLimitError):
        while True:
            torch_optimizer.step(evaluate)
            if optimizer == "lbfgs":
                torch_optimizer.param_groups[0].update(line_search_fn=None, max_eval=evaluations)
    canvas.weights.data = best
    return num_evaluations


def _has_plateaued(lowest_values: Sequence[float], tolerance: float) -> bool:
    """Whether the last PATIENCE evaluations improved less than the relative tolerance; False for a tolerance of 0."""
    if not tolerance or len(lowest_values) <= PATIENCE:
        return False
    previous = lowest_values[-1 - PATIENCE]
    return previous - lowest_values[-1] < tolerance * abs(previous)


class _EvaluationLimitError(Exception):
    """The evaluations are used up, or the objective has plateaued."""


def _make_optimizer(canvas: Canvas, optimizer: Optimizer, lr: float | None, evaluations: int) -> torch.optim.Optimizer:
    if optimizer == "adam":
        return torch.optim.Adam([canvas.weights], lr=0.02 if lr is None else lr)
    return torch.optim.LBFGS(
        [canvas.weights],
        lr=1.0 if lr is None else lr,
        max_iter=evaluations,
        max_eval=LINE_SEARCH_EVALUATIONS,
        history_size=HISTORY,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )


def _evaluate(canvas: Canvas, objective: Objective, extractors: Outputs, step: int, steps: int) -> OptimizationProgress:
    with torch.enable_grad():
        images = canvas()
        activations = Activations(images, extractors(images))
        values = objective(activations)
        if step == 0:
            check_gradients(objective, activations)
    if not values.isfinite().all():
        raise GapError(f"the drawing came apart: {objective.name} is no number at evaluation {step}; lower `lr`")
    return OptimizationProgress(step, steps, activations, values)


def _gradient(canvas: Canvas, value: Tensor, objective: Objective) -> Tensor:
    """The gradient of the objective with respect to the canvas's weights; raises GapError where it is not finite."""
    gradient = input_gradient(value, canvas.weights)
    if not gradient.isfinite().all():
        raise GapError(f"the gradient of {objective.name} is NaN or infinite: this network cannot be drawn with")
    return gradient
