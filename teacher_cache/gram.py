"""The compact codec: one image's cosine Gram within a stated error, as one blob of bytes.

The loss reads only the Gram of the interpolated, normalised patches, so that is what is coded.
Two forms share one dense code, `GramCode`: factors (`gram_factors`), small where patches share
much, and the predicted triangle (`gram_triangle`), small for few patches and for fine errors.
`encode` looks for the coarsest steps that keep the RMS error over valid pairs within what is
allowed, measured through the decoder's own arithmetic, and takes the smaller form.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .gram_blob import read_blob, write_blob
from .gram_code import GramCode as GramCode
from .gram_factors import Factors, Spectrum
from .gram_target import GramError as GramError
from .gram_target import GramTarget
from .gram_triangle import Triangle, finest_delta, triangle
from .schema import PatchGrid, TeacherCacheError

_FEW = 256  # patches up to which the triangle may be the smaller form at any error
_FINE = 3e-4  # error up to which it may be at any number of patches
_PASSES = 12
_GOOD = 0.985  # of the allowed error, from which on looking further does not pay
_FACTOR_STEP, _TRIANGLE_STEP = 3.4, 4  # first guesses in units of the error
_ROOM = 1.2  # norms are coded to the error allowed, so the finest error depends on that a little
_A_LITTLE = 1.2  # factor from a step that 16 bits do not hold to the next one to try
_AIM, _LIMIT = 0.993, 0.999  # the last bit of a sum may differ between machines

Form = TypeVar("Form", Factors, Triangle)


def encode(
    patches: npt.NDArray[Any],
    native: PatchGrid,
    student: PatchGrid,
    valid: npt.NDArray[np.bool_],
    max_error: float,
) -> tuple[bytes, GramError]:
    """Code one image's patches; the same input gives the same bytes on the same machine.

    Args:
        patches: [M, b] on the expert's own grid, as they enter the interpolation.
        native: the expert's grid, M patches.
        student: the grid of the Gram, N patches.
        valid: bool [N], patches that are image; the others are not coded.
        max_error: RMS error allowed over all pairs of valid patches, with their diagonal; at
            most 1.

    Returns:
        At most `max_code_bytes(native, student)` bytes, and the error measured by decoding them.

    Raises:
        ValueError: an argument of another shape or type.
        TeacherCacheError: patches are not finite or have no length, none is valid, or the error
            cannot be reached; says what can.
    """
    _check(patches, native, student, valid, max_error)
    target = GramTarget.of(patches, native, student, valid, max_error)
    blobs = []
    quantise = Spectrum.of(target, max_error).quantise
    factors = _coarsest(quantise, target, _FACTOR_STEP * max_error, max_error)
    if factors is not None:
        blobs.append(write_blob(target, factors))
    if factors is None or len(target.tokens) <= _FEW or max_error <= _FINE:
        entries = _coarsest(
            lambda delta: triangle(target, delta),
            target,
            _TRIANGLE_STEP * max_error,
            max_error,
            finest_delta(len(target.tokens)),
        )
        if entries is not None:
            blobs.append(write_blob(target, entries))
    limit = max_code_bytes(native, student)
    blob = min((blob for blob in blobs if len(blob) <= limit), key=len, default=None)
    if blob is None:
        raise TeacherCacheError(
            f"an RMS error of {max_error:g} of the Gram is out of reach for this image; "
            f"{_ROOM * _finest(target):.2g} is not"
        )
    return blob, target.error(decode(blob, native, student))


def decode(blob: bytes | memoryview, native: PatchGrid, student: PatchGrid) -> GramCode:
    """Return the dense code of a blob, which zeros may follow; whole numbers alone decide it.

    Raises:
        DamagedError: the bytes cannot be a blob of these grids.
    """
    return read_blob(blob, native, student)


def max_code_bytes(native: PatchGrid, student: PatchGrid) -> int:
    """Return how long a blob can be: two bytes for each pair of native patches and some."""
    m = native.size
    # the triangle; norms, order, pivots and classes; the mask; deflate's own bytes
    exact = m * (m - 1) + 7 * m + student.size // 8
    return exact + exact // 1000 + 1024


def _check(
    patches: npt.NDArray[Any],
    native: PatchGrid,
    student: PatchGrid,
    valid: npt.NDArray[np.bool_],
    max_error: float,
) -> None:
    if patches.ndim != 2 or len(patches) != native.size or patches.dtype.kind != "f":
        raise ValueError(
            f"patches of grid {native} are floats [{native.size}, b], "
            f"got {patches.dtype} {list(patches.shape)}"
        )
    if valid.shape != (student.size,) or valid.dtype != np.bool_:
        raise ValueError(
            f"valid of grid {student} is bool [{student.size}], "
            f"got {valid.dtype} {list(valid.shape)}"
        )
    if not 0 < max_error <= 1:  # false for NaN too
        raise ValueError(f"the error allowed lies above 0 and is at most 1, got {max_error}")
    if not valid.any():
        raise TeacherCacheError("no patch is valid, so there is nothing to code")


def _coarsest(
    quantise: Callable[[float], Form | None],
    target: GramTarget,
    step: float,
    max_error: float,
    finest: float = 0.0,
) -> Form | None:
    """Return the form of the coarsest step found to keep the error, None if none does.

    `step` is the first guess. The error grows about as the step does, so the second is nearly
    always good enough. No form means that a step is too fine, as one below `finest` would be.
    """
    best: Form | None = None
    fine, coarse = 0.0, math.inf
    for _ in range(_PASSES):
        step = max(step, finest)
        form = quantise(step)
        if form is None:
            fine, wanted = step, step * _A_LITTLE
        else:
            rms = target.error(target.code(form.codes, form.scale)).rms
            if rms > _LIMIT * max_error:
                coarse = step
            else:
                fine, best = step, form
            if best is form and (rms >= _GOOD * max_error or not len(form.codes)):
                break
            wanted = step * min(max(_AIM * max_error / max(rms, 1e-12), 0.2), 5)
        if best is None and coarse <= max(fine * _A_LITTLE, finest):
            break
        between = math.sqrt(fine * coarse) if fine else coarse / 2
        step = wanted if fine < wanted < coarse else between
    return best


def _finest(target: GramTarget) -> float:
    """Return the smallest error that this image can be coded with."""
    form = triangle(target, finest_delta(len(target.tokens)))
    return math.inf if form is None else target.error(target.code(form.codes, form.scale)).rms
