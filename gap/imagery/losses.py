"""Objectives on the outputs of layers: content and style losses, and activations of classes, channels and neurons.

Distances are relative to the target image, so that the same weight works for any network.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gap.core.errors import GapError
from gap.imagery.objectives import Activations, Objective
from gap.models.feature_extractor import LOGITS

# A lower bound of divisors, far below relevant activations.
TINY = 1e-12
# The number of random bases of the sliced distance.
NUM_BASES = 4


class ContentLoss(Objective):
    """The squared distance of a layer's output to a target output, divided by the variance of the target.

    `target` is 1 x C x H x W, or N x C x H x W with one target for each image.
    """

    def __init__(self, layer: str, target: Tensor) -> None:
        self.layers = (layer,)
        self.target = target.detach().float()
        self.scale = self.target.flatten(1).var(dim=1).clamp_min(TINY)

    @property
    def name(self) -> str:
        return f"content at {self.layers[0]}"

    def __call__(self, activations: Activations) -> Tensor:
        difference = feature_maps(activations, self.layers[0]) - self.target
        return difference.square().flatten(1).mean(dim=1) / self.scale


class GramLoss(Objective):
    """The squared distance of a layer's Gram matrix to that of a target, relative to the latter (Gatys et al., 2016).

    `target` is the layer's output for the target image, 1 x C x H x W of any size. With a mask (1 x 1 x H x W in
    [0, 1]), only that region of the images is compared.
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
        actual = gram_matrix(feature_maps(activations, self.layers[0]), self.mask)
        return (actual - self.gram_matrix).square().sum(dim=(1, 2)) / self.scale


class ColorGramLoss(Objective):
    """The squared distance of the Gram matrix of the pixels to that of a target image, relative to the latter.

    The pixels have an additional channel of ones, so that the matrix contains their means. Layers hardly distinguish
    colors, which is why this loss is added. `target` is the image, 1 x C x H x W of any size; the mask is as for
    GramLoss.
    """

    name = "colors"

    def __init__(self, target: Tensor, mask: Tensor | None = None) -> None:
        self.gram_matrix = gram_matrix(_with_ones(target.detach()))
        self.scale = self.gram_matrix.square().sum(dim=(1, 2)).clamp_min(TINY)
        self.mask = mask

    def __call__(self, activations: Activations) -> Tensor:
        actual = gram_matrix(_with_ones(activations.images), self.mask)
        return (actual - self.gram_matrix).square().sum(dim=(1, 2)) / self.scale


class MomentLoss(Objective):
    """The squared distance of the channels' means and standard deviations to a target (Huang and Belongie, 2017)."""

    def __init__(self, layer: str, target: Tensor) -> None:
        self.layers = (layer,)
        self.target = _moments(target.detach())
        self.scale = self.target.square().sum(dim=1).clamp_min(TINY)

    @property
    def name(self) -> str:
        return f"moments at {self.layers[0]}"

    def __call__(self, activations: Activations) -> Tensor:
        actual = _moments(feature_maps(activations, self.layers[0]))
        return (actual - self.target).square().sum(dim=1) / self.scale


