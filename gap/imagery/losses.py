"""Objectives on what layers see: content and style of pictures, and what excites a class, a channel, a neuron.

Distances are relative to the picture they are measured from, so that one weight serves any network.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from gap.core.errors import GapError
from gap.imagery.objectives import Activations, Objective
from gap.models.feature_extractor import LOGITS

# Against division by what is nothing: far below any activation that matters.
TINY = 1e-12
# Of random directions, for the sliced distance.
NUM_BASES = 4


class ContentLoss(Objective):
    """The squared distance of a layer's output to that of a picture, as a share of the latter's variance.

    `target` is 1 x C x H x W or one for each image.
    """

    def __init__(self, layer: str, target: Tensor) -> None:
        self.layers = (layer,)
        self.target = target.detach().float()
        self.scale = self.target.flatten(1).var(dim=1).clamp_min(TINY)

    @property
    def name(self) -> str:
        return f"content at {self.layers[0]}"

    def __call__(self, activations: Activations) -> Tensor:
        moved = feature_maps(activations, self.layers[0]) - self.target
        return moved.square().flatten(1).mean(dim=1) / self.scale


class GramLoss(Objective):
    """The squared distance of a layer's Gram matrix to a picture's, as a share of the latter (Gatys et al., 2016).

    `target` is the output, 1 x C x H x W, for the picture of any size; with a mask (1 x 1 x H x W in [0, 1]) only that
    region of the images is compared.
    """

    def __init__(self, layer: str, target: Tensor, mask: Tensor | None = None) -> None:
        self.layers = (layer,)
        self.gram_matrix = gram_matrix(target.detach())
        self.scale = self.gram_matrix.square().sum(dim=(1, 2)).clamp_min(TINY)
        self.mask = mask

    @property
    def name(self) -> str:
        return f"style at {self.layers[0]}"

    def __call__(self, activations: Activations) -> Tensor:
        found = gram_matrix(feature_maps(activations, self.layers[0]), self.mask)
        return (found - self.gram_matrix).square().sum(dim=(1, 2)) / self.scale


class ColorGramLoss(Objective):
    """The squared distance of the Gram matrix of the pixels themselves, with a channel of ones beside them for their
    means, to a picture's, as a share of the latter: layers alone hardly tell one color from another.

    `target` is the picture, 1 x C x H x W of any size; the mask is as for Style.
    """

    name = "colors"

    def __init__(self, target: Tensor, mask: Tensor | None = None) -> None:
        self.gram_matrix = gram_matrix(_with_ones(target.detach()))
        self.scale = self.gram_matrix.square().sum(dim=(1, 2)).clamp_min(TINY)
        self.mask = mask

    def __call__(self, activations: Activations) -> Tensor:
        found = gram_matrix(_with_ones(activations.images), self.mask)
        return (found - self.gram_matrix).square().sum(dim=(1, 2)) / self.scale


class MomentLoss(Objective):
    """The squared distance of each channel's mean and standard deviation to a picture's (Huang and Belongie, 2017)."""

    def __init__(self, layer: str, target: Tensor) -> None:
        self.layers = (layer,)
        self.target = _moments(target.detach())
        self.scale = self.target.square().sum(dim=1).clamp_min(TINY)

    @property
    def name(self) -> str:
        return f"moments at {self.layers[0]}"

    def __call__(self, activations: Activations) -> Tensor:
        found = _moments(feature_maps(activations, self.layers[0]))
        return (found - self.target).square().sum(dim=1) / self.scale


class SlicedWassersteinLoss(Objective):
    """The sliced Wasserstein distance of a layer's outputs, taken as points of as many coordinates as channels, to a
    picture's (Heitz et al., 2021): along random directions, both sorted, their squared distance.

    The directions are those of BASES orthogonal bases: one would see each of its axes, and not what they do together.
    They are drawn once, so that a search along a line sees one objective.
    """

    def __init__(self, layer: str, target: Tensor, seed: int = 0) -> None:
        self.layers = (layer,)
        points = target.detach().float().flatten(2)
        generator = torch.Generator().manual_seed(seed)
        bases = torch.linalg.qr(torch.randn(NUM_BASES, points.shape[1], points.shape[1], generator=generator)).Q
        self.axes = bases.mT.flatten(0, 1).to(points.device)
        self.target = (self.axes @ points).sort(dim=2).values
        self.scale = self.target.flatten(1).var(dim=1).clamp_min(TINY)

    @property
    def name(self) -> str:
        return f"sliced Wasserstein at {self.layers[0]}"

    def __call__(self, activations: Activations) -> Tensor:
        found = (self.axes @ feature_maps(activations, self.layers[0]).flatten(2)).sort(dim=2).values
        target = F.interpolate(self.target, found.shape[2], mode="linear", align_corners=True)
        return (found - target).square().flatten(1).mean(dim=1) / self.scale


class Logit(Objective):
    """Minus the logit, before any softmax, of a class for each image (N integers)."""

    name = "class logit"
    layers = (LOGITS,)

    def __init__(self, classes: Tensor) -> None:
        self.classes = classes

    def __call__(self, activations: Activations) -> Tensor:
        return -activations.layers[LOGITS].float().gather(1, self.classes.view(-1, 1)).squeeze(1)


class Channel(Objective):
    """Minus a channel's mean output, for each image its own (N integers)."""

    def __init__(self, layer: str, channels: Tensor) -> None:
        self.layers = (layer,)
        self.channels = channels

    @property
    def name(self) -> str:
        return f"channel of {self.layers[0]}"

    def __call__(self, activations: Activations) -> Tensor:
        output = feature_maps(activations, self.layers[0])
        return -output.flatten(2).mean(dim=2).gather(1, self.channels.view(-1, 1)).squeeze(1)


