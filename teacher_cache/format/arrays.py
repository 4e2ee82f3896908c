"""How each array of a cache lies on disk: names, shapes, codecs, files, sizes, checksums.

Metadata is a pure function of the card and the number of rows. Reading compares it whole: a
store whose shapes, types or codecs lie is refused before anything is allocated. What is written
is spelled by zarr-python (`metadata.py`) and held against the same description.

Shards are encoded here: zarr-python writes the same bytes, which tests compare, but spends a
millisecond of Python on every row, more than 10% of a build's speed where the expert is quick
(docs/decisions.md).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import zstd

from ..gram.codec import max_code_bytes
from ..schema import CacheCard, TeacherCacheError
from ..storage.local import Storage, read_json
from ..storage.untrusted import MAX_ROWS, DamagedError, canonical_json, strict_fields, within

CRC_BYTES = 4
_INDEX_ENTRY_BYTES = 16
_ABSENT = 2**64 - 1
_METADATA_BYTES = 2**16
_TABLE_CHUNK = 2**22
_PADDING_LEVEL = 1  # codes are entropy coded already; this makes their padding vanish
_OPTIONAL = ("storage_transformers", "dimension_names")

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class RowArray:
    """An array with one inner chunk per row and one file per shard.

    Attributes:
        name: of the array in the group.
        row_shape: shape of one row.
        dtype: numpy's name of the type.
        fill: what a row that was never written reads as in plain zarr.
        shard_rows: S, rows per shard.
        zstd_level: rows are compressed, so that a shard file has no size known beforehand;
            None stores them as they are.
    """

    name: str
    row_shape: tuple[int, ...]
    dtype: str
    fill: float | int | bool | str
    shard_rows: int
    zstd_level: int | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in memory."""
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize

    @property
    def chunk_limit(self) -> int:
        """Most bytes that a chunk may have on disk; exact where rows are not compressed."""
        slack = 0 if self.zstd_level is None else self.row_bytes // 128 + 1024
        return self.row_bytes + slack + CRC_BYTES

    @property
    def index_bytes(self) -> int:
        """Bytes of the index that ends every shard file, its checksum included."""
        return self.shard_rows * _INDEX_ENTRY_BYTES + CRC_BYTES

    def split(self, data: bytes, rows: int) -> list[bytes]:
        """Return the chunks of a shard file, one per row, for `assemble`.

        Raises:
            DamagedError: the index or a chunk fails its checksum.
        """
        whole = np.frombuffer(data, np.uint8)
        index = checked(whole[-self.index_bytes :], "the index").view("<u8").reshape(-1, 2)
        chunks = []
        for row, (start, length) in enumerate(index[:rows].tolist()):
            checked(whole[start : start + length], f"row {row} of the shard")
            chunks.append(data[start : start + length])
        return chunks

    def metadata(self, rows: int) -> dict[str, Any]:
        """Return `zarr.json` of the array with `rows` rows."""
        shape = (rows, *self.row_shape)
        serial, checksum = _codecs(self.dtype)
        level = {"level": self.zstd_level, "checksum": False}
        compressed = [] if self.zstd_level is None else [{"name": "zstd", "configuration": level}]
        sharding = {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": [1, *self.row_shape],
                "codecs": [serial, *compressed, checksum],
                "index_codecs": _codecs("uint64"),
                "index_location": "end",
            },
        }
        return _metadata(shape, self.dtype, self.fill, (self.shard_rows, *self.row_shape), sharding)

    def file_of(self, shard: int) -> str:
        """Return the path of `shard` below the store."""
        return f"{self.name}/c.{shard}" + ".0" * len(self.row_shape)

    def file_bytes(self, rows: int) -> int:
        """Return the size of a shard file that holds `rows` rows; compressed, the most it has."""
        return rows * self.chunk_limit + self.index_bytes

    def may_have(self, size: int, rows: int) -> bool:
        """Return whether a shard file of `rows` rows may have `size` bytes."""
        most = self.file_bytes(rows)
        return size == most if self.zstd_level is None else self.index_bytes < size <= most

    def encode(self, values: Array | Sequence[Array]) -> bytes:
        """Return the bytes of a shard file that holds `values` [R, ...]."""
        return self._shard([self._body(row) for row in values])

    def chunk(self, row: Array) -> bytes:
        """Return the bytes of one row on disk, with its checksum."""
        data = self._body(row)
        return b"".join((data, crc32c(data)))

    def assemble(self, chunks: Sequence[bytes]) -> bytes:
        """Return the bytes of a shard file that holds these chunks, one per row."""
        return self._shard([memoryview(chunk)[:-CRC_BYTES] for chunk in chunks])

    def _body(self, row: Array) -> memoryview | bytes:
        data = _little(row)
        if len(data) != self.row_bytes:
            raise ValueError(f"a row of {self.name} has {self.row_bytes} bytes, got {len(data)}")
        return data if self.zstd_level is None else bytes(zstd.compress(data, self.zstd_level))

    def _shard(self, bodies: Sequence[memoryview | bytes]) -> bytes:
        # joined at once from views: fresh memory for 75 MB costs more than hashing them
        index = np.full((self.shard_rows, 2), _ABSENT, "<u8")
        lengths = np.array([len(body) + CRC_BYTES for body in bodies], "<u8")
        index[: len(bodies), 0] = np.cumsum(lengths) - lengths
        index[: len(bodies), 1] = lengths
        parts = [part for body in bodies for part in (body, crc32c(body))]
        return b"".join((*parts, index.tobytes(), crc32c(index.tobytes())))


