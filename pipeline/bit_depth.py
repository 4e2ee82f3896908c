"""From values of any bit depth to 8-bit grey: the one rule, for Pillow's images and DICOM's."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]
"""Real numbers of any type, integer or floating."""

_TABLE = 1 << 16  # up to so many grey levels, a function of the level is tabulated


class UnfitPixelsError(ValueError):
    """Say why pixels cannot be shown; `pixels.decode` puts the file's name before it."""


def stretch(values: Values) -> NDArray[np.uint8]:
    """Map the smallest value to 0 and the largest to 255, linearly, rounding halves up.

    An image of one value becomes zeros.

    Args:
        values: any shape, at least one value.

    Raises:
        UnfitPixelsError: for NaN or infinite values, or a range beyond float64.
    """
    low, high = _limits(values)
    return by_level(values, lambda levels: quantise(levels, low, high))


def quantise(values: Values, low: float, high: float) -> NDArray[np.uint8]:
    """Map low to 0 and high to 255, linearly, rounding halves up; values beyond are clipped.

    Everything becomes zero when high is not above low.
    """
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    unit = (values.astype(np.float64) - low) / (high - low)
    return np.floor(np.clip(unit, 0, 1) * 255 + 0.5).astype(np.uint8)


def by_level(values: Values, show: Callable[[Values], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Apply a function of single values, once per level that occurs where levels are few.

    `show` gets the distinct values of an integer image in rising order [L], else all values; it
    may look at their extremes, which are the image's either way.
    """
    if values.dtype.kind not in "iub":
        return show(values)
    low, high = int(values.min()), int(values.max())
    if high - low >= _TABLE:
        return show(values)
    index = np.subtract(values, low, dtype=np.int64) if low else values
    used = np.flatnonzero(np.bincount(index.ravel()))
    table = np.zeros(high - low + 1, np.uint8)
    table[used] = show((used + low).astype(values.dtype))
    return table[index]


def _limits(values: Values) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():  # one NaN makes both NaN
        raise UnfitPixelsError("holds NaN or infinite values")
    if not np.isfinite(high - low):
        raise UnfitPixelsError(f"holds values from {low:g} to {high:g}, beyond what can be shown")
    return low, high
