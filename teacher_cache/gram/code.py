"""The dense form of a coded Gram, and the exact Gram that a code is measured against.

`GramCode` is what a batch carries; `GramTarget` is what a coder works on.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..schema import PatchGrid, TeacherCacheError

Floats = npt.NDArray[np.floating[Any]]
Float32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
_TINY = 1e-30
_FINE = 1e-4  # error allowed, below which float32 would not do
_FEW = 256  # patches, up to which float64 costs next to nothing
_WILD = 1e6  # a code of steps far too coarse, not of cosines


@lru_cache(maxsize=64)
def weights(source: int, target: int) -> npt.NDArray[np.float64]:
    """Return [target, source]: linear interpolation along one side, `align_corners=False`.

    Both sides cover the same length and a patch stands for its centre; beyond the outermost
    centres the outermost patch counts alone. Rows sum to 1.
    """
    result = np.zeros((target, source))
    centre = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0)
    before = centre.astype(np.intp)
    after = np.minimum(before + 1, source - 1)
    rows = np.arange(target)
    np.add.at(result, (rows, before), 1 - (centre - before))
    np.add.at(result, (rows, after), centre - before)
    result.setflags(write=False)
    return result


def resample_matrix(native: PatchGrid, student: PatchGrid) -> npt.NDArray[np.float64]:
    """Return W [N, M], so that W @ patches [M, b] is the patches on the student's grid."""
    rows, cols = weights(native.rows, student.rows), weights(native.cols, student.cols)
    return np.kron(rows, cols).astype(np.float64)


def resample(values: Floats, native: PatchGrid, student: PatchGrid) -> Floats:
    """Return W @ values, [N, D] from [M, D], in the dtype of `values`."""
    if native == student:
        return values
    depth = values.shape[1]
    rows = weights(native.rows, student.rows).astype(values.dtype)
    cols = weights(native.cols, student.cols).astype(values.dtype)
    tall = rows @ values.reshape(native.rows, native.cols * depth)
    wide: Floats = cols @ tall.reshape(student.rows, native.cols, depth)
    return wide.reshape(student.size, depth)


def reached(valid: Bools, native: PatchGrid, student: PatchGrid) -> Bools:
    """Return which native patches the valid student patches are interpolated from, bool [M]."""
    if native == student:
        return valid
    mask = valid.reshape(student.rows, student.cols)
    rows = weights(native.rows, student.rows) > 0
    cols = weights(native.cols, student.cols) > 0
    result: Bools = (rows.T @ mask @ cols).ravel()
    return result


@dataclass(frozen=True, slots=True, eq=False)
class GramCode:
    """Hold factors of the cosine Gram of an image's patches, quantised.

    With Z = codes * scale[:, None] the cosines of the native patches are C = Z^T Z with the
    diagonal set to 1; rows of Z are never normalised again, which would cost five times the
    error. On equal grids C is the Gram. Otherwise, with n = norms and W the bilinear matrix
    [N, M], it is Y = W (n C n) W^T divided by the roots of its diagonal, rows and columns.

    Components of all zeros change nothing, so batches may pad K.

    Attributes:
        codes: int16 [K, M], a component a row; zero where a patch is not coded.
        scale: float32 [K].
        norms: float32 [M], lengths of the native patches up to a common factor, 1 on equal grids.
        valid: bool [N], student patches that are image.
        native: the expert's grid, M patches.
        student: the grid of the Gram, N patches.
    """

    codes: npt.NDArray[np.int16]
    scale: Float32
    norms: Float32
    valid: npt.NDArray[np.bool_]
    native: PatchGrid
    student: PatchGrid

    def gram(self) -> Float32:
        """Return the cosine Gram on the student's grid, float32 [N, N].

        The diagonal is 1; rows and columns of patches that are not valid are 0.
        """
        native, student = self.native, self.student
        z = self.codes * self.scale[:, None]
        result: npt.NDArray[Any] = z.T @ z  # one operand twice: BLAS computes half of it
        np.fill_diagonal(result, 1)
        if native != student:
            result *= self.norms * self.norms[:, None]
            result = resample(resample(result, native, student).T, native, student)
            root = 1 / np.sqrt(np.maximum(result.diagonal(), _TINY))
            with np.errstate(over="ignore"):  # steps far too coarse, or made-up codes
                result *= root * root[:, None]
            np.fill_diagonal(result, 1)
        if not self.valid.all():
            result[~self.valid] = 0
            result[:, ~self.valid] = 0
        return result


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
