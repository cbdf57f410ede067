"""Layers by name, on any network: found, read in one pass that goes no further than it must, and tuned for drawing."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gap.core.errors import GapError, unknown_name_error
from gap.core.network import NetworkError

T = TypeVar("T", bound=nn.Module)

# The name of what a network returns, beside those of its layers.
LOGITS = "logits"
# What torch's and timm's layers raise at pictures of a size that they cannot take.
SHAPE_ERRORS = (RuntimeError, AssertionError, ValueError, NetworkError)
# The order of the dimensions of a 4-dimensional output: a batch, channels, and the height and width of a map.
Layout = Literal["NCHW", "NHWC"]
HEIGHT_AND_WIDTH: dict[Layout, tuple[int, int]] = {"NCHW": (2, 3), "NHWC": (1, 2)}
# Modules whose 4-dimensional output is N x C x H x W by definition.
NCHW_MODULES = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample,
)  # fmt: skip
# By how many pixels images grow to see which dimensions of an output follow: twice the usual largest stride.
GROWN = 64


class _EarlyExit(BaseException):  # nothing failed; no `except Exception` of a forward may stop it
    """Every layer that was asked for has been read."""


class FeatureExtractor:
    """Reads layers of a network by name: images N x C x H x W to each layer's output, in one pass.

    Names are module paths, those that the literature uses (see `layer_aliases`), and `logits` for what the network
    returns. The pass ends at the last layer asked for, the hooks leave with it, and what in-place operations do after a
    layer does not reach what was read. A module that runs several times is read at its last.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], run: nn.Module | None = None) -> None:
        """`run`, where it is not the network itself, is what wraps it and is given the images.

        Raises GapError for a name that is not there, with the nearest that are, and for one named twice.
        """
        known = layer_aliases(network)
        paths = [known.get(name, name) for name in names]
        modules = dict(network.named_modules())
        for name, path in zip(names, paths, strict=True):
            if path != LOGITS and (path not in modules or not path):
                raise unknown_name_error("layer", name, [*known, *filter(None, modules), LOGITS])
            if paths.count(path) > 1:
                twice = [other for other in names if known.get(other, other) == path]
                raise GapError(f"layer {twice[0]} is named twice ({', '.join(twice)}); name it once")
        self.run = run or network
        self.layouts: dict[str, Layout] = {}
        self.paths = dict(zip(names, paths, strict=True))
        self.modules = {path: modules[path] for path in paths if path != LOGITS}
        self._last: str | None = None

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """The output of each layer, by the name it was asked for. Raises GapError where one never runs, or gives
        something else than a tensor."""
        read: dict[str, Tensor] = {}
        order: list[str] = []

        def keep(path: str, output: object) -> None:
            if not isinstance(output, Tensor):
                raise GapError(f"layer {path} gives a {type(output).__name__}, not a tensor; name one inside it")
            order.append(path)
            if path == self._last:
                read[path] = output
                raise _EarlyExit
            read[path] = output.clone()

        hooks = [
            module.register_forward_hook(lambda module, inputs, output, path=path: keep(path, output))
            for path, module in self.modules.items()
        ]
        try:
            read[LOGITS] = self.run(images)
        except _EarlyExit:
            pass
        except SHAPE_ERRORS:
            # What fails after the last layer asked for, as a head made for one size of pictures does, is not looked at.
            if not read.keys() >= set(self.paths.values()):
                raise
        finally:
            for hook in hooks:
                hook.remove()
        for name, path in self.paths.items():
            if path not in read:
                raise GapError(f"layer {name} does not run; name another")
        if self._last is None and order and LOGITS not in self.paths.values():
            # Learned from the first pass, which went to the end: a module may run more than once.
            self._last = order[-1] if order.count(order[-1]) == 1 else None
        return {name: self._as_map(name, read[path]) for name, path in self.paths.items()}

    def read_as_maps(self, images: Tensor) -> None:
        """From now on give maps as N x C x H x W, also those of layers that keep their channels last.

        Raises GapError for a layer whose 4-dimensional output is not known to be a map: of tokens, windows or
        attention heads nobody could say which dimension means what.
        """
        layouts = map_layouts(self.run, self.modules, images)
        self.layouts = {name: layouts[path] for name, path in self.paths.items() if path in layouts}
        for name, output in self(images).items():
            if output.ndim == 4 and name not in self.layouts:
                shape = " x ".join(map(str, output.shape[1:]))
                raise GapError(
                    f"layer {name} gives {shape} values, of which no two are known to be the height and width of a map;"
                    " name a convolution, or a stage of them"
                )

    def _as_map(self, name: str, output: Tensor) -> Tensor:
        return output.permute(0, 3, 1, 2) if self.layouts.get(name) == "NHWC" else output


