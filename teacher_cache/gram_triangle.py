"""The triangle of the Gram, each entry as its difference from what earlier patches predict.

Patches are taken in an order, the least predictable next. Entry (i, p) is predicted from the
components so far, and the difference d is rounded to steps of delta: q = round(d / delta). With
the pivot's own entry l this is a component that is q * delta / l at patch i, l at p and zero at
earlier patches, so decoding is the same product Z^T Z as for factors. Rounding errors do not add
up: later differences are taken from what was already decoded. Each pair is off by one rounding.

The diagonal is known, so it is raised a little: that keeps l large enough to hold rounding errors
of one component out of the next.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .gram_stream import class_of
from .gram_target import GramTarget

_RAISE = 4.0  # steps of delta added to the diagonal, at least; more for many patches
_PATCHES_A_STEP = 48
_ROUND_UP_FROM = 0.52
_MOST = 32767

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Triangle:
    """Hold components [K, n] in the order of their patches.

    Attributes:
        codes: int16 [K, n], by token; zero at the pivots of earlier components.
        order: [n], tokens in the order taken; the first K are the pivots.
        pivots: uint16 [K], each component's whole number at its pivot, never rising.
        classes: uint8 [K], of the numbers behind the pivot.
        delta: step.
    """

    codes: npt.NDArray[np.int16]
    order: npt.NDArray[np.intp]
    pivots: npt.NDArray[np.uint16]
    classes: npt.NDArray[np.uint8]
    delta: float

    @property
    def scale(self) -> npt.NDArray[np.float32]:
        """Steps of the components, float32 [K]."""
        return triangle_scale(self.delta, self.pivots)


def triangle(target: GramTarget, delta: float) -> Triangle | None:
    """Code the cosines with steps of `delta`; None if that is below the finest there is."""
    delta = float(np.float32(delta))
    gram = target.cosines.astype(np.float64)
    n = len(gram)
    if 1 / delta + _raise(n) > _MOST:  # the first pivot, which is the largest
        return None
    gram[np.diag_indices(n)] += _raise(n) * delta
    left = gram.diagonal().copy()
    free = np.ones(n, bool)
    codes, decoded = np.zeros((n, n)), np.zeros((n, n))
    order, pivots = np.zeros(n, np.intp), np.zeros(n)
    for k in range(n):
        p = order[k] = np.argmax(np.where(free, left, -np.inf))
        free[p] = False
        pivots[k] = max(1, np.rint(left[p] / delta))
        steps = (gram[p] - decoded[:k, p] @ decoded[:k]) / delta * free
        rounded = np.trunc(steps + np.copysign(1 - _ROUND_UP_FROM, steps))
        codes[k] = np.clip(rounded, -_MOST, _MOST)  # a limit that only far too coarse steps meet
        codes[k, p] = pivots[k]
        decoded[k] = codes[k] * np.sqrt(delta / pivots[k])
        left -= np.square(decoded[k])
    behind = n - 1 - np.arange(n)
    square = np.square(codes).sum(1) - np.square(pivots)
    count = int(np.max(np.nonzero(square)[0], initial=-1)) + 1
    classes = class_of(np.sqrt(square / np.maximum(behind, 1)))
    return Triangle(
        codes[:count].astype(np.int16),
        order,
        pivots[:count].astype(np.uint16),
        classes[:count],
        delta,
    )


def finest_delta(n: int) -> float:
    """Return the smallest step for which 16 bits hold the pivots of n patches."""
    return 1 / (_MOST - 1 - _raise(n))


def triangle_scale(delta: float, pivots: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
    """Return the step of each component: sqrt(delta / pivot)."""
    return np.sqrt(delta / pivots.astype(np.float64)).astype(np.float32)


def _raise(n: int) -> float:
    return max(_RAISE, n / _PATCHES_A_STEP)
