"""The compact codec: one image's cosine Gram within a stated error, as one blob of bytes.

The loss reads only the Gram of the interpolated, normalised patches, so that is what is coded.
Two forms share one dense code, `GramCode` (both in `factors.py`): factors, small where patches
share much, and the predicted triangle, small for few patches and for fine errors. `encode` looks
for the coarsest steps that keep the RMS error over valid pairs within what is allowed, measured
through the decoder's own arithmetic, and takes the smaller form.

A blob is a short header, then parts that each say how long they are:

    uint8 version, form, flags, 0; uint16 components K; uint32 bytes in all; float32 base or delta
    [flag 1] stream of the valid mask, a bit a student patch, the first in the highest bit
    [flag 2] float32 step, words of n levels: the norm of a coded native patch is 2^(-step level)
    stream of K classes
    [triangle] words of the order of all n patches, words of the K pivots' falls from 65535
    raw bit planes and symbols of the codes, components by falling class (`entropy.py`)

A stream is a uint32 length and raw deflate; words are two streams, of low and of high bytes. The
coded native patches are those that a valid student patch is interpolated from, in grid order.
Zeros may follow, so that blobs can be rows of an array.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ..schema import PatchGrid, TeacherCacheError
from ..storage.untrusted import DamagedError
from .code import GramCode, GramError, GramTarget, norms_of, reached
from .entropy import MAX_CLASS, Int16, Reader, Runs, pack, stream, unpack, words
from .factors import (
    Factors,
    Spectrum,
    Triangle,
    factor_scale,
    finest_delta,
    triangle,
    triangle_scale,
)

_VERSION = 1
_FACTORS, _TRIANGLE = 1, 2
_MASK, _NORMS = 1, 2
_STEP_LIMIT = 16  # far above any that means something
_LEAST_NORM = 101  # minus its logarithm to base 2, and one for rounding
_LONGEST = 64  # squared factors of a patch; 1 and what coarse steps add, far from overflow
_TOP = 65535

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
        blobs.append(_write(target, factors))
    if factors is None or len(target.tokens) <= _FEW or max_error <= _FINE:
        entries = _coarsest(
            lambda delta: triangle(target, delta),
            target,
            _TRIANGLE_STEP * max_error,
            max_error,
            finest_delta(len(target.tokens)),
        )
        if entries is not None:
            blobs.append(_write(target, entries))
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

    Allocates no more than a code of these grids may need.

    Raises:
        DamagedError: the bytes cannot be a blob of these grids.
    """
    data = memoryview(blob).cast("B")
    header = _Header.of(data)
    reader = Reader(data[_Header.LAYOUT.size : header.size])
    valid = np.ones(student.size, bool)
    if header.flags & _MASK:
        bits = np.frombuffer(reader.stream(-(-student.size // 8)), np.uint8)
        valid = np.unpackbits(bits, count=student.size).astype(bool)
    tokens = np.flatnonzero(reached(valid, native, student))
    n = len(tokens)
    if header.components > (n if header.form == _FACTORS else n - 1):
        raise DamagedError(f"gram code has {header.components} components for {n} patches")
    norms = np.ones(native.size, np.float32)
    if header.flags & _NORMS:
        norms[tokens] = _read_norms(reader, n)
    codes = np.zeros((header.components, native.size), np.int16)
    if header.form == _FACTORS:
        codes[:, tokens], scale = _read_factors(reader, header, n)
    else:
        codes[:, tokens], scale = _read_triangle(reader, header, n)
    reader.end()
    lengths = np.square(codes * scale[:, None]).sum(axis=0)
    if not (lengths <= _LONGEST).all():
        raise DamagedError(f"gram code holds factors of length {lengths.max() ** 0.5:.3g}")
    return GramCode(codes, scale, norms, valid, native, student)


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
        raise ValueError(f"max_error takes more than 0 and at most 1, got {max_error}")
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
            fine, guess = step, step * _A_LITTLE
        else:
            rms = target.error(target.code(form.codes, form.scale)).rms
            if rms > _LIMIT * max_error:
                coarse = step
            else:
                fine, best = step, form
            if best is form and (rms >= _GOOD * max_error or not len(form.codes)):
                break
            guess = step * min(max(_AIM * max_error / max(rms, 1e-12), 0.2), 5)
        if best is None and coarse <= max(fine * _A_LITTLE, finest):
            break
        between = math.sqrt(fine * coarse) if fine else coarse / 2
        step = guess if fine < guess < coarse else between
    return best


def _finest(target: GramTarget) -> float:
    """Return the smallest error that this image can be coded with."""
    form = triangle(target, finest_delta(len(target.tokens)))
    return math.inf if form is None else target.error(target.code(form.codes, form.scale)).rms


@dataclass(frozen=True, slots=True)
class _Header:
    form: int
    flags: int
    components: int
    size: int
    base: float

    LAYOUT = struct.Struct("<BBBxHIf")

    def pack(self) -> bytes:
        return self.LAYOUT.pack(
            _VERSION, self.form, self.flags, self.components, self.size, self.base
        )

    @classmethod
    def of(cls, data: memoryview) -> Self:
        if len(data) < cls.LAYOUT.size:
            raise DamagedError(f"gram code of {len(data)} bytes is shorter than its header")
        version, *fields = cls.LAYOUT.unpack_from(data)
        header = cls(*fields)
        form, flags = header.form, header.flags
        if version != _VERSION or form not in (_FACTORS, _TRIANGLE) or flags > _MASK | _NORMS:
            raise DamagedError(f"gram code of unknown version {version}, form {form} or {flags=}")
        if not cls.LAYOUT.size <= header.size <= len(data):
            raise DamagedError(f"gram code of {header.size} bytes in a row of {len(data)}")
        if np.frombuffer(data[header.size :], np.uint8).any():
            raise DamagedError(f"gram code of {header.size} bytes is not followed by zeros")
        if not 0 < header.base <= _STEP_LIMIT:  # false for NaN too
            raise DamagedError(f"gram code has a step of {header.base}")
        return header


def _write(target: GramTarget, form: Factors | Triangle) -> bytes:
    """Return the bytes of a form of `target`."""
    flags = (0 if target.valid.all() else _MASK) | (_NORMS if target.levels.any() else 0)
    parts = []
    if flags & _MASK:
        parts.append(stream(np.packbits(target.valid).tobytes()))
    if flags & _NORMS:
        parts += [struct.pack("<f", target.step), words(target.levels)]
    parts.append(stream(form.classes.tobytes()))
    if isinstance(form, Triangle):
        falls = -np.diff(form.pivots.astype(np.int32), prepend=_TOP)
        parts += [words(form.order), words(falls)]
        kind, base, codes = _TRIANGLE, form.delta, form.codes[:, form.order]
    else:
        kind, base, codes = _FACTORS, form.base, form.codes
    by_class, runs = _runs(kind, form.classes, codes.shape[1])
    codes = codes[by_class]
    coded = codes.ravel() if kind == _FACTORS else codes[_behind(by_class, codes.shape[1])]
    parts.append(pack(coded, runs))
    body = b"".join(parts)
    size = _Header.LAYOUT.size + len(body)
    return _Header(kind, flags, len(codes), size, base).pack() + body


def _read_norms(reader: Reader, n: int) -> npt.NDArray[np.float32]:
    (step,) = struct.unpack("<f", reader.take(4))
    levels = reader.words(n)
    if not 0 < step * float(levels.max(initial=0)) <= _LEAST_NORM:
        raise DamagedError(f"gram code has norms of step {step}")
    return norms_of(levels, step)


def _read_factors(reader: Reader, header: _Header, n: int) -> tuple[Int16, npt.NDArray[np.float32]]:
    classes = _read_classes(reader, header)
    return _read_codes(reader, header, classes, n), factor_scale(header.base, classes)


def _read_triangle(
    reader: Reader, header: _Header, n: int
) -> tuple[Int16, npt.NDArray[np.float32]]:
    classes = _read_classes(reader, header)
    order = reader.words(n).astype(np.intp)
    if not np.array_equal(np.sort(order), np.arange(n)):
        raise DamagedError("gram code has an order that misses patches")
    pivots = _TOP - np.cumsum(reader.words(header.components).astype(np.int64))
    if (pivots < 1).any() or (pivots > np.iinfo(np.int16).max).any():
        raise DamagedError("gram code has a pivot beyond 16 bits")
    ordered = _read_codes(reader, header, classes, n)
    np.fill_diagonal(ordered, pivots.astype(np.int16))
    codes = np.empty_like(ordered)
    codes[:, order] = ordered
    return codes, triangle_scale(header.base, pivots)


def _read_classes(reader: Reader, header: _Header) -> npt.NDArray[np.uint8]:
    classes = np.frombuffer(reader.stream(header.components), np.uint8)
    if (classes > MAX_CLASS).any():
        raise DamagedError(f"gram code has class {classes.max()}, above {MAX_CLASS}")
    return classes


def _read_codes(reader: Reader, header: _Header, classes: npt.NDArray[np.uint8], n: int) -> Int16:
    by_class, runs = _runs(header.form, classes, n)
    values = unpack(reader, runs)
    if header.form == _FACTORS:
        laid = values.reshape(len(classes), n)
    else:
        laid = np.zeros((len(classes), n), np.int16)
        laid[_behind(by_class, n)] = values
    codes = np.empty_like(laid)
    codes[by_class] = laid
    return codes


def _runs(form: int, classes: npt.NDArray[np.uint8], n: int) -> tuple[npt.NDArray[np.intp], Runs]:
    """Return the components by falling class, and how many values each class has."""
    by_class = np.argsort(-classes.astype(np.int16), kind="stable")
    values = np.full(len(classes), n) if form == _FACTORS else n - 1 - by_class
    counts = np.bincount(classes[by_class], values, MAX_CLASS + 1).astype(int)
    return by_class, [(h, int(counts[h])) for h in range(MAX_CLASS, -1, -1) if counts[h]]


def _behind(components: npt.NDArray[np.intp], n: int) -> npt.NDArray[np.bool_]:
    """Return which of the n patches a triangle's components code: those behind their pivots."""
    coded: npt.NDArray[np.bool_] = np.arange(n) > components[:, None]
    return coded
