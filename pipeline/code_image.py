"""Code the similarities of one image's patches: what a worker process does for codec `gram`.

Imports no torch, so that a worker starts at once and stays small.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..teacher_cache.gram import encode
from ..teacher_cache.schema import PatchGrid


@dataclass(frozen=True, slots=True)
class Patches:
    """What is coded of an image.

    Attributes:
        patches: [M, b] float32 on the expert's grid, as they enter the interpolation.
        valid: [N] bool, which patches of the student's grid are image.
        native: the expert's grid.
        student: the student's grid.
        max_error: RMS error of the cosine Gram that the code may make.
    """

    patches: NDArray[np.float32]
    valid: NDArray[np.bool_]
    native: PatchGrid
    student: PatchGrid
    max_error: float


@dataclass(frozen=True, slots=True)
class ImageCode:
    """A code, and the RMS and largest error of the Gram it stands for."""

    blob: bytes
    rms: float
    largest: float


def code_image(image: Patches) -> ImageCode:
    """Code the Gram of one image.

    Raises:
        TeacherCacheError: the error asked for cannot be kept.
    """
    blob, error = encode(image.patches, image.native, image.student, image.valid, image.max_error)
    return ImageCode(blob, error.rms, error.max)
