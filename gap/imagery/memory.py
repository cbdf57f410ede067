"""Whether memory will suffice for a drawing: said before, and not by the kernel."""

from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from gap.core.errors import GapError
from gap.imagery.backbone import MultiFeatureExtractor
from gap.imagery.optimize import HISTORY

# The side of a part of the picture that is looked at to learn what each pixel costs.
CROP = 256
# What is held at the worst moment, as a multiple of what a way back needs.
SAFETY_FACTOR = 1.5
# Pictures that the optimizer remembers: steps and gradients, and what it works on.
OPTIMIZER_COPIES = 2 * HISTORY + 6
LIMIT = Path("/sys/fs/cgroup/memory.max")


def check_memory(extractors: MultiFeatureExtractor, images: Tensor, size: tuple[int, int]) -> None:
    """Raise GapError where drawing at a size (H, W) needs more memory than there is; images (N x C x H' x W') of
    another size show what it costs."""
    needed, free = estimate(extractors, images, size), available(images.device)
    if needed > free:
        what = f"{len(images)} drawings" if len(images) > 1 else "a drawing"
        fewer = "; make it smaller (`size`)" if len(images) == 1 else "; draw fewer at once, or smaller ones (`size`)"
        raise GapError(
            f"{what} of {size[0]} x {size[1]} pixels: about {needed / 2**30:.1f} GiB are needed,"
            f" and {free / 2**30:.1f} GiB are free{fewer}"
        )


def estimate(extractors: MultiFeatureExtractor, images: Tensor, size: tuple[int, int]) -> float:
    """Bytes that drawing images like these at a size needs, by what a look at a part of them keeps for its way back."""
    part = images[:1, :, :CROP, :CROP].detach().clone().requires_grad_(True)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.requires_grad or not tensor.is_floating_point():  # weights, and what is cast of them, do not grow
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor.detach()  # a graph that held its own outputs would never be freed

    with torch.no_grad(), extractors.frozen():
        extractors(part)  # it learns where it may stop
    with torch.enable_grad(), extractors.frozen(), saved_tensors_hooks(keep, lambda tensor: tensor):
        seen = extractors(part)
        held = sum(output.nbytes for output in seen.values())
    scale = len(images) * size[0] * size[1] / part[0, 0].numel()
    return scale * (SAFETY_FACTOR * (sum(kept.values()) + held) + OPTIMIZER_COPIES * part.nbytes)


def available(device: torch.device) -> float:
    """Bytes that are free on a device; on a CPU, within what its container may take."""
    if device.type == "cuda":
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + spare)
    free = float(psutil.virtual_memory().available)
    try:
        return min(free, float(LIMIT.read_text()) - psutil.Process().memory_info().rss)
    except (OSError, ValueError):  # no container, or one without a limit
        return free
