"""Extraction of layers by name from any network, and changes of networks for drawing."""

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

# The name of the output of a network, in addition to those of its layers.
LOGITS = "logits"
# The errors of torch's and timm's layers for images of unsupported sizes.
SHAPE_ERRORS = (RuntimeError, AssertionError, ValueError, NetworkError)
# The order of the dimensions of a 4-dimensional output: a batch, channels, and the height and width of a map.
Layout = Literal["NCHW", "NHWC"]
HEIGHT_AND_WIDTH: dict[Layout, tuple[int, int]] = {"NCHW": (2, 3), "NHWC": (1, 2)}
# Modules whose 4-dimensional output is N x C x H x W by definition.
NCHW_MODULES = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample,
)  # fmt: skip
# Images are enlarged by this many pixels to find the spatial dimensions of an output: twice the usual largest stride.
SIZE_INCREASE = 64


class _EarlyExit(BaseException):  # not an Exception, so that no `except Exception` in a forward catches it
    """All requested layers have run."""


class FeatureExtractor:
    """Extracts the outputs of layers by name for images N x C x H x W, in one forward pass.

    Names are module paths, names of the literature (see `layer_aliases`), and `logits` for the output of the network.
    The pass ends at the last requested layer, and hooks are removed at its end. Outputs are not affected by later
    in-place operations. For a module that runs several times, its last output is returned.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], run: nn.Module | None = None) -> None:
        """`run` is a module around the network that is called with the images; by default the network itself.

        Raises GapError for an unknown name, with the most similar ones, and for a layer that is named twice.
        """
        aliases = layer_aliases(network)
        paths = [aliases.get(name, name) for name in names]
        modules = dict(network.named_modules())
        for name, path in zip(names, paths, strict=True):
            if path != LOGITS and (path not in modules or not path):
                raise unknown_name_error("layer", name, [*aliases, *filter(None, modules), LOGITS])
            if paths.count(path) > 1:
                duplicates = [duplicate for duplicate in names if aliases.get(duplicate, duplicate) == path]
                raise GapError(f"layer {duplicates[0]} is named twice ({', '.join(duplicates)}); name it once")
        self.run = run or network
        self.layouts: dict[str, Layout] = {}
        self.paths = dict(zip(names, paths, strict=True))
        self.modules = {path: modules[path] for path in paths if path != LOGITS}
        self._last_path: str | None = None

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """The output of each layer by its requested name.

        Raises GapError for a layer that does not run, and for an output that is not a tensor.
        """
        outputs: dict[str, Tensor] = {}
        order: list[str] = []

        def record(path: str, output: object) -> None:
            if not isinstance(output, Tensor):
                raise GapError(f"layer {path} gives a {type(output).__name__}, not a tensor; name one inside it")
            order.append(path)
            if path == self._last_path:
                outputs[path] = output
                raise _EarlyExit
            outputs[path] = output.clone()

        hooks = [
            module.register_forward_hook(lambda module, inputs, output, path=path: record(path, output))
            for path, module in self.modules.items()
        ]
        try:
            outputs[LOGITS] = self.run(images)
        except _EarlyExit:
            pass
        except SHAPE_ERRORS:
            # Errors after the last requested layer, such as those of a head for one image size, are ignored.
            if not outputs.keys() >= set(self.paths.values()):
                raise
        finally:
            for hook in hooks:
                hook.remove()
        for name, path in self.paths.items():
            if path not in outputs:
                raise GapError(f"layer {name} does not run; name another")
        if self._last_path is None and order and LOGITS not in self.paths.values():
            # Only the complete first pass shows whether the last module runs more than once.
            self._last_path = order[-1] if order.count(order[-1]) == 1 else None
        return {name: self._as_map(name, outputs[path]) for name, path in self.paths.items()}

    def read_as_maps(self, images: Tensor) -> None:
        """From now on, return maps as N x C x H x W, also those of layers with channels last.

        Raises GapError for a layer whose 4-dimensional output is not recognized as a map, such as one of tokens,
        windows or attention heads, whose dimensions are unknown.
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
    """The module path of a layer name."""
    return layer_aliases(network).get(name, name)


def layer_aliases(network: nn.Module) -> dict[str, str]:
    """Names of the literature for the layers of a network, with their module paths.

    `relu2_x` to `relu5_x` are the outputs of a ResNet's four stages. In a chain of convolutions such as VGG's,
    `conv4_2` and `relu4_2` are the second convolution after the third pooling and its activation. There, `conv_3` is
    the third convolution in total, as in AlexNet. Of several chains, the longest is used.
    """
    resnet_aliases: dict[str, str] = {}
    chain_aliases: dict[str, str] = {}
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        stages = [f"layer{stage}" for stage in range(1, 5)]
        if all(isinstance(getattr(module, stage, None), nn.Module) for stage in stages):
            resnet_aliases |= {f"relu{index + 2}_x": prefix + stage for index, stage in enumerate(stages)}
        if isinstance(module, nn.Sequential) and sum(isinstance(part, nn.Conv2d) for part in module) > 1:
            chain = {name: prefix + child for name, child in _vgg_aliases(module).items()}
            chain_aliases = max(chain_aliases, chain, key=len)
    return chain_aliases | resnet_aliases


def _vgg_aliases(chain: nn.Sequential) -> dict[str, str]:
    aliases: dict[str, str] = {}
    block, position, count = 1, 0, 0
    for child, module in chain.named_children():
        match module:
            case nn.Conv2d():
                position, count = position + 1, count + 1
                aliases |= {f"conv{block}_{position}": child, f"conv_{count}": child}
            case nn.ReLU() if position:
                aliases.setdefault(f"relu{block}_{position}", child)
            case nn.MaxPool2d() | nn.AvgPool2d():
                block, position = block + 1, 0
    return aliases


