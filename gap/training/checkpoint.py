"""Reading of training checkpoints, and the check that they belong to the same data and networks."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gap.core.errors import GapError
from gap.core.safe_load import DamagedError, check_finite, load_untrusted

# The advice for a checkpoint that cannot be used.
START_AGAIN = "start again with `overwrite`"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's tensors and plain values; raises GapError when the file is truncated or contains code."""
    try:
        state = load_untrusted(path)
    except pickle.UnpicklingError as error:
        raise GapError(
            f"{path} holds more than tensors and numbers, so it was not opened; it is no checkpoint of gap"
        ) from error
    except DamagedError as error:
        raise GapError(f"{path} is cut short or damaged; {START_AGAIN}") from error
    if not isinstance(state, dict) or not {"step", "modules", "training"} <= state.keys():
        raise GapError(f"{path} is not a checkpoint of gap")
    if type(state["step"]) is not int or state["step"] < 0:
        raise GapError(f"{path} is damaged: its step is {state['step']!r}; {START_AGAIN}")
    check_finite(state, path, START_AGAIN)
    return state


def check_fingerprints(now: Mapping[str, str], then: Mapping[str, str], path: Path) -> None:
    """Raise GapError, naming the differences, when the fingerprints saved in `path` are not the present ones."""
    changed = [name for name in {**now, **then} if now.get(name) != then.get(name)]
    if changed:
        raise GapError(
            f"{' and '.join(changed)} changed since {path} was saved;"
            " bring back what was there, or start again with `overwrite`"
        )
