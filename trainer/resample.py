"""A cache row on the grid of one image, for students whose grid follows the image.

Bilinear in both directions, `align_corners=False`: a patch stands for its centre. The student
sees the whole image, the expert a square made of it; the square's geometry says which part of it a
student's patch looks at. Padding of the square takes no part.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..pipeline.geometry import GeometryName, mapping
from ..teacher_cache.gram import GramCode
from ..teacher_cache.reader import TeacherRow
from ..teacher_cache.schema import PatchGrid

Bools = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
_TINY = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class ResampledRow:
    """A row whose similarities are coded: they are decoded first, then resampled.

    Attributes:
        attention: [N] float32 on the image's grid.
        valid: [N] bool on the image's grid.
        code: of the M patches of the cache's grid.
        matrix: [N, M] float32; N tokens from M patches.
    """

    attention: Float32
    valid: Bools
    code: GramCode
    matrix: Float32


def resample_row(
    row: TeacherRow, geometry: GeometryName, source: PatchGrid, target: PatchGrid
) -> TeacherRow | ResampledRow:
    """Bring a cache row to an image's own grid.

    Features become unit rows again; attention is interpolated as it is, between patches of image.
    A target patch is valid when at least half of its area shows patches that are.

    Args:
        row: M patches.
        geometry: of the cache: how the image became the expert's square.
        source: the cache's grid.
        target: the grid of the image's visual tokens.
    """
    where = mapping(geometry, *row.source_size)
    vertical = (target.rows, source.rows, where.y_offset, where.height * where.y_scale)
    level = (target.cols, source.cols, where.x_offset, where.width * where.x_scale)
    rows, cols = _weights(*vertical), _weights(*level)
    share = _both(_shares(*vertical), _shares(*level), row.valid[:, None])[:, 0]
    reached = _both(rows, cols, row.valid[:, None])[:, 0]
    valid = (share >= min(0.5, float(share.max())) - 1e-9) & (reached > _TINY)
    seen = np.where(row.valid, row.attention, 0)
    attention = _both(rows, cols, seen[:, None])[:, 0] / np.maximum(reached, _TINY)
    found = attention.astype(np.float32)
    if row.code is not None:
        matrix = np.kron(rows, cols) * row.valid
        return ResampledRow(found, valid, row.code, matrix.astype(np.float32))
    features = _both(rows, cols, np.where(row.valid[:, None], row.features, 0))
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), _TINY)
    return replace(row, attention=found, valid=valid, features=features.astype(np.float16))


def _both(rows: Float64, cols: Float64, values: npt.NDArray[Any]) -> Float64:
    """Apply a matrix along each side: [N, D] from [M, D], as their Kronecker product would."""
    (tall, height), (wide, width), depth = rows.shape, cols.shape, values.shape[1]
    first = rows @ values.reshape(height, width * depth).astype(np.float64)
    second: Float64 = cols @ first.reshape(tall, width, depth)
    return second.reshape(tall * wide, depth)


@lru_cache(maxsize=256)
def _weights(target: int, source: int, offset: float, span: float) -> Float64:
    """Linear interpolation along one side, [target, source]; rows sum to 1.

    The target covers [offset, offset + span] of the source's side, whose length is 1.
    """
    centre = (offset + (np.arange(target) + 0.5) / target * span) * source - 0.5
    distance = np.abs(np.clip(centre, 0, source - 1)[:, None] - np.arange(source))
    weights: Float64 = np.maximum(1 - distance, 0)
    weights.setflags(write=False)
    return weights


@lru_cache(maxsize=256)
def _shares(target: int, source: int, offset: float, span: float) -> Float64:
    """Which share of each target patch every source patch makes up, along one side."""
    edges = (offset + np.arange(target + 1) / target * span) * source
    patches = np.arange(source)
    begin = np.maximum(edges[:-1, None], patches)
    end = np.minimum(edges[1:, None], patches + 1)
    shares: Float64 = np.maximum(end - begin, 0) / np.diff(edges)[:, None]
    shares.setflags(write=False)
    return shares
