"""Networks such as people bring: each classifies as `Plain` does, in a way that a careless caller breaks."""

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CLASSES, CHANNELS, SIDE = 4, 3, 8


class Plain(nn.Module):
    """A small convolutional network that takes images of any size."""

    channels = CHANNELS

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv1 = nn.Conv2d(self.channels, 8, 3, padding=1)
            self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
            self.fc = nn.Linear(16, CLASSES)
            for weight in self.parameters():
                weight.data *= 3

    def features(self, images: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(images))))

    def forward(self, images: Tensor) -> Any:
        return self.fc(self.features(images).mean(dim=(2, 3)))


class Viewing(Plain):
    """Flattens maps by `view`, which channels last does not allow."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.features(images)
        flat = maps.view(maps.size(0), -1)
        return self.fc(flat.view(maps.size(0), 16, -1).mean(dim=2))


class Strided(Plain):
    """Reads the memory of its maps as if it lay row by row: wrong in channels last, without an error."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.features(images)
        count, channels, height, width = maps.shape
        rows = maps.as_strided((count, channels, height * width), (channels * height * width, height * width, 1))
        return self.fc(rows.mean(dim=2))


class Gray(Plain):
    channels = 1


class GrayViewing(Viewing):
    channels = 1


class GrayStrided(Strided):
    channels = 1


class Resizing(Plain):
    """Brings images of all sizes to one, so that nothing inside grows with them."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(nn.functional.interpolate(images, (SIDE, SIDE)))


class InPlace(Plain):
    """Changes the images that it is given."""

    def forward(self, images: Tensor) -> Tensor:
        images -= 0.5
        images *= 2
        return super().forward(images)


class OutOfPlace(Plain):
    """The same without changing them."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward((images - 0.5) * 2)


class Squeezing(Plain):
    """Loses the batch dimension of a single image."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).squeeze()


class InTuple(Plain):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(images), images.mean()


class InDictionary(Plain):
    def forward(self, images: Tensor) -> dict[str, Tensor | None]:
        return {"loss": None, "logits": super().forward(images)}


class InObject(Plain):
    def forward(self, images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=super().forward(images), hidden_states=None)


Outputs = namedtuple("Outputs", ["logits", "auxiliary"])


class InTupleInTraining(Plain):
    """As GoogLeNet does: auxiliary logits in training mode, a tensor in eval mode."""

    def forward(self, images: Tensor) -> Tensor | Outputs:
        logits = super().forward(images)
        return Outputs(logits, logits * 0.3) if self.training else logits


class Checkpointed(Plain):
    """Computes its maps in a reentrant checkpoint, which `torch.autograd.grad` refuses."""

    def features(self, images: Tensor) -> Tensor:
        return checkpoint(super().features, images, use_reentrant=True)


class Constant(nn.Module):
    """Has buffers and no parameters."""

    def __init__(self) -> None:
        super().__init__()
        plain = Plain()
        for name, weight in list(plain.named_parameters()):
            self.register_buffer(name.replace(".", "_"), weight.detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        convolve = nn.functional.conv2d
        maps = torch.relu(convolve(images, self.conv1_weight, self.conv1_bias, padding=1))
        maps = torch.relu(convolve(maps, self.conv2_weight, self.conv2_bias, stride=2, padding=1))
        return nn.functional.linear(maps.mean(dim=(2, 3)), self.fc_weight, self.fc_bias)


class NormalizedByBatch(Plain):
    """Normalizes by the statistics of the batch, and so cannot take a single image."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16, track_running_stats=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.norm(self.features(images).mean(dim=(2, 3))))


class Raising(Plain):
    def forward(self, images: Tensor) -> Tensor:
        raise KeyError("a key of its own")


class PixelStride(Plain):
    """As RepVGG: a strided convolution of one pixel on the three colors, which torch miscomputes in channels last."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv1 = nn.Conv2d(self.channels, 8, 1, stride=2)


class Versioned(Plain):
    """As torchvision's MNASNet: it refuses a state dict that does not say its version."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        if metadata.get("version") is None:
            raise ValueError("a state dict without a version")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class Half(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.bfloat16()


class Double(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.double()


class _Undefined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.full_like(gradient, float("nan"))


class UndefinedGradient(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(_Undefined.apply(images))


class Detached(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.detach()).detach()


# What each network is to behave as.
SAME_AS: dict[type[nn.Module], type[nn.Module]] = {
    Viewing: Plain,
    Strided: Plain,
    InPlace: OutOfPlace,
    Squeezing: Plain,
    InTuple: Plain,
    InDictionary: Plain,
    InObject: Plain,
    InTupleInTraining: Plain,
    Checkpointed: Plain,
    Constant: Plain,
}
