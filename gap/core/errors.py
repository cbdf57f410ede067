"""Errors and warnings for the user: one line each, with the problem and how to fix it."""

from collections.abc import Iterable
from difflib import get_close_matches


class GapError(Exception):
    """An input of the user cannot be used. The command line prints the message on one line and exits with 2."""


class GapWarning(UserWarning):
    """A problem that does not stop the work. The command line prints the message on one line."""


def unknown_name_error(kind: str, name: str, known: Iterable[str]) -> GapError:
    """The error for an unknown name. It lists the most similar known names, or all names when none is similar."""
    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return GapError(f"unknown {kind} {name!r}; did you mean {' or '.join(near)}?")
    listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return GapError(f"unknown {kind} {name!r}; known: {listed}")


def check_at_least(least: int, **arguments: int | None) -> None:
    """Raise GapError where a named argument is below `least`. None, which stands for a default, is accepted."""
    for name, value in arguments.items():
        if value is not None and value < least:
            raise GapError(f"`{name}` is at least {least}, not {value}")


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class where the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


# Parts of torch's messages where memory ran out.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out.

    Torch has its own class for that, which is recognized by name because torch is not imported here. Some of its
    errors are recognized by their message.
    """
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(phrase in str(error) for phrase in OUT_OF_MEMORY)
    )
