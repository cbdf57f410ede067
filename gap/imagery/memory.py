"""The check, before a drawing, that there is enough memory for it."""

from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from gap.core.errors import GapError
from gap.imagery.backbone import MultiFeatureExtractor
from gap.imagery.optimize import HISTORY

# The side of a crop on which the memory per pixel is measured.
CROP = 256
# The peak memory, relative to the memory that the backward pass needs.
SAFETY_FACTOR = 1.5
# The number of copies of the image in L-BFGS: steps, gradients and temporary tensors.
OPTIMIZER_COPIES = 2 * HISTORY + 6
# The memory limit of a container.
LIMIT = Path("/sys/fs/cgroup/memory.max")


def check_memory(extractors: MultiFeatureExtractor, images: Tensor, size: tuple[int, int]) -> None:
    """Raise GapError where a drawing of a size (H, W) needs more memory than there is.

    The memory is measured on images (N x C x H' x W'), which may have another size.
    """
    needed, free = estimate(extractors, images, size), available(images.device)
    if needed > free:
        subject = f"{len(images)} drawings" if len(images) > 1 else "a drawing"
        hint = "; make it smaller (`size`)" if len(images) == 1 else "; draw fewer at once, or smaller ones (`size`)"
        raise GapError(
            f"{subject} of {size[0]} x {size[1]} pixels: about {needed / 2**30:.1f} GiB are needed,"
            f" and {free / 2**30:.1f} GiB are free{hint}"
        )


def estimate(extractors: MultiFeatureExtractor, images: Tensor, size: tuple[int, int]) -> float:
    """The bytes for drawing N images of a size, estimated from the tensors that a crop saves for its backward pass."""
    crop = images[:1, :, :CROP, :CROP].detach().clone().requires_grad_(True)
    saved_bytes: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        if tensor.requires_grad or not tensor.is_floating_point():  # weights and their casts do not grow with the image
            saved_bytes[tensor.data_ptr()] = tensor.nbytes
        return tensor.detach()  # a graph with references to its own outputs would never be freed

    with torch.no_grad(), extractors.frozen():
        extractors(crop)  # the first call finds where the forward pass may stop
    with torch.enable_grad(), extractors.frozen(), saved_tensors_hooks(record, lambda tensor: tensor):
        outputs = extractors(crop)
        output_bytes = sum(output.nbytes for output in outputs.values())
    scale = len(images) * size[0] * size[1] / crop[0, 0].numel()
    return scale * (SAFETY_FACTOR * (sum(saved_bytes.values()) + output_bytes) + OPTIMIZER_COPIES * crop.nbytes)


def available(device: torch.device) -> float:
    """The free bytes on a device; on a CPU at most those of its container's limit."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    free = float(psutil.virtual_memory().available)
    try:
        return min(free, float(LIMIT.read_text()) - psutil.Process().memory_info().rss)
    except (OSError, ValueError):  # no container, or one without a limit
        return free
