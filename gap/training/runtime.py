"""The runtime of a training: device, precision, determinism and processes."""

import atexit
import gc
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedDataParallelKwargs

from gap.core.device import pick_device
from gap.training.options import Precision, RuntimeOptions, TrainRuntimeOptions

# The variable that cuBLAS needs for deterministic results.
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# The state that all accelerators of a process share.
ACCELERATE_STATES = (PartialState, AcceleratorState, GradientState)


def make_accelerator(options: RuntimeOptions) -> Accelerator:
    """An accelerator for these options; works alone and under `accelerate launch` or `torchrun`.

    Precision `auto` is bfloat16 where the hardware supports it; without that it is several times slower. TF32, which
    has a mantissa of ten bits, is disabled in the convolutions of a GPU. Raises GapError when the device is not
    available.
    """
    device = pick_device(options.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    torch.set_flush_denormal(True)
    torch.manual_seed(options.seed)
    if options.deterministic:
        os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Several processes need the compiler of torch for DistributedDataParallel. Imported after the process group is
        # made, it keeps the threads of the group alive.
        import_module("torch._dynamo")
    _set_deterministic(options.deterministic)
    torch.backends.cudnn.benchmark = not options.deterministic
    torch.backends.cudnn.allow_tf32 = False
    precision = options.precision if isinstance(options, TrainRuntimeOptions) else "fp32"
    half = use_bf16(precision, device)
    # The choices of an earlier call in this process are reset, but a process group stays.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    atexit.register(_destroy_process_group)
    return Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if half else "no")


@contextmanager
def preserve_process_state() -> Iterator[None]:
    """Restore, after the block, the state of the process that a training changes.

    This is the state that `make_accelerator` sets: the flags of torch, the current CUDA device, an environment variable
    and the shared state of accelerate; and the random state of torch, numpy and Python. A process group, and then also
    its device, is not reset.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    flush_denormal = sys.float_info.min / 2 == 0  # torch has no function for this flag
    cudnn: Any = torch.backends.cudnn  # its module is made at run time, and mypy does not know all of it
    benchmark, allow_tf32 = cudnn.benchmark, _allow_tf32()
    precisions = [(module, module.fp32_precision) for module in (cudnn.conv, cudnn.rnn)]
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    accelerate_states = [(state._shared_state, dict(state._shared_state)) for state in ACCELERATE_STATES]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    try:
        with torch.random.fork_rng(range(torch.accelerator.device_count())):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if not torch.distributed.is_initialized():
            if device is not None:
                torch.cuda.set_device(device)
            for state, values in accelerate_states:
                state.clear()
                state.update(values)
        if workspace is None:
            os.environ.pop(CUBLAS_WORKSPACE, None)
        cudnn.benchmark = benchmark
        if allow_tf32 is not None:
            cudnn.allow_tf32 = allow_tf32
        for module, precision in precisions:
            module.fp32_precision = precision
        torch.set_flush_denormal(flush_denormal)
        _set_deterministic(deterministic, warn_only=warn_only)


def _set_deterministic(enabled: bool, *, warn_only: bool = False) -> None:
    """Set torch's flag only where it changes: setting it imports the compiler of torch, which takes seconds."""
    now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if now != (enabled, warn_only):
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def _allow_tf32() -> bool | None:
    """The flag of cuDNN; None where `fp32_precision` was set: torch then raises when the older flag is read."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def allow_unused_weights(accelerator: Accelerator) -> None:
    """Allow several processes to train a network in which some weights, such as auxiliary heads, get no gradient."""
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)


def _destroy_process_group() -> None:
    """Destroy the process group and its threads: a remaining thread may abort the process when Python exits.

    The garbage collection removes networks, which have references to the group.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


@contextmanager
def main_first(accelerator: Accelerator) -> Iterator[None]:
    """Run the block first on one process of each machine, then on the others, which can use its downloads.

    Unlike accelerate's own function, it does not block the others when the first process fails.
    """
    if not accelerator.is_local_main_process:
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if accelerator.is_local_main_process:
            accelerator.wait_for_everyone()


def use_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether training on a device uses bfloat16."""
    return precision == "bf16" or (precision == "auto" and _multiplies_bf16(device))


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    on_cpu = device.type == "cpu"
    return on_cpu and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