def resolve_layer(network: nn.Module, name: str) -> str:
    """The module path that a name means."""
    return layer_aliases(network).get(name, name)


def layer_aliases(network: nn.Module) -> dict[str, str]:
    """Names that the literature uses for layers, where a network has them, and the modules that they mean.

    `relu2_x` to `relu5_x` are the outputs of a ResNet's four stages. In a plain chain of convolutions such as VGG's,
    `conv4_2` and `relu4_2` are the second convolution after the third pooling and its activation; in such a chain
    `conv_3` is the third convolution of all, as AlexNet's are counted. Of several chains the longest is meant.
    """
    found: dict[str, str] = {}
    longest: dict[str, str] = {}
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        stages = [f"layer{stage}" for stage in range(1, 5)]
        if all(isinstance(getattr(module, stage, None), nn.Module) for stage in stages):
            found |= {f"relu{index + 2}_x": prefix + stage for index, stage in enumerate(stages)}
        if isinstance(module, nn.Sequential) and sum(isinstance(part, nn.Conv2d) for part in module) > 1:
            chain = {name: prefix + inner for name, inner in _vgg_aliases(module).items()}
            longest = max(longest, chain, key=len)
    return longest | found


def _vgg_aliases(chain: nn.Sequential) -> dict[str, str]:
    found: dict[str, str] = {}
    block, place, count = 1, 0, 0
    for inner, module in chain.named_children():
        match module:
            case nn.Conv2d():
                place, count = place + 1, count + 1
                found |= {f"conv{block}_{place}": inner, f"conv_{count}": inner}
            case nn.ReLU() if place:
                found.setdefault(f"relu{block}_{place}", inner)
            case nn.MaxPool2d() | nn.AvgPool2d():
                block, place = block + 1, 0
    return found


@torch.no_grad()
def last_layer_per_resolution(network: nn.Module, images: Tensor, classes: int = 0) -> list[str]:
    """The last layer at each resolution that a network passes through, from the first to the last.

    Only layers that are known to give maps are meant. Modules that run more than once are left out, and maps of fewer
    than 2 x 2, and those of as many channels as there are classes, which are scores.
    """
    ended: dict[tuple[int, int], list[str]] = {}
    runs: Counter[str] = Counter()
    paths = {module: path for path, module in network.named_modules() if path}
    layouts = map_layouts(network, {path: module for module, path in paths.items()}, images)

    def note(module: nn.Module, inputs: object, output: object) -> None:
        runs[paths[module]] += 1
        layout = layouts.get(paths[module])
        if isinstance(output, Tensor) and output.ndim == 4 and layout:
            height, width = (output.shape[dimension] for dimension in HEIGHT_AND_WIDTH[layout])
            channels = output.shape[1 if layout == "NCHW" else 3]
            if min(height, width) > 1 and channels != classes:
                ended.setdefault((height, width), []).append(paths[module])

    hooks = [module.register_forward_hook(note) for module in paths]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    once = [[path for path in each if runs[path] == 1] for each in ended.values()]
    return [each[-1] for each in once if each]


