"""What the expert says about the images of a batch: the targets of both distillation losses."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..teacher_cache.reader import TeacherRow
from .losses import cosine_gram
from .probe import Look


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
class Teacher:
    """What the expert says about the images of a batch that it has seen. I counts those.

    Attributes:
        look: where the images and their questions stand in the batch.
        spatial: what their similarity matrices are made from.
        attention: [I, N] float32 [cls] attention.
        valid: [I, N] bool, False where a patch is padding.
    """

    look: Look
    spatial: Patches
    attention: Tensor
    valid: Tensor

    def gram(self) -> Tensor:
        """Return cosine similarities [I, N, N] float32 of the expert's patches (Eq. 3)."""
        return self.spatial.gram(self.valid)


def stack_rows(rows: Sequence[TeacherRow], look: Look) -> Teacher:
    """Stack the cache rows of a batch, in the order of `look`."""
    return Teacher(
        look,
        Patches(torch.from_numpy(np.stack([row.features for row in rows]))),
        attention=torch.from_numpy(np.stack([row.attention for row in rows])),
        valid=torch.from_numpy(np.stack([row.valid for row in rows])),
    )