@torch.no_grad()
def last_layer_per_resolution(network: nn.Module, images: Tensor, classes: int = 0) -> list[str]:
    """The last layer at each resolution of a network, in the order of the forward pass.

    Only layers whose outputs are recognized as maps are used. Modules that run more than once are left out, as well as
    maps smaller than 2 x 2, and maps with as many channels as there are classes, which are scores.
    """
    paths_by_size: dict[tuple[int, int], list[str]] = {}
    runs: Counter[str] = Counter()
    paths = {module: path for path, module in network.named_modules() if path}
    layouts = map_layouts(network, {path: module for module, path in paths.items()}, images)

    def record(module: nn.Module, inputs: object, output: object) -> None:
        runs[paths[module]] += 1
        layout = layouts.get(paths[module])
        if isinstance(output, Tensor) and output.ndim == 4 and layout:
            height, width = (output.shape[dimension] for dimension in HEIGHT_AND_WIDTH[layout])
            channels = output.shape[1 if layout == "NCHW" else 3]
            if min(height, width) > 1 and channels != classes:
                paths_by_size.setdefault((height, width), []).append(paths[module])

    hooks = [module.register_forward_hook(record) for module in paths]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    single_runs = [[path for path in candidates if runs[path] == 1] for candidates in paths_by_size.values()]
    return [candidates[-1] for candidates in single_runs if candidates]


def map_layouts(run: nn.Module, modules: Mapping[str, nn.Module], images: Tensor) -> dict[str, Layout]:
    """The order of dimensions of the modules whose outputs are maps, by their paths.

    A map is the output of a convolution, a pooling or a norm of these. Any other output is a map if one dimension
    changes with the height of the images, and the next dimension with their width.
    """
    channels, height, width = images.shape[1:]
    base, taller, wider = (
        _output_shapes(run, modules, images.new_zeros(1, channels, *size))
        for size in ((height, width), (height + SIZE_INCREASE, width), (height, width + SIZE_INCREASE))
    )
    layouts: dict[str, Layout] = {}
    for path, shape in base.items():
        if len(shape) != 4:
            continue
        if isinstance(modules[path], NCHW_MODULES):
            layouts[path] = "NCHW"
        elif path in taller and path in wider:
            changed = _changed_dimensions(shape, taller[path]) + _changed_dimensions(shape, wider[path])
            for layout, dimensions in HEIGHT_AND_WIDTH.items():
                if changed == dimensions:
                    layouts[path] = layout
    return layouts


def _changed_dimensions(shape: torch.Size, other: torch.Size) -> tuple[int, ...]:
    """The dimensions in which two shapes differ; all where their numbers of dimensions differ."""
    if len(shape) != len(other):
        return tuple(range(len(shape)))
    return tuple(index for index, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b)


@torch.no_grad()
def _output_shapes(run: nn.Module, modules: Mapping[str, nn.Module], images: Tensor) -> dict[str, torch.Size]:
    """The shape of each module's last output in a forward pass, up to an error caused by the image size."""
    shapes: dict[str, torch.Size] = {}

    def record(path: str, output: object) -> None:
        if isinstance(output, Tensor):
            shapes[path] = output.shape

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, path=path: record(path, output))
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
    """Average pooling in place of a max pooling, scaled so that its output has the mean square `wanted`."""

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
    """A copy with average pooling in place of max pooling, for smoother images (Gatys et al., 2016).

    The outputs are scaled to the mean squares that the max poolings have for these images. Raises GapError for a
    network without max pooling.
    """
    copy = deepcopy(network)
    names = [name for name, module in copy.named_modules() if isinstance(module, nn.MaxPool2d)]
    if not names:
        raise GapError("this backbone has no max pooling to average; leave out `pooling`")
    max_pooled = FeatureExtractor(copy, names)(images)
    for name, output in max_pooled.items():
        pool = copy.get_submodule(name)
        assert isinstance(pool, nn.MaxPool2d)
        copy.set_submodule(name, AveragePool(pool, output.square().mean().item()))
    # This call sets the factor of each pooling, on the output of the poolings before it.
    FeatureExtractor(copy, names)(images)
    return copy


def with_smooth_strides(network: T) -> T:
    """A copy in which convolutions with a stride get a stride of 1, followed by average pooling.

    Where a stride does not divide the kernel size, some pixels have more connections than others, which causes
    artifacts in drawings. The copy is slower, because it computes all positions. Raises GapError where no convolution
    has a stride.
    """
    copy = deepcopy(network)
    strided = [module for module in copy.modules() if isinstance(module, nn.Conv2d) and max(module.stride) > 1]
    if not strided:
        raise GapError("this backbone has no strides to smooth; leave out `strides`")
    for module in strided:
        vertical, horizontal = module.stride
        average_pool = nn.AvgPool2d((vertical, horizontal), ceil_mode=True, count_include_pad=False)
        module.stride = (1, 1)
        # A hook, not a wrapping module, so that the names of layers do not change.
        module.register_forward_hook(lambda module, inputs, output, average_pool=average_pool: average_pool(output))
    return copy


def with_padding(network: T, mode: Literal["zeros", "reflect", "replicate"]) -> T:
    """A copy whose convolutions pad by `reflect` or `replicate` instead of zeros, which cause artifacts at borders.

    Convolutions that pad in their own forward, such as timm's `Conv2dSame`, are not changed.
    """
    copy = deepcopy(network)
    for module in copy.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = mode
    return copy
