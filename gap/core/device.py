"""Devices by name."""

import torch

from gap.core.errors import GapError


def pick_device(name: torch.device | str) -> torch.device:
    """The torch device of that name; "auto" is the first accelerator, or the CPU where there is none.

    Raises GapError for a device that is not available.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise GapError(f"unknown `device` {name!r}; write auto, cpu, cuda, cuda:1, mps or xpu") from error
    count = torch.accelerator.device_count() if accelerator and accelerator.type == device.type else 0
    if device.type != "cpu" and (device.index or 0) >= count:
        raise GapError(f"no `device` {device} is visible; use cpu")
    return device