def map_layouts(run: nn.Module, modules: Mapping[str, nn.Module], images: Tensor) -> dict[str, Layout]:
    """Which modules give maps, and in which order of dimensions, by their paths.

    A map is the output of a convolution, a pooling or a norm of those, or one with a dimension that grows where the
    images grow taller and another, the next, that grows where they grow wider.
    """
    channels, height, width = images.shape[1:]
    base, taller, wider = (
        _output_shapes(run, modules, images.new_zeros(1, channels, *size))
        for size in ((height, width), (height + GROWN, width), (height, width + GROWN))
    )
    layouts: dict[str, Layout] = {}
    for path, shape in base.items():
        if len(shape) != 4:
            continue
        if isinstance(modules[path], NCHW_MODULES):
            layouts[path] = "NCHW"
        elif path in taller and path in wider:
            grown = _changed(shape, taller[path]) + _changed(shape, wider[path])
            for layout, dimensions in HEIGHT_AND_WIDTH.items():
                if grown == dimensions:
                    layouts[path] = layout
    return layouts


def _changed(shape: torch.Size, other: torch.Size) -> tuple[int, ...]:
    """The dimensions in which two shapes differ; all where they have not as many dimensions."""
    if len(shape) != len(other):
        return tuple(range(len(shape)))
    return tuple(index for index, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b)


@torch.no_grad()
def _output_shapes(run: nn.Module, modules: Mapping[str, nn.Module], images: Tensor) -> dict[str, torch.Size]:
    """The shape of each module's last output in a pass, as far as the pass goes before a size does not fit."""
    shapes: dict[str, torch.Size] = {}

    def note(path: str, output: object) -> None:
        if isinstance(output, Tensor):
            shapes[path] = output.shape

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, path=path: note(path, output))
        for path, module in modules.items()
    ]
    try:
        with suppress(*SHAPE_ERRORS):
            run(images)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


class AveragePool(nn.Module):
    """Average pooling in place of a max pooling, times a factor that brings its output to a mean square."""

    def __init__(self, pool: nn.MaxPool2d, wanted: float) -> None:
        super().__init__()
        self.pool, self.wanted = pool, wanted
        self.factor: float | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        pool = self.pool
        averaged = F.avg_pool2d(
            inputs, pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, count_include_pad=False
        )
        if self.factor is None:
            self.factor = math.sqrt(self.wanted / max(averaged.square().mean().item(), 1e-12))
        return averaged * self.factor


@torch.no_grad()
def with_average_pooling(network: T, images: Tensor) -> T:
    """A copy with every max pooling an average pooling, scaled so that its output has the mean square that it had for
    these images (Gatys et al., 2016, swap them for smoother pictures). Raises GapError when it has no max pooling."""
    copy = deepcopy(network)
    names = [name for name, module in copy.named_modules() if isinstance(module, nn.MaxPool2d)]
    if not names:
        raise GapError("this backbone has no max pooling to average; leave out `pooling`")
    given = FeatureExtractor(copy, names)(images)
    for name, output in given.items():
        pool = copy.get_submodule(name)
        assert isinstance(pool, nn.MaxPool2d)
        copy.set_submodule(name, AveragePool(pool, output.square().mean().item()))
    # Each factor is found as the images come by, on what the pools before it now give.
    FeatureExtractor(copy, names)(images)
    return copy


def with_smooth_strides(network: T) -> T:
    """A copy whose convolutions with a stride take every place, and average over as many as they stepped over: where a
    stride does not divide its kernel, some pixels are looked at more often than others, and drawings show it.

    Costs the time of the places that were left out. Raises GapError where no convolution has a stride.
    """
    copy = deepcopy(network)
    strided = [module for module in copy.modules() if isinstance(module, nn.Conv2d) and max(module.stride) > 1]
    if not strided:
        raise GapError("this backbone has no strides to smooth; leave out `strides`")
    for module in strided:
        down, across = module.stride
        averaged = nn.AvgPool2d((down, across), ceil_mode=True, count_include_pad=False)
        module.stride = (1, 1)
        # Not a module around it: layers keep their names.
        module.register_forward_hook(lambda module, inputs, output, averaged=averaged: averaged(output))
    return copy


def with_padding(network: T, mode: Literal["zeros", "reflect", "replicate"]) -> T:
    """A copy whose convolutions pad by `reflect` or `replicate` and not by zeros, which ring at the borders.

    Convolutions that pad by themselves, as timm's `Conv2dSame` do, go on doing so.
    """
    copy = deepcopy(network)
    for module in copy.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = mode
    return copy
