"""Counts and columns as people read them."""

from collections.abc import Iterable, Iterator

Fact = tuple[str, str]
"""A name and its value."""


def aligned(facts: Iterable[Fact]) -> Iterator[str]:
    """Yield one line per fact; an empty name continues the fact before it."""
    facts = list(facts)
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        yield f"{name:<{width}}  {value}".rstrip()


def plural(count: int, noun: str) -> str:
    """Write a count with its noun."""
    return f"{count} {noun}{'s' * (count != 1)}"
