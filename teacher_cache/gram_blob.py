"""A coded Gram as bytes: a short header, then parts that each say how long they are.

    uint8 version, form, flags, 0; uint16 components K; uint32 bytes in all; float32 base or delta
    [flag 1] stream of the valid mask, a bit a student patch, the first in the highest bit
    [flag 2] float32 step, words of n levels: the norm of a coded native patch is 2^(-step level)
    stream of K classes
    [triangle] words of the order of all n patches, words of the K pivots' falls from 65535
    raw bit planes and symbols of the codes, components by falling class (`gram_stream`)

A stream is a uint32 length and raw deflate; words are two streams, of low and of high bytes. The
coded native patches are those that a valid student patch is interpolated from, in grid order.
Zeros may follow, so that blobs can be rows of an array.
"""

import struct
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from .gram_code import GramCode
from .gram_factors import Factors, factor_scale
from .gram_grid import reached
from .gram_stream import MAX_CLASS, Int16, Reader, Runs, pack, stream, unpack, words
from .gram_target import GramTarget, norms_of
from .gram_triangle import Triangle, triangle_scale
from .schema import PatchGrid
from .strict import DamagedError

_VERSION = 1
_FACTORS, _TRIANGLE = 1, 2
_MASK, _NORMS = 1, 2
_STEP_LIMIT = 16  # far above any that means something
_LEAST_NORM = 101  # minus its logarithm to base 2, and one for rounding
_LONGEST = 64  # squared factors of a patch; 1 and what coarse steps add, far from overflow
_TOP = 65535


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


def write_blob(target: GramTarget, form: Factors | Triangle) -> bytes:
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
    behind = _behind(by_class, codes.shape[1])
    parts.append(pack(codes.ravel() if kind == _FACTORS else codes[behind], runs))
    body = b"".join(parts)
    size = _Header.LAYOUT.size + len(body)
    return _Header(kind, flags, len(codes), size, base).pack() + body


def read_blob(blob: bytes | memoryview, native: PatchGrid, student: PatchGrid) -> GramCode:
    """Return the dense code; allocates no more than one of these grids may need.

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
    """Return which of the n places a triangle's components code: those behind their pivots."""
    behind: npt.NDArray[np.bool_] = np.arange(n) > components[:, None]
    return behind
