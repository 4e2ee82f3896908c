"""A coded Gram as bytes: a short header, then parts that each say how long they are.

    uint8 version, form, flags, 0; uint16 components K; uint32 bytes in all; float32 base or delta
    [flag 1] stream of the valid mask, a bit a student patch, first patch in the highest bit
    [flag 2] float32 step, words of n levels: norm of each coded native patch is 2^(-step level)
    stream of K classes
    [triangle] words of the order of all n patches, words of the K pivots' falls from 65535
    raw bit planes and symbols of the codes, components by falling class (`gram_stream`)

A stream is a uint32 length and raw deflate; words are two streams, low and high bytes. The coded
native patches are those that a valid student patch is interpolated from, in order. Zeros may
follow, so that blobs can be rows of an array.
"""

import struct

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
_HEADER = struct.Struct("<BBBxHIf")
_TOP = 65535


def write_blob(target: GramTarget, form: Factors | Triangle) -> bytes:
    """Return the bytes of a form of `target`."""
    factors = isinstance(form, Factors)
    flags = (0 if target.valid.all() else _MASK) | (_NORMS if target.levels.any() else 0)
    parts = []
    if flags & _MASK:
        parts.append(stream(np.packbits(target.valid).tobytes()))
    if flags & _NORMS:
        parts += [struct.pack("<f", target.step), words(target.levels)]
    parts.append(stream(form.classes.tobytes()))
    if isinstance(form, Triangle):
        parts += [words(form.order), words(-np.diff(form.pivots.astype(np.int32), prepend=_TOP))]
        codes = form.codes[:, form.order]
        base = form.delta
    else:
        codes, base = form.codes, form.base
    by_class, runs = _runs(form.classes, codes.shape[1], triangle=not factors)
    values = codes[by_class]
    coded = values if factors else values[_behind(by_class, codes.shape[1])]
    parts.append(pack(coded.ravel(), runs))
    body = b"".join(parts)
    kind = _FACTORS if factors else _TRIANGLE
    size = _HEADER.size + len(body)
    return _HEADER.pack(_VERSION, kind, flags, len(form.classes), size, base) + body


def read_blob(blob: bytes | memoryview, native: PatchGrid, student: PatchGrid) -> GramCode:
    """Return the dense code; allocates no more than one of these grids may need.

    Raises:
        DamagedError: the bytes cannot be a blob of these grids.
    """
    data = memoryview(blob).cast("B")
    if len(data) < _HEADER.size:
        raise DamagedError(f"gram code of {len(data)} bytes is shorter than its header")
    version, kind, flags, count, size, base = _HEADER.unpack_from(data)
    if version != _VERSION or kind not in (_FACTORS, _TRIANGLE) or flags & ~(_MASK | _NORMS):
        raise DamagedError(f"gram code of unknown version {version}, form {kind}, flags {flags}")
    if not _HEADER.size <= size <= len(data) or np.frombuffer(data[size:], np.uint8).any():
        raise DamagedError(f"gram code of {size} bytes in a row of {len(data)} bytes")
    if not 0 < base <= 16:  # far above any step that means something; false for NaN too
        raise DamagedError(f"gram code has a step of {base}")
    reader = Reader(data[_HEADER.size : size])
    valid = np.ones(student.size, bool)
    if flags & _MASK:
        bits = np.frombuffer(reader.stream(-(-student.size // 8)), np.uint8)
        valid = np.unpackbits(bits, count=student.size).astype(bool)
    tokens = np.flatnonzero(reached(valid, native, student))
    n = len(tokens)
    if count > n - (kind == _TRIANGLE):
        raise DamagedError(f"gram code has {count} components for {n} patches")
    norms = np.ones(native.size, np.float32)
    if flags & _NORMS:
        norms[tokens] = _read_norms(reader, n)
    classes = np.frombuffer(reader.stream(count), np.uint8)
    if (classes > MAX_CLASS).any():
        raise DamagedError(f"gram code has class {classes.max()}, above {MAX_CLASS}")
    codes = np.zeros((count, native.size), np.int16)
    if kind == _TRIANGLE:
        order = reader.words(n).astype(np.intp)
        if not np.array_equal(np.sort(order), np.arange(n)):
            raise DamagedError("gram code has an order that misses patches")
        pivots = _TOP - np.cumsum(reader.words(count).astype(np.int64))
        if (pivots < 1).any() or (pivots > np.iinfo(np.int16).max).any():
            raise DamagedError("gram code has a pivot beyond 16 bits")
        codes[:, tokens[order]] = _read_codes(reader, classes, n, pivots.astype(np.int16))
        scale = triangle_scale(base, pivots.astype(np.uint16))
    else:
        codes[:, tokens] = _read_codes(reader, classes, n, None)
        scale = factor_scale(base, classes)
    reader.end()
    return GramCode(codes, scale, norms, valid, native, student)


def _read_norms(reader: Reader, n: int) -> npt.NDArray[np.float32]:
    (step,) = struct.unpack("<f", reader.take(4))
    levels = reader.words(n)
    if not 0 < step * float(levels.max(initial=0)) <= 101:
        raise DamagedError(f"gram code has norms of step {step}")
    return norms_of(levels, step)


def _read_codes(
    reader: Reader, classes: npt.NDArray[np.uint8], n: int, pivots: Int16 | None
) -> Int16:
    by_class, runs = _runs(classes, n, triangle=pivots is not None)
    values = unpack(reader, runs)
    codes = np.zeros((len(classes), n), np.int16)
    if pivots is None:
        codes[by_class] = values.reshape(codes.shape)
        return codes
    laid = np.zeros_like(codes)
    laid[_behind(by_class, n)] = values
    codes[by_class] = laid
    np.fill_diagonal(codes, pivots)
    return codes


def _runs(
    classes: npt.NDArray[np.uint8], n: int, *, triangle: bool
) -> tuple[npt.NDArray[np.intp], Runs]:
    """Return the components by falling class, and how many values each class has."""
    by_class = np.argsort(-classes.astype(np.int16), kind="stable")
    values = n - 1 - by_class if triangle else np.full(len(classes), n)
    counts = np.bincount(classes[by_class], values, MAX_CLASS + 1).astype(int)
    return by_class, [(h, int(counts[h])) for h in range(MAX_CLASS, -1, -1) if counts[h]]


def _behind(components: npt.NDArray[np.intp], n: int) -> npt.NDArray[np.bool_]:
    """Return which places of the order [n] lie behind each component's pivot."""
    behind: npt.NDArray[np.bool_] = np.arange(n) > components[:, None]
    return behind
