"""The loops that move a canvas until an objective likes it."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gap.core.errors import GapError
from gap.core.gradients import input_gradient
from gap.imagery.canvas import Canvas
from gap.imagery.objectives import Look, Objective, check_gradients
from gap.threat import L2, Budget

# What the layers of one network, or several, make of images, by name.
Outputs = Callable[[Tensor], Mapping[str, Tensor]]
Method = Literal["lbfgs", "adam"]
# How many of its steps L-BFGS remembers.
HISTORY = 20
# For so many evaluations it searches along its steps: until it has met some curvature, they are far too long.
SEARCHED = 10
# Over so many evaluations it is seen whether anything is still gained, where a drawing may stop early.
PATIENCE = 20
# The length of all steps together, as a multiple of how far they may lead.
PATH = 3.0
# How far steps of one length lead where nobody says: a share of the largest distance there is between two pictures.
REACH = 0.25


@dataclass(frozen=True)
class DrawingProgress:
    """What a listener sees at each of `steps` evaluations: the images as they are, the look at them, N values."""

    step: int
    steps: int
    look: Look
    values: Tensor


def ignore(progress: DrawingProgress) -> None:
    """The listener that nobody is."""


def reach(images: Tensor) -> Budget:
    """How far a drawing leads where nobody says."""
    return Budget("l2", round(REACH * math.sqrt(images[0].numel()), 2))


def stride(budget: Budget, images: Tensor, steps: int) -> float:
    """The L2 length of each of so many steps that can lead to the far end of a budget, and some way around."""
    return PATH * budget.norm.longest_l2(budget.epsilon, images[0].numel()) / steps


def descend(
    canvas: Canvas,
    objective: Objective,
    view: Outputs,
    *,
    steps: int,
    size: float,
    tell: Callable[[DrawingProgress], None] = ignore,
) -> None:
    """Move each image of a canvas `steps` times, by an L2 length of `size`, down its own gradient of an objective.

    Steps of one length are what drawing on robust networks uses (Santurkar et al., 2019): no prior shapes the picture.
    The listener hears of the start too. Raises GapError when the network passes no gradient.
    """
    for step in range(steps + 1):
        progress = _look(canvas, objective, view, step, steps + 1)
        tell(progress)
        if step == steps:
            return
        gradient = _gradient(canvas, progress.values.sum(), objective)
        canvas.weights.data = canvas.weights.data - size * L2.steepest(gradient)
        canvas.settle()


def optimise(
    canvas: Canvas,
    objective: Objective,
    view: Outputs,
    *,
    evaluations: int,
    method: Method = "lbfgs",
    lr: float | None = None,
    tolerance: float = 0.0,
    tell: Callable[[DrawingProgress], None] = ignore,
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
        if seen == evaluations or _stalls(reached, tolerance):
            raise _SpentError
        canvas.settle()
        progress = _look(canvas, objective, view, seen, evaluations)
        tell(progress)
        seen += 1
        # The values are shares, about 1: L-BFGS wants the gradient by a pixel, not the value, to be of that order.
        value = progress.values.sum() * canvas.weights[0].numel()
        if value < least:
            best, least = canvas.weights.detach().clone(), value.item()
        reached.append(least)
        canvas.weights.grad = _gradient(canvas, value, objective).contiguous()
        return value.item()

    optimizer = _optimizer(canvas, method, lr, evaluations)
    with suppress(_SpentError):
        while True:
            optimizer.step(evaluate)
            if method == "lbfgs":
                optimizer.param_groups[0].update(line_search_fn=None, max_eval=evaluations)
    canvas.weights.data = best
    return seen


def _stalls(reached: Sequence[float], tolerance: float) -> bool:
    """Whether the last PATIENCE evaluations gained less than a share; never where the share is 0."""
    if not tolerance or len(reached) <= PATIENCE:
        return False
    before = reached[-1 - PATIENCE]
    return before - reached[-1] < tolerance * abs(before)


class _SpentError(Exception):
    """The evaluations are used up, or no longer of use."""


def _optimizer(canvas: Canvas, method: Method, lr: float | None, evaluations: int) -> torch.optim.Optimizer:
    if method == "adam":
        return torch.optim.Adam([canvas.weights], lr=0.02 if lr is None else lr)
    return torch.optim.LBFGS(
        [canvas.weights],
        lr=1.0 if lr is None else lr,
        max_iter=evaluations,
        max_eval=SEARCHED,
        history_size=HISTORY,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )


def _look(canvas: Canvas, objective: Objective, view: Outputs, step: int, steps: int) -> DrawingProgress:
    with torch.enable_grad():
        images = canvas()
        look = Look(images, view(images))
        values = objective(look)
        if step == 0:
            check_gradients(objective, look)
    if not values.isfinite().all():
        raise GapError(f"the drawing came apart: {objective.name} is no number at evaluation {step}; lower --lr")
    return DrawingProgress(step, steps, look, values)


def _gradient(canvas: Canvas, value: Tensor, objective: Objective) -> Tensor:
    """The gradient of the objective's value by what the canvas is drawn from; raises GapError where it is no number."""
    gradient = input_gradient(value, canvas.weights)
    if not gradient.isfinite().all():
        raise GapError(f"the gradient of {objective.name} is NaN or infinite: this network cannot be drawn with")
    return gradient
