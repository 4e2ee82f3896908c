"""What the expert says about the images of a batch: the targets of both distillation losses."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..teacher_cache.gram import GramCode
from ..teacher_cache.gram_grid import resample_matrix
from ..teacher_cache.reader import TeacherRow
from ..teacher_cache.schema import PatchGrid
from .losses import cosine_gram
from .resample import ResampledRow
from .students.question_attention import Look

_TINY = 1e-30


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
            gram = matrix @ gram @ matrix.T
            root = gram.diagonal(dim1=-2, dim2=-1).clamp_min(_TINY).rsqrt()
            gram = _with_unit_diagonal(gram * root[:, :, None] * root[:, None, :])
        return torch.where(valid[:, :, None] & valid[:, None, :], gram, 0.0)


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
        root = gram.diagonal(dim1=-2, dim2=-1).clamp_min(_TINY).rsqrt()
        gram = _with_unit_diagonal(gram * root[:, :, None] * root[:, None, :])
        return torch.where(valid[:, :, None] & valid[:, None, :], gram, 0.0)


@dataclass(frozen=True, eq=False, slots=True)
class Teacher:
    """What the expert says about the images of a batch that it has seen. I counts those.

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
        attention=_stack([row.attention for row in rows]),
        valid=_stack([row.valid for row in rows]),
    )


def _spatial(rows: Sequence[TeacherRow | ResampledRow]) -> Patches | Codes | Resampled:
    """One form for all: a cache has one codec, and a student resamples all rows or none."""
    brought = [row for row in rows if isinstance(row, ResampledRow)]
    plain = [row for row in rows if isinstance(row, TeacherRow)]
    if brought:
        codes = [row.code for row in brought]
        return Resampled(
            _stack_codes(codes),
            valid=_stack([code.valid for code in codes]),
            matrix=_stack([row.matrix for row in brought]),
        )
    if plain[0].code is None:
        return Patches(_stack([row.features for row in plain]))
    return _stack_codes([row.code for row in plain if row.code is not None])


def _stack(arrays: Sequence[npt.NDArray[Any]]) -> Tensor:
    """Stack arrays that may differ in their first length; zeros fill up."""
    most = max(map(len, arrays))
    if all(len(each) == most for each in arrays):
        return torch.from_numpy(np.stack(arrays))
    stacked = np.zeros((len(arrays), most, *arrays[0].shape[1:]), arrays[0].dtype)
    for place, each in zip(stacked, arrays, strict=True):
        place[: len(each)] = each
    return torch.from_numpy(stacked)


def _stack_codes(codes: Sequence[GramCode]) -> Codes:
    most = max(len(code.scale) for code in codes)
    factors = np.zeros((len(codes), most, codes[0].codes.shape[1]), np.int16)
    scale = np.zeros((len(codes), most), np.float32)
    for place, code in enumerate(codes):
        factors[place, : len(code.codes)] = code.codes
        scale[place, : len(code.scale)] = code.scale
    return Codes(
        codes=torch.from_numpy(factors),
        scale=torch.from_numpy(scale),
        norms=torch.from_numpy(np.stack([code.norms for code in codes])),
        native=codes[0].native,
        student=codes[0].student,
    )


@lru_cache(maxsize=8)
def _matrix(native: PatchGrid, student: PatchGrid, device: torch.device) -> Tensor:
    return torch.from_numpy(resample_matrix(native, student)).float().to(device)


def _with_unit_diagonal(gram: Tensor) -> Tensor:
    gram.diagonal(dim1=-2, dim2=-1).fill_(1)
    return gram
