"""What the loop trains: a task, and the modules in it."""

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
class OptimizedModule:
    """A network that learns, and the optimizer that moves it."""

    network: nn.Module
    optimizer: Optimizer

    @property
    def unwrapped(self) -> nn.Module:
        """The network without what wraps it for several processes: those need not all call it, nor equally often."""
        return extract_model_from_parallel(self.network)

    def update(self, loss: Tensor, backward: Backward) -> None:
        """One step down the gradient of a loss."""
        self.optimizer.zero_grad(set_to_none=True)
        backward(loss)
        self.optimizer.step()


class TrainingTask(ABC):
    """One kind of training. The loop gives it batches; it moves its modules and says what it sees."""

    modules: dict[str, OptimizedModule]

    @abstractmethod
    def training_step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        """Learn from one batch (images N x C x H x W in [0, 1]); return scalar metrics, `loss` among them."""

    @abstractmethod
    def validation_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Metrics on held-out images, one value per image under each name; nothing learns."""

    def synced_modules(self) -> list[nn.Module]:
        """The networks whose buffers must be the same on every process before validation."""
        return [module.unwrapped for module in self.modules.values()]

    def on_validation_end(self, metrics: Mapping[str, float]) -> None:  # noqa: B027  # most trainings have nothing to do here
        """Hear the means of what `validation_step` found, at the end of each epoch."""

    def sample_images(self, images: Tensor) -> Mapping[str, Tensor]:
        """Pictures to show of a few held-out images, by name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the training carries from step to step besides its modules: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave; raises KeyError where it is another training's."""
        if state:
            raise KeyError(next(iter(state)))


def with_adamw(network: nn.Module, lr: float, weight_decay: float = 0.0) -> OptimizedModule:
    """A network moved by AdamW over the weights that can learn."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    return OptimizedModule(network, torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay, fused=True))