def row_arrays(card: CacheCard) -> tuple[RowArray, ...]:
    """Return the arrays that hold the rows of a cache with this card, in the order written."""
    patches, shard_rows = card.grid.size, card.shard_rows
    if card.codec == "gram":
        codes = (max_code_bytes(card.expert.grid, card.grid),)
        similarities: tuple[RowArray, ...] = (
            RowArray("codes", codes, "uint8", 0, shard_rows, zstd_level=_PADDING_LEVEL),
            RowArray("gram_error", (2,), "float32", "NaN", shard_rows),
        )
    else:
        features = (patches, card.expert.width)
        similarities = (RowArray("features", features, "float16", "NaN", shard_rows),)
    return (
        *similarities,
        RowArray("attention", (patches,), "float32", "NaN", shard_rows),
        RowArray("valid", (patches,), "bool", False, shard_rows),
        RowArray("source_size", (2,), "int32", 0, shard_rows),
    )


def table_metadata(shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    """Return `zarr.json` of a plain array: no shards, no compression, a checksum per chunk."""
    chunk = _table_chunk(shape, dtype)
    return _metadata(shape, dtype, 0, chunk, *_codecs(dtype))


def table_files(values: Array) -> dict[str, bytes]:
    """Return the chunk files of a plain array by their names inside the array's folder."""
    shape, chunk = values.shape, _table_chunk(values.shape, values.dtype.name)
    files = {}
    for name, part in _chunks(shape, chunk):
        padded = np.zeros(chunk, values.dtype)
        padded[tuple(map(slice, values[part].shape))] = values[part]
        data = _little(padded)
        files[name] = b"".join((data, crc32c(data)))
    return files


def read_table(store: Storage, name: str, shape: tuple[int, ...], dtype: str) -> Array:
    """Read a plain array whose metadata and file sizes were checked before.

    Raises:
        TeacherCacheError: a file is missing; a DamagedError if it fails its checksum.
    """
    chunk = _table_chunk(shape, dtype)
    values = np.empty(shape, np.dtype(dtype).newbyteorder("<"))
    for chunk_name, part in _chunks(shape, chunk):
        file = f"{name}/{chunk_name}"
        data = np.empty(math.prod(chunk) * values.itemsize + CRC_BYTES, np.uint8)
        try:
            store.read_into(file, 0, data.data)
        except FileNotFoundError as error:
            raise TeacherCacheError(f"{store}/{file} is missing") from error
        padded = checked(data, f"{store}/{file}").view(values.dtype).reshape(chunk)
        values[part] = padded[tuple(map(slice, values[part].shape))]
    return values.astype(dtype, copy=False)


def table_file_bytes(shape: tuple[int, ...], dtype: str) -> Iterator[tuple[str, int]]:
    """Yield name and exact size of those files; edge chunks are padded to the chunk's shape."""
    chunk = _table_chunk(shape, dtype)
    size = math.prod(chunk) * np.dtype(dtype).itemsize + CRC_BYTES
    return ((name, size) for name, _ in _chunks(shape, chunk))


def group_metadata(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return `zarr.json` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def check_metadata(
    storage: Storage, name: str, expected: dict[str, Any], *, may_be_longer: bool = False
) -> None:
    """Refuse a `zarr.json` that says anything but `expected`; attributes are free.

    Args:
        storage: the store.
        name: of the file.
        expected: its content.
        may_be_longer: the array may have more rows, which a later generation added.

    Raises:
        TeacherCacheError: missing, damaged or different; names file and key.
    """
    metadata = read_json(storage, name, _METADATA_BYTES)
    with within(f"{storage}/{name}"):
        fields = strict_fields(metadata, expected, "zarr.json", _OPTIONAL)
        for key, value in {**expected, "storage_transformers": []}.items():
            actual = fields.get(key, value)
            if key == "shape" and may_be_longer and _is_longer(actual, value):
                continue
            # as text: True == 1 and 1.0 == 1 in Python, not in a zarr.json
            if key != "attributes" and canonical_json(actual) != canonical_json(value):
                raise TeacherCacheError(f"{key} should be {value}, got {actual!r:.200}")


def crc32c(data: bytes | memoryview) -> bytes:
    """Return the CRC-32C of `data` as 4 bytes, little-endian."""
    # google_crc32c takes arrays but no memoryview
    return int(google_crc32c.value(np.frombuffer(data, np.uint8))).to_bytes(CRC_BYTES, "little")


def checked(data: Array, what: str) -> Array:
    """Return bytes without the CRC-32C that ends them.

    Raises:
        DamagedError: they do not match it; `what` is damaged.
    """
    if len(data) < CRC_BYTES or crc32c(data[:-CRC_BYTES].data) != data[-CRC_BYTES:].tobytes():
        raise DamagedError(f"{what} does not match its checksum")
    return data[:-CRC_BYTES]


def _is_longer(shape: object, least: list[int]) -> bool:
    if not isinstance(shape, list) or len(shape) != len(least) or type(shape[0]) is not int:
        return False
    same_rows = canonical_json(shape[1:]) == canonical_json(least[1:])
    return same_rows and least[0] <= shape[0] <= MAX_ROWS


def _metadata(
    shape: tuple[int, ...],
    dtype: str,
    fill: float | int | bool | str,
    chunk: tuple[int, ...],
    *codecs: Any,
) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill,
        "codecs": list(codecs),
        "attributes": {},
    }


def _codecs(dtype: str) -> list[dict[str, Any]]:
    little = {"configuration": {"endian": "little"}} if np.dtype(dtype).itemsize > 1 else {}
    return [{"name": "bytes", **little}, {"name": "crc32c"}]


def _little(values: Array) -> memoryview:
    """Return the bytes of values, little-endian and in C order."""
    return (
        np.ascontiguousarray(values, values.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
    )


def _chunks(
    shape: tuple[int, ...], chunk: tuple[int, ...]
) -> Iterator[tuple[str, tuple[slice, ...]]]:
    """Yield name and extent of every chunk; edge chunks reach beyond the array."""
    counts = (-(-length // step) for length, step in zip(shape, chunk, strict=True))
    for index in np.ndindex(*counts):
        starts = [(number * step, step) for number, step in zip(index, chunk, strict=True)]
        extent = tuple(slice(start, start + step) for start, step in starts)
        yield "c." + ".".join(map(str, index)), extent


def _table_chunk(shape: tuple[int, ...], dtype: str) -> tuple[int, ...]:
    # along the longest axis, about 4 MiB a file: a small table is one file, padding stays small
    axis = int(np.argmax(shape))
    other = math.prod(shape) // max(shape[axis], 1)
    step = max(1, _TABLE_CHUNK // max(1, other * np.dtype(dtype).itemsize))
    return tuple(
        min(length, step) if index == axis else length for index, length in enumerate(shape)
    )
