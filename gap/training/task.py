"""Training tasks and the modules that they optimize."""

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
    """A network and its optimizer."""

    network: nn.Module
    optimizer: Optimizer

    @property
    def unwrapped(self) -> nn.Module:
        """The network without its wrapper for several processes, so that processes can call it independently."""
        return extract_model_from_parallel(self.network)

    def update(self, loss: Tensor, backward: Backward) -> None:
        """One step of the optimizer on a loss."""
        self.optimizer.zero_grad(set_to_none=True)
        backward(loss)
        self.optimizer.step()


class TrainingTask(ABC):
    """A kind of training. The training loop calls it with batches; it updates its modules and returns metrics."""

    modules: dict[str, OptimizedModule]

    @abstractmethod
    def training_step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        """Update the modules on a batch (images N x C x H x W in [0, 1]); return scalar metrics, including `loss`."""

    @abstractmethod
    def validation_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Metrics on validation images, N values by name, without an update."""

    def synced_modules(self) -> list[nn.Module]:
        """The networks whose buffers must be the same on every process before validation."""
        return [module.unwrapped for module in self.modules.values()]

    def on_validation_end(self, metrics: Mapping[str, float]) -> None:  # noqa: B027  # optional
        """Called at the end of each epoch with the mean metrics of `validation_step`."""

    def sample_images(self, images: Tensor) -> Mapping[str, Tensor]:
        """Images to show, by name, for a few validation images."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The state of the training without its modules: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`; raises KeyError for the state of another training."""
        if state:
            raise KeyError(next(iter(state)))


def with_adamw(network: nn.Module, lr: float, weight_decay: float = 0.0) -> OptimizedModule:
    """A network with AdamW as the optimizer of its weights that require gradients."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    return OptimizedModule(network, torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay, fused=True))
