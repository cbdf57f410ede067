"""What the loop trains: a job, and the players in it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.optim import Optimizer

Backward = Callable[[Tensor], None]


@dataclass
class Player:
    """A network that learns, and the optimizer that moves it."""

    network: nn.Module
    optimizer: Optimizer

    @property
    def bare(self) -> nn.Module:
        """The network without what wraps it for several processes: those need not all call it, nor equally often."""
        return extract_model_from_parallel(self.network)

    def learn(self, loss: Tensor, backward: Backward) -> None:
        """One step down the gradient of a loss."""
        self.optimizer.zero_grad(set_to_none=True)
        backward(loss)
        self.optimizer.step()


class Job(ABC):
    """One kind of training. The loop gives it batches; it moves its players and says what it sees."""

    players: dict[str, Player]

    @abstractmethod
    def step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        """Learn from one batch (images N x C x H x W in [0, 1]); return scalar figures, `loss` among them."""

    @abstractmethod
    def judge(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Figures on held-out images, one value per image under each name; nothing learns."""

    def judged_networks(self) -> list[nn.Module]:
        """The networks whose buffers must be the same on every process before anything is judged."""
        return [player.bare for player in self.players.values()]

    def judged(self, figures: Mapping[str, float]) -> None:  # noqa: B027  # most jobs have nothing to do here
        """Hear the means of what `judge` found, at the end of each epoch."""

    def pictures(self, images: Tensor) -> Mapping[str, Tensor]:
        """Pictures to show of a few held-out images, by name."""
        return {}

    def state(self) -> dict[str, Any]:
        """What the job carries from step to step besides its players: tensors and plain values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave; raises KeyError where it is another job's."""
        if state:
            raise KeyError(next(iter(state)))


def adam(network: nn.Module, lr: float, weight_decay: float = 0.0) -> Player:
    """A player moved by AdamW over the weights that can learn."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    return Player(network, torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay, fused=True))
