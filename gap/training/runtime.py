"""Where a training runs: device, precision, determinism, processes."""

import atexit
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from pydantic import Field

from gap.core.errors import GapError
from gap.core.options import Options

Precision = Literal["auto", "fp32", "bf16"]


class RuntimeOptions(Options):
    """Where and how exactly to compute."""

    group = "Machine"
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto, cpu or cuda")] = "auto"
    seed: Annotated[int, Field(ge=0, description="of every random choice")] = 0
    deterministic: Annotated[bool, Field(description="only operations that give the same result every time")] = False


class TrainRuntimeOptions(RuntimeOptions):
    """The same where networks learn, and may multiply in less than float32; what is measured never does."""

    group = "Machine"
    precision: Annotated[
        Precision, Field(description="auto, fp32 or bf16; auto takes bf16 where the hardware multiplies in it")
    ] = "auto"


def make_accelerator(options: RuntimeOptions) -> Accelerator:
    """An accelerator for these options; works alone and under `accelerate launch` or `torchrun`.

    Precision `auto` takes bfloat16 where the hardware multiplies in it, since elsewhere it is several times slower.
    What is float32 is so on a GPU, too, whose convolutions would else take ten bits. Raises GapError when the device is
    not there.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise GapError("--device cuda: no CUDA device is visible; use --device cpu")
    torch.set_flush_denormal(True)
    torch.manual_seed(options.seed)
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(options.deterministic)
    cpu = options.device == "cpu" or not torch.cuda.is_available()
    torch.backends.cudnn.benchmark = not options.deterministic
    torch.backends.cudnn.allow_tf32 = False
    precision = options.precision if isinstance(options, TrainRuntimeOptions) else "fp32"
    half = use_bf16(precision, torch.device("cpu" if cpu else "cuda"))
    # What an earlier call in this process chose must not outlive it; a process group, once joined, must.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    atexit.register(_destroy_process_group)
    return Accelerator(cpu=cpu, mixed_precision="bf16" if half else "no")


def allow_unused_weights(accelerator: Accelerator) -> None:
    """Let several processes train a network of which some weights, as those of auxiliary heads, get no gradient."""
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)


def _destroy_process_group() -> None:
    """End the process group with its threads: one that is still there when Python ends may abort the process.

    They go with the last reference to the group, which networks hold.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


@contextmanager
def main_first(accelerator: Accelerator) -> Iterator[None]:
    """The block runs on one process of each machine, and then on the others, which find what it downloaded.

    Unlike accelerate's own, it lets the others go when the first one fails.
    """
    if not accelerator.is_local_main_process:
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if accelerator.is_local_main_process:
            accelerator.wait_for_everyone()


def use_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether networks are to multiply in bfloat16 on a device."""
    return precision == "bf16" or (precision == "auto" and _multiplies_bf16(device))


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
