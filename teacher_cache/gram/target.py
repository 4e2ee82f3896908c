"""What a code of one image has to reproduce, and how far off it is."""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..schema import PatchGrid, TeacherCacheError
from .code import Float32, GramCode, reached, resample

_FINE = 1e-4
_FEW = 256
_TINY = 1e-30
_WILD = 1e6  # a code of steps far too coarse, not of cosines


@dataclass(frozen=True, slots=True)
class GramError:
    """How far a decoded Gram is from the exact one, over pairs of valid patches.

    The diagonal is exact and counts, as it does in the mean that the loss takes.

    Attributes:
        rms: root of the mean square.
        max: largest absolute difference.
    """

    rms: float
    max: float


@dataclass(frozen=True, slots=True, eq=False)
class GramTarget:
    """Hold one image's exact Gram and the native cosines that a coder works on.

    Attributes:
        native: the expert's grid, M patches.
        student: the student's grid, N patches.
        valid: bool [N].
        tokens: indices [n] of the native patches that valid ones are interpolated from.
        cosines: [n, n] between those, float64 where float32 would not do.
        levels: uint16 [n], norm of each is 2^(-step * level); all 0 on equal grids.
        step: of the norms' logarithm to base 2.
        exact: float32 [V, V], the Gram of the valid student patches.
    """

    native: PatchGrid
    student: PatchGrid
    valid: npt.NDArray[np.bool_]
    tokens: npt.NDArray[np.intp]
    cosines: npt.NDArray[Any]
    levels: npt.NDArray[np.uint16]
    step: float
    exact: Float32

    @classmethod
    def of(
        cls,
        patches: npt.NDArray[Any],
        native: PatchGrid,
        student: PatchGrid,
        valid: npt.NDArray[np.bool_],
        max_error: float,
    ) -> Self:
        """Work out what `patches` [M, b] on the native grid ask for.

        Raises:
            TeacherCacheError: a patch that counts is not finite or has no length.
        """
        tokens = np.flatnonzero(reached(valid, native, student))
        precise = max_error < _FINE or len(tokens) <= _FEW
        used = patches[tokens].astype(np.float64 if precise else np.float32)
        lengths = _lengths(used)
        good = np.isfinite(lengths) & (lengths > 0)
        if not good.all():
            raise TeacherCacheError(
                f"patch {tokens[np.argmin(good)]} of the expert is not finite or has no length"
            )
        unit = used / lengths[:, None]
        cosines = unit @ unit.T
        if native == student:
            levels, step, exact = np.zeros(len(tokens), np.uint16), 0.0, cosines
        else:
            levels, step = _levels(lengths, max_error)
            whole = np.zeros((native.size, used.shape[1]), used.dtype)
            whole[tokens] = used / lengths.max()
            resampled = resample(whole, native, student)[valid]
            resampled /= np.maximum(_lengths(resampled), _TINY)[:, None]
            exact = resampled @ resampled.T
        return cls(native, student, valid, tokens, cosines, levels, step, exact.astype(np.float32))

    def code(self, codes: npt.NDArray[Any], scale: Float32) -> GramCode:
        """Return the dense form of whole numbers `codes` [K, n] for the tokens."""
        whole = np.zeros((len(codes), self.native.size), np.int16)
        whole[:, self.tokens] = codes
        norms = np.ones(self.native.size, np.float32)
        norms[self.tokens] = norms_of(self.levels, self.step)
        return GramCode(whole, scale, norms, self.valid, self.native, self.student)

    def error(self, code: GramCode) -> GramError:
        """Measure a code through the decoder's own arithmetic."""
        errors = code.gram()
        if not self.valid.all():
            errors = errors[np.ix_(self.valid, self.valid)]
        errors -= self.exact
        np.fill_diagonal(errors, 0)
        largest = float(np.abs(errors).max())
        if not largest < _WILD:  # its square would not fit; true for NaN too
            return GramError(math.inf, math.inf)
        return GramError(math.sqrt(float(np.vdot(errors, errors))) / len(errors), largest)


def _lengths(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    result: npt.NDArray[Any] = np.sqrt(np.square(vectors).sum(1))
    return result


def norms_of(levels: npt.NDArray[np.uint16], step: float) -> Float32:
    """Return the lengths that `levels` stand for."""
    return np.exp2(-step * levels.astype(np.float64)).astype(np.float32)


def _levels(lengths: npt.NDArray[Any], max_error: float) -> tuple[npt.NDArray[np.uint16], float]:
    # a patch that is 2^-100 of another weighs nothing beside it
    down = np.minimum(np.log2(lengths.max() / lengths.astype(np.float64)), 100)
    # a relative error far below the one allowed; float32, as it is stored
    step = float(np.float32(max(max_error, float(down.max()) / 65000)))
    return np.rint(down / step).astype(np.uint16), step
