"""The two forms of a coded Gram: factors, and the predicted triangle.

Factors are principal components with steps that suit what an error costs. With Z = U sqrt(lambda)
and G = Z Z^T, an error of component j enters G multiplied by sqrt(lambda_j), so its step goes as
1 / sqrt(lambda_j): every component then adds as much error a coefficient, and one factor c sets
the error of all. Three things make the code smaller:

- The diagonal of G is known. Taking from it what no other patch shares (its residual when
  regressed on the others) leaves a matrix of lower rank with the same pairs.
- Half of the error between two components can be undone: what the first one's rounding did along
  the second, the second takes back along the first.
- Values are rounded towards zero a little, which shortens the code more than it costs.

The triangle codes each entry as its difference from what earlier patches predict. Patches are
taken in an order, the least predictable next. Entry (i, p) is predicted from the components so
far, and the difference d is rounded to steps of delta: q = round(d / delta). With the pivot's own
entry l this is a component that is q * delta / l at patch i, l at p and zero at earlier patches,
so decoding is the same product Z^T Z as for factors. Rounding errors do not add up: later
differences are taken from what was already decoded. The diagonal is known, so it is raised a
little: that keeps l large enough to hold rounding errors of one component out of the next.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .code import GramTarget
from .entropy import class_of

# Found by trial on features of a pretrained ViT; none of them decides correctness.
_RIDGE = 4.0  # of the regression, in units of the error allowed
_NEGATIVE = 0.6  # of the error allowed, that negative eigenvalues may cost
_LEAST_SPREAD = 0.7  # steps; components that spread less are cheaper to leave out
_ROUND_UP_FROM = 0.55  # of a step
_BLOCK = 16  # components that do not mend each other's errors, for speed

_RAISE = 4.0  # steps of delta added to the diagonal of a triangle, at least; more for many patches
_PATCHES_A_STEP = 48
_TRIANGLE_ROUND_UP_FROM = 0.52
_MOST = 32767  # of 16 bits with a sign

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """Hold whole numbers [K, n], the class of each component and the base of their scales."""

    codes: npt.NDArray[np.int16]
    classes: npt.NDArray[np.uint8]
    base: float

    @property
    def scale(self) -> npt.NDArray[np.float32]:
        """Steps of the components, float32 [K]."""
        return factor_scale(self.base, self.classes)


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Hold positive eigenvalues, falling, and unit eigenvectors [n, K], of the shared part."""

    values: Floats
    vectors: Floats

    @classmethod
    def of(cls, target: GramTarget, max_error: float) -> "Spectrum":
        """Take the diagonal's own part away, as much of it as `max_error` allows."""
        gram = target.cosines
        own = _own_part(gram, _RIDGE * max_error)
        for share in (1, 0.5, 0.25, 0):
            shared = gram.copy()
            np.fill_diagonal(shared, 1 - share * own)
            values, vectors = np.linalg.eigh(shared)
            lost = np.sqrt(np.square(np.minimum(values, 0)).sum()) / len(gram)
            if lost <= _NEGATIVE * max_error:
                break
        count = int((values > 0).sum())
        return cls(values[::-1][:count], vectors[:, ::-1][:, :count])

    def quantise(self, c: float) -> Factors | None:
        """Round to steps of c / sqrt(lambda); None if 16 bits do not hold the result."""
        root_n = np.sqrt(len(self.vectors))
        spread = self.values / (c * root_n)
        count = int((spread > _LEAST_SPREAD).sum())
        values, classes = self.values[:count], class_of(spread[:count])
        base = float(np.float32(np.sqrt(2 * c / root_n)))
        scale = factor_scale(base, classes).astype(self.vectors.dtype)
        exact = self.vectors[:, :count] * (np.sqrt(values) / scale)  # in steps
        codes = np.empty_like(exact)
        for start in range(0, count, _BLOCK):
            at = slice(start, start + _BLOCK)
            before = codes[:, :start] * scale[:start]
            overlap = before.T @ (exact[:, at] * scale[at])
            mended = exact[:, at] - (before @ overlap) / (values[at] * scale[at])
            codes[:, at] = np.trunc(mended + np.copysign(1 - _ROUND_UP_FROM, mended))
        if count and np.abs(codes).max() > np.iinfo(np.int16).max:
            return None
        return Factors(codes.T.astype(np.int16), classes, base)


def factor_scale(base: float, classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the step of each component: base * 2^(-class / 4).

    A class is half an octave of eigenvalues, so steps are at most a quarter of that off.
    """
    quarter = 2.0 ** (-np.arange(4) / 4)
    exponents = (classes // 4).astype(np.int32)
    return np.ldexp(base * quarter[classes % 4], -exponents).astype(np.float32)


def _own_part(gram: Floats, ridge: float) -> Floats:
    """Return what each patch's diagonal entry has that no other patch tells, [n] in 0..1."""
    ridged = gram.copy()
    ridged[np.diag_indices(len(gram))] += ridge
    own: Floats = np.clip(1 / np.linalg.inv(ridged).diagonal() - ridge, 0, 1)
    return own


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
    residual = gram.diagonal().copy()
    free = np.ones(n, bool)
    codes, decoded = np.zeros((n, n)), np.zeros((n, n))
    order, pivots = np.zeros(n, np.intp), np.zeros(n)
    for k in range(n):
        p = order[k] = np.argmax(np.where(free, residual, -np.inf))
        free[p] = False
        pivots[k] = max(1, np.rint(residual[p] / delta))
        steps = (gram[p] - decoded[:k, p] @ decoded[:k]) / delta * free
        rounded = np.trunc(steps + np.copysign(1 - _TRIANGLE_ROUND_UP_FROM, steps))
        codes[k] = np.clip(rounded, -_MOST, _MOST)  # a limit that only far too coarse steps meet
        codes[k, p] = pivots[k]
        decoded[k] = codes[k] * np.sqrt(delta / pivots[k])
        residual -= np.square(decoded[k])
    coded = n - 1 - np.arange(n)  # patches behind each pivot
    square = np.square(codes).sum(1) - np.square(pivots)
    count = int(np.max(np.nonzero(square)[0], initial=-1)) + 1
    classes = class_of(np.sqrt(square / np.maximum(coded, 1)))
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