class SlicedWassersteinLoss(Objective):
    """The sliced Wasserstein distance of a layer's outputs to those of a target (Heitz et al., 2021).

    The outputs at each position are points with one coordinate per channel. Along random directions, the sorted
    projections of both sets of points are compared by their squared distance. The directions are those of NUM_BASES
    orthogonal bases: a single basis would only compare the marginal distributions along its axes. They are fixed at
    construction, so that the objective is the same in each evaluation of a line search.
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
        actual = (self.axes @ feature_maps(activations, self.layers[0]).flatten(2)).sort(dim=2).values
        target = F.interpolate(self.target, actual.shape[2], mode="linear", align_corners=True)
        return (actual - target).square().flatten(1).mean(dim=1) / self.scale


# A function of a layer, its output for the style image, a mask (1 x 1 x H x W) and a seed.
StyleLoss = Callable[[str, Tensor, Tensor | None, int], Objective]
STYLE_LOSSES: dict[str, StyleLoss] = {
    "gram": lambda layer, target, mask, seed: GramLoss(layer, target, mask),
    "moments": lambda layer, target, mask, seed: MomentLoss(layer, target),
    "sliced": lambda layer, target, mask, seed: SlicedWassersteinLoss(layer, target, seed),
}
# The style losses that use the mask.
MASKED_STYLE_LOSSES = ("gram",)


class Logit(Objective):
    """Minus the logit of a class for each image (N integers)."""

    name = "class logit"
    layers = (LOGITS,)

    def __init__(self, classes: Tensor) -> None:
        self.classes = classes

    def __call__(self, activations: Activations) -> Tensor:
        return -activations.layers[LOGITS].float().gather(1, self.classes.view(-1, 1)).squeeze(1)


class Channel(Objective):
    """Minus the mean output of a channel for each image (N integers)."""

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
    """Minus the output at the center of a channel for each image (N integers)."""

    @property
    def name(self) -> str:
        return f"neuron of {self.layers[0]}"

    def __call__(self, activations: Activations) -> Tensor:
        output = feature_maps(activations, self.layers[0])
        middle = output[:, :, output.shape[2] // 2, output.shape[3] // 2]
        return -middle.gather(1, self.channels.view(-1, 1)).squeeze(1)


class Direction(Objective):
    """Minus the mean projection of a layer's output on a direction (C values, or N x C)."""

    def __init__(self, layer: str, direction: Tensor) -> None:
        self.layers = (layer,)
        self.direction = F.normalize(direction.float(), dim=-1)

    @property
    def name(self) -> str:
        return f"direction of {self.layers[0]}"

    def __call__(self, activations: Activations) -> Tensor:
        return -(feature_maps(activations, self.layers[0]).flatten(2).mean(dim=2) * self.direction).sum(dim=1)


class Diversity(Objective):
    """The mean cosine similarity of each image's Gram matrix at a layer to those of the other images."""

    def __init__(self, layer: str) -> None:
        self.layers = (layer,)

    @property
    def name(self) -> str:
        return f"diversity at {self.layers[0]}"

    def __call__(self, activations: Activations) -> Tensor:
        grams = F.normalize(gram_matrix(feature_maps(activations, self.layers[0])).flatten(1), dim=1)
        num_others = max(1, len(grams) - 1)
        return ((grams @ grams.T).sum(dim=1) - 1) / num_others


def feature_maps(activations: Activations, layer: str) -> Tensor:
    """The output of a layer as N x C x H x W in float32; raises GapError unless it is maps or N x C values."""
    output = activations.layers[layer].float()
    if output.ndim == 2:
        return output[:, :, None, None]
    if output.ndim != 4:
        shape = " x ".join(map(str, output.shape))
        raise GapError(f"layer {layer} gives {shape} values, not maps; name a convolution, or a stage of them")
    return output


def gram_matrix(output: Tensor, mask: Tensor | None = None) -> Tensor:
    """The Gram matrices N x C x C of outputs N x C x H x W, as means over pixels, in float32.

    A mask (1 x 1 x H' x W' in [0, 1]) is resized to the layer's size and weights the pixels.
    """
    with torch.autocast(output.device.type, enabled=False):
        points = output.float()
        weight = float(points.shape[2] * points.shape[3])
        if mask is not None:
            resized_mask = F.interpolate(mask.float(), points.shape[2:], mode="area")
            points, weight = points * resized_mask.sqrt(), float(resized_mask.sum().clamp_min(TINY))
        flat = points.flatten(2)
        return flat @ flat.transpose(1, 2) / weight


def _with_ones(images: Tensor) -> Tensor:
    return torch.cat([images, torch.ones_like(images[:, :1])], dim=1)


def _moments(output: Tensor) -> Tensor:
    flat = output.float().flatten(2)
    return torch.cat([flat.mean(dim=2), (flat.var(dim=2, correction=0) + TINY).sqrt()], dim=1)
