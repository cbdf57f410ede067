"""Unique names of attacks and classifiers in a table."""

from collections.abc import Container, Iterable


def unique_names(names: Iterable[str]) -> list[str]:
    """These names in their order; the second of the same name is "NAME (2)", the third "NAME (3)"."""
    unique: dict[str, None] = {}
    for name in names:
        unique[unused_name(name, unique)] = None
    return list(unique)


def unused_name(name: str, used: Container[str]) -> str:
    """The name, or the name with the first number from 2 on that makes it unused."""
    candidate, number = name, 2
    while candidate in used:
        candidate, number = f"{name} ({number})", number + 1
    return candidate
