"""The one kind of error a user is meant to read: a line that names the thing and the mend."""

from collections.abc import Iterable
from difflib import get_close_matches


class GapError(Exception):
    """Something the user gave cannot be used. The command line prints it on one line and exits with 2."""


class GapWarning(UserWarning):
    """Something the user should know and that stops nothing. The command line prints it on one line."""


def unknown_name_error(kind: str, name: str, known: Iterable[str]) -> GapError:
    """The error for a name nobody knows, with the nearest known names (or all of them when none is near)."""
    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return GapError(f"unknown {kind} {name!r}; did you mean {' or '.join(near)}?")
    listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return GapError(f"unknown {kind} {name!r}; known: {listed}")


def check_at_least(least: int, **arguments: int | None) -> None:
    """Raise GapError where an argument, by its name, is less than that; None stands for a default."""
    for name, value in arguments.items():
        if value is not None and value < least:
            raise GapError(f"`{name}` is at least {least}, not {value}")


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


# What torch's errors say where memory ran out.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. Torch, which is not imported here, has its own error for that, or only says it."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(phrase in str(error) for phrase in OUT_OF_MEMORY)
    )
