"""How numbers of scores and comparisons are printed, in every table alike."""

from .metrics.definitions import Unit
from .metrics.interval import Interval

ALONE = "one cluster"
"""Stands where an interval would: nothing varies between samples that hang together."""


def value(number: float, unit: Unit, *, signed: bool = False) -> str:
    """Return a number with the digits of its unit; a rounded zero has no minus."""
    digits = 1 if unit == "percent" else 2
    return f"{round(number, digits) + 0.0:{'+' if signed else ''}.{digits}f}"


def interval(ends: Interval, unit: Unit, *, signed: bool = False, pattern: str = "[{}, {}]") -> str:
    """Return an interval as text.

    Args:
        ends: low and high, None where all samples are of one cluster.
        unit: of both.
        signed: write a plus, too.
        pattern: takes both ends.
    """
    if ends is None:
        return f"[{ALONE}]" if pattern.startswith("[") else ALONE
    return pattern.format(*(value(end, unit, signed=signed) for end in ends))