class Neuron(Channel):
    """Minus the output in the middle of a channel, for each image its own (N integers)."""

    @property
    def name(self) -> str:
        return f"neuron of {self.layers[0]}"

    def __call__(self, activations: Activations) -> Tensor:
        output = feature_maps(activations, self.layers[0])
        middle = output[:, :, output.shape[2] // 2, output.shape[3] // 2]
        return -middle.gather(1, self.channels.view(-1, 1)).squeeze(1)


class Direction(Objective):
    """Minus the mean output along a direction of a layer (C values, or N x C)."""

    def __init__(self, layer: str, direction: Tensor) -> None:
        self.layers = (layer,)
        self.direction = F.normalize(direction.float(), dim=-1)

    @property
    def name(self) -> str:
        return f"direction of {self.layers[0]}"

    def __call__(self, activations: Activations) -> Tensor:
        return -(feature_maps(activations, self.layers[0]).flatten(2).mean(dim=2) * self.direction).sum(dim=1)


class Diversity(Objective):
    """The mean likeness (cosine of Gram matrices at a layer) of each image to the others: low where they differ."""

    def __init__(self, layer: str) -> None:
        self.layers = (layer,)

    @property
    def name(self) -> str:
        return f"diversity at {self.layers[0]}"

    def __call__(self, activations: Activations) -> Tensor:
        grams = F.normalize(gram_matrix(feature_maps(activations, self.layers[0])).flatten(1), dim=1)
        others = max(1, len(grams) - 1)
        return ((grams @ grams.T).sum(dim=1) - 1) / others


def feature_maps(activations: Activations, layer: str) -> Tensor:
    """What a layer gives, N x C x H x W in float32; raises GapError where that is neither maps nor N x C values."""
    output = activations.layers[layer].float()
    if output.ndim == 2:
        return output[:, :, None, None]
    if output.ndim != 4:
        shape = " x ".join(map(str, output.shape))
        raise GapError(f"layer {layer} gives {shape} values, not maps; name a convolution, or a stage of them")
    return output


def gram_matrix(output: Tensor, mask: Tensor | None = None) -> Tensor:
    """The Gram matrix of each N x C x H x W: N x C x C, the mean over pixels, in float32.

    A mask (1 x 1 x H' x W' in [0, 1]) is brought to the layer's size and weighs the pixels.
    """
    with torch.autocast(output.device.type, enabled=False):
        points = output.float()
        weight = float(points.shape[2] * points.shape[3])
        if mask is not None:
            small = F.interpolate(mask.float(), points.shape[2:], mode="area")
            points, weight = points * small.sqrt(), float(small.sum().clamp_min(TINY))
        flat = points.flatten(2)
        return flat @ flat.transpose(1, 2) / weight


def _with_ones(images: Tensor) -> Tensor:
    return torch.cat([images, torch.ones_like(images[:, :1])], dim=1)


def _moments(output: Tensor) -> Tensor:
    flat = output.float().flatten(2)
    return torch.cat([flat.mean(dim=2), (flat.var(dim=2, correction=0) + TINY).sqrt()], dim=1)
