"""The image that is being drawn."""

from torch import Tensor, nn

from gap.budget import Budget


class Pixels(nn.Module):
    """Images N x C x H x W in [0, 1], moved pixel by pixel; with a budget, never further from where they began."""

    def __init__(self, start: Tensor, budget: Budget | None = None) -> None:
        super().__init__()
        self.start = start.detach().clone()
        self.budget = budget
        self.images = nn.Parameter(start.detach().clone())

    def forward(self) -> Tensor:
        return self.images

    def settle(self) -> None:
        """Bring the images back inside [0, 1] and the budget."""
        moved = self.images.data - self.start
        if self.budget is not None:
            moved = self.budget.project(moved)
        self.images.data = (self.start + moved).clamp(0, 1)
