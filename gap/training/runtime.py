"""Where a training runs: device, precision, determinism, processes."""

import atexit
import gc
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedDataParallelKwargs

from gap.core.device import pick_device
from gap.training.options import Precision, RuntimeOptions, TrainRuntimeOptions

# The variable without which cuBLAS does not give the same result every time.
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# What all accelerators of a process share.
ACCELERATE_STATES = (PartialState, AcceleratorState, GradientState)


def make_accelerator(options: RuntimeOptions) -> Accelerator:
    """An accelerator for these options; works alone and under `accelerate launch` or `torchrun`.

    Precision `auto` takes bfloat16 where the hardware multiplies in it, since elsewhere it is several times slower.
    What is float32 is so on a GPU, too, whose convolutions would else take ten bits. Raises GapError when the device is
    not there.
    """
    device = pick_device(options.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    torch.set_flush_denormal(True)
    torch.manual_seed(options.seed)
    if options.deterministic:
        os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    _set_deterministic(options.deterministic)
    torch.backends.cudnn.benchmark = not options.deterministic
    torch.backends.cudnn.allow_tf32 = False
    precision = options.precision if isinstance(options, TrainRuntimeOptions) else "fp32"
    half = use_bf16(precision, device)
    # What an earlier call in this process chose must not outlive it; a process group, once joined, must.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    atexit.register(_destroy_process_group)
    return Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if half else "no")


@contextmanager
def preserve_process_state() -> Iterator[None]:
    """Put back, after the block, what a training changes in the process around it.

    That is what `make_accelerator` sets: the flags of torch, the current CUDA device, a variable of the environment and
    the state that accelerate shares; and the random number generators of torch, numpy and Python. A process group that
    was joined stays, with its device.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    flush_denormal = sys.float_info.min / 2 == 0  # torch has no function that says it
    cudnn: Any = torch.backends.cudnn  # its module is made at run time, and mypy does not know all of it
    benchmark, allow_tf32 = cudnn.benchmark, _allow_tf32()
    precisions = [(part, part.fp32_precision) for part in (cudnn.conv, cudnn.rnn)]
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    shared = [(state._shared_state, dict(state._shared_state)) for state in ACCELERATE_STATES]
    python, arrays = random.getstate(), np.random.get_state()
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    try:
        with torch.random.fork_rng(range(torch.accelerator.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        if not torch.distributed.is_initialized():
            if device is not None:
                torch.cuda.set_device(device)
            for state, values in shared:
                state.clear()
                state.update(values)
        if workspace is None:
            os.environ.pop(CUBLAS_WORKSPACE, None)
        cudnn.benchmark = benchmark
        if allow_tf32 is not None:
            cudnn.allow_tf32 = allow_tf32
        for part, precision in precisions:
            part.fp32_precision = precision
        torch.set_flush_denormal(flush_denormal)
        _set_deterministic(deterministic, warn_only=warn_only)


def _set_deterministic(enabled: bool, *, warn_only: bool = False) -> None:
    """Set torch's flag only where it changes: setting it imports the compiler of torch, which takes seconds."""
    now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if now != (enabled, warn_only):
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def _allow_tf32() -> bool | None:
    """The flag of cuDNN; None where the newer `fp32_precision` was set, which makes torch refuse to read the flag."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


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
    on_cpu = device.type == "cpu"
    return on_cpu and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
