"""The expert's view of the images of a batch: the targets of both distillation losses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...pipeline.geometry import GeometryName, mapping
from ...teacher_cache.gram.code import GramCode, resample_matrix
from ...teacher_cache.reader import TeacherRow
from ...teacher_cache.schema import PatchGrid
from ..losses import cosine_gram
from ..students.question_attention import Look

Bools = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
_TINY: Final = 1e-30
_TINY_SHARE: Final = 1e-12


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
    placed = mapping(geometry, *row.source_size)
    vertical = (target.rows, source.rows, placed.y_offset, placed.height * placed.y_scale)
    level = (target.cols, source.cols, placed.x_offset, placed.width * placed.x_scale)
    rows, cols = _weights(*vertical), _weights(*level)
    share = _both(_shares(*vertical), _shares(*level), row.valid[:, None])[:, 0]
    reached = _both(rows, cols, row.valid[:, None])[:, 0]
    valid = (share >= min(0.5, float(share.max())) - 1e-9) & (reached > _TINY_SHARE)
    source_attention = np.where(row.valid, row.attention, 0)[:, None]
    total = _both(rows, cols, source_attention)[:, 0]
    attention = (total / np.maximum(reached, _TINY_SHARE)).astype(np.float32)
    if row.code is not None:
        matrix = np.kron(rows, cols) * row.valid
        return ResampledRow(attention, valid, row.code, matrix.astype(np.float32))
    features = _both(rows, cols, np.where(row.valid[:, None], row.features, 0))
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), _TINY_SHARE)
    return replace(row, attention=attention, valid=valid, features=features.astype(np.float16))


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


@dataclass(frozen=True, eq=False, slots=True)
class Patches:
    """Expert patches as they are: codec `fp16`.

    Attributes:
        features: [I, N, D] float16 patches on the student's grid.
    """

    features: Tensor

    def gram(self, valid: Tensor) -> Tensor:
        """Return cosine similarities [I, N, N] float32, 0 where a patch is padding."""
        # Before the product, not after: 0 * NaN of a padding patch would poison the sums.
        return cosine_gram(torch.where(valid[..., None], self.features, 0.0))


@dataclass(frozen=True, eq=False, slots=True)
class Codes:
    """Similarities of expert patches in compact form, decoded where the student is: codec `gram`.

    Attributes:
        codes: [I, K, M] int16 factors of each image's cosine Gram on the expert's grid; images
            that need fewer are padded with zeros.
        scale: [I, K] float32.
        norms: [I, M] float32 lengths of the expert's patches; 1 where the grids are equal.
        native: the expert's grid, M patches.
        student: the student's grid, N patches.
    """

    codes: Tensor
    scale: Tensor
    norms: Tensor
    native: PatchGrid
    student: PatchGrid

    def gram(self, valid: Tensor) -> Tensor:
        """Return cosine similarities [I, N, N] float32, 0 where a patch is padding.

        The same as `GramCode.gram`, image by image.
        """
        factors = self.codes.float() * self.scale[..., None]
        gram = _with_unit_diagonal(factors.mT @ factors)
        if self.native != self.student:
            gram = gram * self.norms[:, :, None] * self.norms[:, None, :]
            matrix = _matrix(self.native, self.student, gram.device)
            gram = _cosines(matrix @ gram @ matrix.T)
        return _masked(gram, valid)


@dataclass(frozen=True, eq=False, slots=True)
class Resampled:
    """Similarities in compact form, brought to each image's own grid: codec `gram`.

    Attributes:
        codes: on the cache's grid, M patches.
        valid: [I, M] bool, False where a patch of that grid is padding.
        matrix: [I, N, M] float32, N visual tokens from M patches; images with fewer tokens are
            padded with zeros.
    """

    codes: Codes
    valid: Tensor
    matrix: Tensor

    def gram(self, valid: Tensor) -> Tensor:
        """Return cosine similarities [I, N, N] float32, 0 where a token is padding."""
        gram = self.matrix @ self.codes.gram(self.valid) @ self.matrix.mT
        return _masked(_cosines(gram), valid)


@dataclass(frozen=True, eq=False, slots=True)
class Teacher:
    """The expert's view of a batch's images, of which I are in the cache.

    Attributes:
        look: where the images and their questions stand in the batch.
        spatial: what their similarity matrices are made from.
        attention: [I, N] float32 [cls] attention.
        valid: [I, N] bool, False where a patch is padding, or an image has fewer tokens.
    """

    look: Look
    spatial: Patches | Codes | Resampled
    attention: Tensor
    valid: Tensor

    def gram(self) -> Tensor:
        """Return cosine similarities [I, N, N] float32 of the expert's patches (Eq. 3)."""
        return self.spatial.gram(self.valid)


def stack_rows(rows: Sequence[TeacherRow | ResampledRow], look: Look) -> Teacher:
    """Stack the cache rows of a batch, in the order of `look`; smaller grids are padded."""
    return Teacher(
        look,
        _spatial(rows),
        attention=stack_padded([row.attention for row in rows]),
        valid=stack_padded([row.valid for row in rows]),
    )


def _spatial(rows: Sequence[TeacherRow | ResampledRow]) -> Patches | Codes | Resampled:
    """One form for all: a cache has one codec, and a student resamples all rows or none."""
    resampled = [row for row in rows if isinstance(row, ResampledRow)]
    plain = [row for row in rows if isinstance(row, TeacherRow)]
    if resampled:
        codes = [row.code for row in resampled]
        return Resampled(
            _stack_codes(codes),
            valid=stack_padded([code.valid for code in codes]),
            matrix=stack_padded([row.matrix for row in resampled]),
        )
    if plain[0].code is None:
        return Patches(stack_padded([row.features for row in plain]))
    return _stack_codes([row.code for row in plain if row.code is not None])


def stack_padded(arrays: Sequence[npt.NDArray[Any]]) -> Tensor:
    """Stack arrays that may differ in their first length; zeros fill up."""
    most = max(map(len, arrays))
    if all(len(array) == most for array in arrays):
        return torch.from_numpy(np.stack(arrays))
    stacked = np.zeros((len(arrays), most, *arrays[0].shape[1:]), arrays[0].dtype)
    for target, array in zip(stacked, arrays, strict=True):
        target[: len(array)] = array
    return torch.from_numpy(stacked)


def _stack_codes(codes: Sequence[GramCode]) -> Codes:
    return Codes(
        codes=stack_padded([code.codes for code in codes]),
        scale=stack_padded([code.scale for code in codes]),
        norms=stack_padded([code.norms for code in codes]),
        native=codes[0].native,
        student=codes[0].student,
    )


@lru_cache(maxsize=8)
def _matrix(native: PatchGrid, student: PatchGrid, device: torch.device) -> Tensor:
    return torch.from_numpy(resample_matrix(native, student)).float().to(device)


def _cosines(gram: Tensor) -> Tensor:
    """Divide products by the lengths of both sides, which the diagonal holds."""
    root = gram.diagonal(dim1=-2, dim2=-1).clamp_min(_TINY).rsqrt()
    return _with_unit_diagonal(gram * root[:, :, None] * root[:, None, :])


def _masked(gram: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid[:, :, None] & valid[:, None, :], gram, 0.0)


def _with_unit_diagonal(gram: Tensor) -> Tensor:
    gram.diagonal(dim1=-2, dim2=-1).fill_(1)
    return gram
