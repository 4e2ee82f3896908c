"""Read one row of one array: a cached index, one ranged read, checksums always verified.

zarr-python spends about a millisecond of Python on every row, and a row of ours is nothing but a
range of bytes. This reader takes less than Zarr allows: the rows of a shard lie one after another
and without gaps, as our writer lays them out, so an index that points anywhere else is refused.
"""

from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from numcodecs import zstd

from ..storage.untrusted import DamagedError, TeacherCacheError
from .arrays import CRC_BYTES, RowArray, checked

_CACHED_BYTES = 2**25
_ZSTD_HEADER = 14
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]


class Ranges(Protocol):
    """What a row is read from: a `Storage`, or something quicker for rows alone."""

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `name` from `start` on."""

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, None when there is no such file."""


def nothing_kept(_name: str) -> bool:
    """Return False: no copy of a file is kept nearby."""
    return False


class RowReader:
    """Rows of one array of a store; picklable, and safe across fork.

    Attributes:
        storage: where the store lies.
        layout: name of the array, and how its files are laid out.
        rows_of: says which rows a shard holds.
        forget: drops what is kept nearby of a file that turned out damaged, and says whether
            there was anything: then the file is read once more.
    """

    def __init__(
        self,
        storage: Ranges,
        layout: RowArray,
        rows_of: Callable[[int], range],
        forget: Callable[[str], bool] = nothing_kept,
    ) -> None:
        self.storage = storage
        self.layout = layout
        self.rows_of = rows_of
        self.forget = forget
        self._dtype = np.dtype(layout.dtype).newbyteorder("<")
        self._row_bytes, self._longest = layout.row_bytes, layout.chunk_limit
        self._compressed = layout.zstd_level is not None
        entry = 8 * layout.shard_rows + 256 if self._compressed else 256
        self._capacity = max(16, _CACHED_BYTES // entry)
        self._ends: OrderedDict[int, Sequence[int]] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_ends": OrderedDict()}

    def read(self, row: int) -> Array:
        """Return the values of `row` as a new, writable array of the array's row shape.

        Raises:
            TeacherCacheError: the shard has no such row; a DamagedError if the file is missing
                or not as written, or holds what is not a finite number. Names row, array, file.
        """
        try:
            return self.decode(self._chunk(row))
        except (OSError, DamagedError) as error:
            raise self._damaged(row, error) from error

    def decode(self, chunk: Bytes) -> Array:
        """Return the values of a chunk whose checksum was verified.

        Raises:
            DamagedError: it is not of one row, or holds what is not a finite number.
        """
        body = chunk[:-CRC_BYTES]
        if self._compressed:
            body = _decompressed(body, self._row_bytes)
        values = body.view(self._dtype)
        _check_values(values)
        return values.reshape(self.layout.row_shape)

    def raw_chunk(self, row: int) -> bytes:
        """Return the stored bytes of `row` with their checksum, verified, to copy elsewhere.

        Raises:
            TeacherCacheError: as `read`, but the values themselves are not looked at.
        """
        try:
            return self._chunk(row).tobytes()
        except (OSError, DamagedError) as error:
            raise self._damaged(row, error) from error

    def _chunk(self, row: int) -> Bytes:
        try:
            return self._fetch(row)
        except DamagedError:
            if not self.forget(self.layout.file_of(row // self.layout.shard_rows)):
                raise
            return self._fetch(row)

    def _fetch(self, row: int) -> Bytes:
        shard, position = divmod(row, self.layout.shard_rows)
        name = self.layout.file_of(shard)
        ends = self._index(shard, name)
        if position >= len(ends):
            raise TeacherCacheError(f"{self.storage} has no row {row}: shard {shard} ends before")
        start = ends[position - 1] if position else 0
        chunk = np.empty(ends[position] - start, np.uint8)
        self.storage.read_into(name, start, chunk.data)
        checked(chunk, "its row")
        return chunk

    def _index(self, shard: int, name: str) -> Sequence[int]:
        """Return where each row of `shard` ends; rows lie one after another from 0 on."""
        ends = self._ends.pop(shard, None)
        if ends is None:
            ends = self._load_index(shard, name)
            if len(self._ends) >= self._capacity:
                self._ends.popitem(last=False)
        self._ends[shard] = ends  # the most recently used stand last
        return ends

    def _load_index(self, shard: int, name: str) -> Sequence[int]:
        rows = len(self.rows_of(shard))
        size = self.storage.size(name)
        if size is None:
            raise FileNotFoundError("it is missing")
        if not self.layout.may_have(size, rows):
            raise DamagedError(
                f"it has {size} bytes and should have {self.layout.file_bytes(rows)}"
            )
        index = np.empty(self.layout.index_bytes, np.uint8)
        self.storage.read_into(name, size - index.size, index.data)
        entries = checked(index, "its index").view("<u8").reshape(-1, 2)
        ends = self._checked_ends(entries, rows)
        if ends[-1] != size - index.size:
            raise DamagedError(f"its rows end at {ends[-1]}, its index starts elsewhere")
        return ends

    def _checked_ends(self, index: npt.NDArray[np.uint64], rows: int) -> Sequence[int]:
        starts, lengths = index[:rows, 0], index[:rows, 1]
        shortest = CRC_BYTES + 1 if self._compressed else self._longest
        if lengths.min() < shortest or lengths.max() > self._longest:
            raise DamagedError("its index holds rows that are shorter or longer than a row can be")
        ends = np.cumsum(lengths)
        if (starts != ends - lengths).any() or (~index[rows:]).any():
            raise DamagedError(f"its index does not hold {rows} rows, one after another")
        if self._compressed:
            return array("Q", ends.astype(np.uint64).tobytes())
        return range(self._longest, rows * self._longest + 1, self._longest)

    def _damaged(self, row: int, error: Exception) -> DamagedError:
        file = self.layout.file_of(row // self.layout.shard_rows)
        return DamagedError(
            f"row {row} of {self.storage}: {self.layout.name} is damaged: {file}: {error}; "
            f"`medalign cache verify --mend {self.storage}` lists all damage, and makes it pending "
            "for the next build"
        )


def _check_values(values: Array) -> None:
    """Refuse bytes that are no finite number, or neither true nor false.

    `np.isfinite` takes as long as reading the row does. Numbers below 2 in size, which features
    and attention are, lack the top bit of the exponent, so one OR over all tells; where some have
    it, those without an end are the largest when read as integers, of either sign.
    """
    size = values.dtype.itemsize
    if values.dtype.kind == "b":
        if values.view(np.uint8).max() > 1:
            raise DamagedError("it holds values that are neither true nor false")
    elif values.dtype.kind == "f":
        bits = values.view(f"<u{size}")
        infinity = int(np.array(np.inf, values.dtype).view(bits.dtype))
        sign, top = 1 << (8 * size - 1), 1 << (8 * size - 2)
        if int(np.bitwise_or.reduce(bits)) & top and (
            values.view(f"<i{size}").max() >= infinity or bits.max() >= infinity | sign
        ):
            raise DamagedError("it holds NaN or infinite values")


def _decompressed(frame: Bytes, size: int) -> Bytes:
    """Return what a Zstandard frame holds; it must say itself that this is `size` bytes."""
    if (declared := _content_size(frame[:_ZSTD_HEADER].tobytes())) != size:
        raise DamagedError(f"a row of {size} bytes declares itself {declared} bytes long")
    values = np.empty(size, np.uint8)
    try:
        zstd.decompress(frame, values)
    except (RuntimeError, ValueError) as error:
        raise DamagedError(f"a row cannot be decompressed: {error}") from error
    return values


def _content_size(header: bytes) -> int | None:
    """Read the size of the content in a Zstandard frame's header (RFC 8878, 3.1.1.1)."""
    if len(header) < 5 or header[:4] != _ZSTD_MAGIC:
        return None
    flags = header[4]
    single = flags >> 5 & 1
    # the descriptor is followed by a window size, unless there is but one segment; no dictionary
    start, width = 6 - single, (single, 2, 4, 8)[flags >> 6]
    if flags & 3 or not width or len(header) < start + width:
        return None
    size = int.from_bytes(header[start : start + width], "little")
    return size + 256 if width == 2 else size
