"""Whole numbers of known spread to bytes and back.

Values come in runs, each of a *class* h: their root mean square is about 2^((h - 2) / 2), except
for class 0, which is all below. What a run holds beyond a spread of 4 to 8 goes into raw bits,
which no coder could shorten; what is left are *symbols* whose distribution depends on the class
alone (from class 8 on, on its parity). All symbols of one distribution are one deflate stream:
its Huffman code then fits, within 1.5% of the entropy. Small symbols share a byte, so that a code
of at least one bit a byte does not cost a bit a symbol.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..storage.untrusted import DamagedError

MAX_CLASS = 32
"""The class of values that just fit 16 bits."""
_WHOLE = 8  # classes below have no raw bits
_TRITS, _NIBBLES, _BYTES, _WORDS = range(4)
_PER_BYTE = {_TRITS: 5, _NIBBLES: 2, _BYTES: 1}

Int16 = npt.NDArray[np.int16]
Runs = Sequence[tuple[int, int]]
"""Class and number of values of each run, classes falling."""

_POWERS = 3 ** np.arange(5)
_TRIT_TABLE = (np.arange(256)[:, None] // _POWERS % 3 - 1).astype(np.int16)
_NIBBLE_TABLE = (np.arange(256)[:, None] // [16, 1] % 16 - 8).astype(np.int16)


class Reader:
    """Take bytes from the front of a blob; asking for more than there are is damage."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> memoryview:
        """Return the next `size` bytes.

        Raises:
            DamagedError: the blob is shorter.
        """
        if size > len(self._data) - self._at:
            raise DamagedError(f"gram code ends early: {size} bytes missing")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self) -> int:
        """Return the next 32-bit number."""
        return int(struct.unpack("<I", self.take(4))[0])

    def stream(self, size: int) -> bytes:
        """Return what the next deflate stream holds, which must be `size` bytes.

        Raises:
            DamagedError: it is no such stream.
        """
        packed = self.take(self.number())
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:  # one byte more than wanted tells a longer stream, and bounds what it may allocate
            data = inflate.decompress(packed, size + 1)
        except zlib.error as error:
            raise DamagedError(f"gram code holds a damaged stream: {error}") from error
        if len(data) != size or not inflate.eof or inflate.unused_data:
            raise DamagedError(f"gram code holds a stream that is not of {size} bytes")
        return data

    def words(self, count: int) -> npt.NDArray[np.uint16]:
        """Return `count` numbers that `words` wrote."""
        low, high = (np.frombuffer(self.stream(count), np.uint8) for _ in range(2))
        return (low + high.astype(np.uint16) * 256).astype(np.uint16)

    def end(self) -> None:
        """Refuse what is left.

        Raises:
            DamagedError: the blob is longer than its parts.
        """
        if self._at != len(self._data):
            raise DamagedError(f"gram code holds {len(self._data) - self._at} bytes too many")


def stream(data: bytes) -> bytes:
    """Return a deflate stream behind its length; repeats are sought as runs only."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_RLE)
    packed = deflate.compress(data) + deflate.flush()
    return struct.pack("<I", len(packed)) + packed


def words(values: npt.NDArray[Any]) -> bytes:
    """Return numbers below 2^16 as two streams, of their low and their high bytes."""
    low, high = values & 255, values >> 8
    return b"".join(stream(part.astype(np.uint8).tobytes()) for part in (low, high))


def class_of(spread: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Return the class of values with this root mean square."""
    classes = np.rint(2 * np.log2(np.maximum(spread, 0.5))) + 2
    result: npt.NDArray[np.uint8] = np.clip(classes, 0, MAX_CLASS).astype(np.uint8)
    return result


def pack(values: Int16, runs: Runs) -> bytes:
    """Return the bytes of `values`, laid out run after run."""
    parts = [np.packbits(values[:end] >> plane & 1).tobytes() for plane, end in _planes(runs)]
    parts += [
        _pack_symbols(np.concatenate([values[at] >> shift for at, shift in pieces]))
        for pieces in _groups(runs).values()
    ]
    return b"".join(parts)


def unpack(reader: Reader, runs: Runs) -> Int16:
    """Return what `pack` wrote; allocates two bytes a value and little beside.

    Raises:
        DamagedError: the bytes cannot be those of such runs.
    """
    values = np.zeros(sum(count for _, count in runs), np.int16)
    for plane, end in _planes(runs):
        raw = np.frombuffer(reader.take(-(-end // 8)), np.uint8)
        values[:end] |= np.unpackbits(raw, count=end).astype(np.int16) << plane
    for pieces in _groups(runs).values():
        symbols = _unpack_symbols(reader, sum(at.stop - at.start for at, _ in pieces))
        done = 0
        for at, shift in pieces:
            part = symbols[done : done + at.stop - at.start]
            done += len(part)
            if shift and (part.max() > 32767 >> shift or part.min() < -32768 >> shift):
                raise DamagedError("gram code holds a value beyond 16 bits")
            values[at] |= part << shift
    return values


def _shift(h: int) -> int:
    return max(0, h // 2 - 3)


def _planes(runs: Runs) -> Iterator[tuple[int, int]]:
    """Yield each raw bit plane and how many of the first values have it."""
    for plane in range(_shift(runs[0][0]) if runs else 0):
        yield plane, sum(count for h, count in runs if _shift(h) > plane)


def _groups(runs: Runs) -> dict[int, list[tuple[slice, int]]]:
    """Return, for each distribution, the places of its values and their shifts."""
    groups: dict[int, list[tuple[slice, int]]] = {}
    start = 0
    for h, count in runs:
        group = h if h < _WHOLE else _WHOLE - 2 + h % 2
        groups.setdefault(group, []).append((slice(start, start + count), _shift(h)))
        start += count
    return groups


def _pack_symbols(symbols: Int16) -> bytes:
    low, high = int(symbols.min()), int(symbols.max())
    if low >= -1 and high <= 1:
        fives = np.resize(np.append(symbols + 1, np.ones(4, np.int16)), (-(-len(symbols) // 5), 5))
        return bytes([_TRITS]) + stream((fives @ _POWERS).astype(np.uint8).tobytes())
    if low >= -8 and high <= 7:
        pairs = np.append(symbols + 8, np.int16(8))[: -(-len(symbols) // 2) * 2].reshape(-1, 2)
        return bytes([_NIBBLES]) + stream((pairs @ [16, 1]).astype(np.uint8).tobytes())
    if low >= -128 and high <= 127:
        return bytes([_BYTES]) + stream(symbols.astype(np.int8).tobytes())
    return bytes([_WORDS]) + words(symbols.view(np.uint16))


def _unpack_symbols(reader: Reader, count: int) -> Int16:
    kind = reader.take(1)[0]
    if kind == _WORDS:
        return reader.words(count).view(np.int16)
    if kind not in _PER_BYTE:
        raise DamagedError(f"gram code holds symbols of unknown kind {kind}")
    data = reader.stream(-(-count // _PER_BYTE[kind]))
    if kind == _BYTES:
        return np.frombuffer(data, np.int8).astype(np.int16)
    table = _TRIT_TABLE if kind == _TRITS else _NIBBLE_TABLE
    return table[np.frombuffer(data, np.uint8)].ravel()[:count]
