"""The dense form of a coded Gram: what a batch carries, and what is computed from it."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..schema import PatchGrid

Floats = npt.NDArray[np.floating[Any]]
Float32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
_TINY = 1e-30


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
