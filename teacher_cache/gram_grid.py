"""Bilinear resampling of patches as a matrix, separable in rows and columns."""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .schema import PatchGrid

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]


@lru_cache(maxsize=64)
def weights(source: int, target: int) -> npt.NDArray[np.float64]:
    """Return [target, source]: linear interpolation along one side, `align_corners=False`.

    Both sides cover the same length and a patch stands for its centre; beyond the outermost
    centres the outermost patch counts alone. Rows sum to 1.
    """
    result = np.zeros((target, source))
    centre = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0)
    left = centre.astype(np.intp)
    right = np.minimum(left + 1, source - 1)
    rows = np.arange(target)
    np.add.at(result, (rows, left), 1 - (centre - left))
    np.add.at(result, (rows, right), centre - left)
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
    shown = valid.reshape(student.rows, student.cols)
    rows = weights(native.rows, student.rows) > 0
    cols = weights(native.cols, student.cols) > 0
    result: Bools = (rows.T @ shown @ cols).ravel()
    return result
