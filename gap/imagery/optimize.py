"""The loops that move a canvas until an objective likes it."""

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

# What the layers of one network, or several, make of images, by name.
Outputs = Callable[[Tensor], Mapping[str, Tensor]]
# How many of its steps L-BFGS remembers.
HISTORY = 20
# For so many evaluations it searches along its steps: until it has met some curvature, they are far too long.
LINE_SEARCH_EVALUATIONS = 10
# Over so many evaluations it is seen whether anything is still gained, where a drawing may stop early.
PATIENCE = 20
# The length of all steps together, as a multiple of how far they may lead.
PATH_RATIO = 3.0
# How far steps of one length lead where nobody says: a share of the largest distance there is between two pictures.
BUDGET_RATIO = 0.25


@dataclass(frozen=True)
class OptimizationProgress:
    """What a callback sees at each of `steps` evaluations: the images as they are, their activations, N values."""

    step: int
    steps: int
    activations: Activations
    values: Tensor


def no_callback(progress: OptimizationProgress) -> None:
    """The callback that does nothing."""


def default_budget(images: Tensor) -> Budget:
    """How far a drawing leads where nobody says."""
    return Budget("l2", round(BUDGET_RATIO * math.sqrt(images[0].numel()), 2))


def step_length(budget: Budget, images: Tensor, steps: int) -> float:
    """The L2 length of each of so many steps that can lead to the far end of a budget, and some way around."""
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
    """Move each image of a canvas `steps` times, by an L2 length of `size`, down its own gradient of an objective.

    Steps of one length are what drawing on robust networks uses (Santurkar et al., 2019): no prior shapes the picture.
    The callback hears of the start too. Raises GapError when the network passes no gradient.
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
    """Move a canvas down the gradient of an objective, the network being evaluated so many times, there and back.

    `lbfgs` takes its steps from the curvature that it met (Liu and Nocedal, 1989), as the articles on style do, at
    first with a line search; `adam` takes steps of about `lr` (by default 0.02). Neither stops before its evaluations
    are used up unless PATIENCE of them gain less than `tolerance`, a share of the objective; what is kept is the best
    that was met. Returns how many evaluations it took. Raises GapError when the network passes no gradient, or the
    objective is no longer a number.
    """
    seen, best, least = 0, canvas.weights.detach().clone(), math.inf
    reached: list[float] = []

    def evaluate() -> float:
        nonlocal seen, best, least
        if seen == evaluations or _has_plateaued(reached, tolerance):
            raise _EvaluationLimitError
        canvas.project_()
        progress = _evaluate(canvas, objective, extractors, seen, evaluations)
        tell(progress)
        seen += 1
        # The values are shares, about 1: L-BFGS wants the gradient by a pixel, not the value, to be of that order.
        value = progress.values.sum() * canvas.weights[0].numel()
        if value < least:
            best, least = canvas.weights.detach().clone(), value.item()
        reached.append(least)
        canvas.weights.grad = _gradient(canvas, value, objective).contiguous()
        return value.item()

    stepper = _make_optimizer(canvas, optimizer, lr, evaluations)
    with suppress(_EvaluationLimitError):
        while True:
            stepper.step(evaluate)
            if optimizer == "lbfgs":
                stepper.param_groups[0].update(line_search_fn=None, max_eval=evaluations)
    canvas.weights.data = best
    return seen


def _has_plateaued(reached: Sequence[float], tolerance: float) -> bool:
    """Whether the last PATIENCE evaluations gained less than a share; never where the share is 0."""
    if not tolerance or len(reached) <= PATIENCE:
        return False
    before = reached[-1 - PATIENCE]
    return before - reached[-1] < tolerance * abs(before)


class _EvaluationLimitError(Exception):
    """The evaluations are used up, or no longer of use."""


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
    """The gradient of the objective's value by what the canvas is drawn from; raises GapError where it is no number."""
    gradient = input_gradient(value, canvas.weights)
    if not gradient.isfinite().all():
        raise GapError(f"the gradient of {objective.name} is NaN or infinite: this network cannot be drawn with")
    return gradient
