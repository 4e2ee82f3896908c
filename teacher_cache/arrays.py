"""How each array of a cache lies on disk: names, shapes, codecs, files, exact sizes.

Metadata is a pure function of the card and the number of rows. So it is written here rather than
by zarr-python, whose spelling changes between versions, and reading compares it whole: a store
whose shapes, types or codecs lie is refused before anything is allocated.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.storage import MemoryStore

from .schema import CacheCard, TeacherCacheError
from .storage import Storage, read_json
from .strict import canonical_json, strict_fields, within

_CRC_BYTES = 4
_INDEX_ENTRY_BYTES = 16
_METADATA_BYTES = 2**16
_TABLE_CHUNK = 2**22
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
    """

    name: str
    row_shape: tuple[int, ...]
    dtype: str
    fill: float | int | bool | str
    shard_rows: int

    def metadata(self, rows: int) -> dict[str, Any]:
        """Return `zarr.json` of the array with `rows` rows."""
        shape = (rows, *self.row_shape)
        sharding = {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": [1, *self.row_shape],
                "codecs": _codecs(self.dtype),
                "index_codecs": _codecs("uint64"),
                "index_location": "end",
            },
        }
        return _metadata(shape, self.dtype, self.fill, (self.shard_rows, *self.row_shape), sharding)

    def file_of(self, shard: int) -> str:
        """Return the path of `shard` below the store."""
        return f"{self.name}/c.{shard}" + ".0" * len(self.row_shape)

    def file_bytes(self, rows: int) -> int:
        """Return the size of a shard file that holds `rows` rows; uncompressed, so exact."""
        row_bytes = int(np.prod(self.row_shape)) * np.dtype(self.dtype).itemsize
        index_bytes = self.shard_rows * _INDEX_ENTRY_BYTES
        return rows * (row_bytes + _CRC_BYTES) + index_bytes + _CRC_BYTES

    def encode(self, values: Array) -> bytes:
        """Return the bytes of a shard file that holds `values` [R, ...].

        The shard is encoded in memory: zarr-python renames without fsync, and on disk would merge
        a short last shard into whatever a killed writer left there.
        """
        inner = (1, *self.row_shape)
        codec = ShardingCodec(
            chunk_shape=inner,
            codecs=[_serializer(self.dtype), Crc32cCodec()],
            index_codecs=[BytesCodec(), Crc32cCodec()],
        )
        store: dict[str, Any] = {}
        array = zarr.create_array(
            MemoryStore(store),
            shape=values.shape,
            dtype=self.dtype,
            chunks=(self.shard_rows, *self.row_shape),
            serializer=codec,
            compressors=None,
            filters=None,
            fill_value=self.fill,
            config={"write_empty_chunks": True},  # an all-fill row must differ from an absent one
        )
        array[:] = values
        return bytes(store["c/0" + "/0" * len(self.row_shape)].to_bytes())


def row_arrays(card: CacheCard) -> tuple[RowArray, ...]:
    """Return the arrays that hold the rows of a cache with this card, in the order written."""
    patches, shard_rows = card.grid.size, card.shard_rows
    return (
        RowArray("features", (patches, card.expert.width), "float16", "NaN", shard_rows),
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
    shape, dtype = values.shape, values.dtype.name
    store: dict[str, Any] = {}
    array = zarr.create_array(
        MemoryStore(store),
        shape=shape,
        dtype=dtype,
        chunks=_table_chunk(shape, dtype),
        serializer=_serializer(dtype),
        compressors=Crc32cCodec(),
        filters=None,
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    array[...] = values
    return {
        key.replace("/", "."): bytes(value.to_bytes())
        for key, value in sorted(store.items())
        if key.startswith("c/")
    }


def table_file_bytes(shape: tuple[int, ...], dtype: str) -> dict[str, int]:
    """Return the exact sizes of those files; edge chunks are padded to the chunk's shape."""
    chunk = _table_chunk(shape, dtype)
    size = int(np.prod(chunk)) * np.dtype(dtype).itemsize + _CRC_BYTES
    counts = [-(-length // step) for length, step in zip(shape, chunk, strict=True)]
    return {"c." + ".".join(map(str, index)): size for index in np.ndindex(*counts)}


def metadata_bytes(metadata: dict[str, Any]) -> bytes:
    """Return the bytes of a `zarr.json`, one spelling per content."""
    return canonical_json(metadata)


def group_metadata(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return `zarr.json` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def check_metadata(storage: Storage, name: str, expected: dict[str, Any]) -> None:
    """Refuse a `zarr.json` that says anything but `expected`; attributes are free.

    Raises:
        TeacherCacheError: missing, damaged or different; names file and key.
    """
    found = read_json(storage, name, _METADATA_BYTES)
    with within(f"{storage}/{name}"):
        found = strict_fields(found, expected, "zarr.json", _OPTIONAL)
        for key, wanted in {**expected, "storage_transformers": []}.items():
            value = found.get(key, wanted)
            if key != "attributes" and canonical_json(value) != canonical_json(wanted):
                raise TeacherCacheError(f"{key} should be {wanted}, got {value!r:.200}")


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


def _serializer(dtype: str) -> BytesCodec:
    return BytesCodec(endian="little" if np.dtype(dtype).itemsize > 1 else None)


def _table_chunk(shape: tuple[int, ...], dtype: str) -> tuple[int, ...]:
    # along the longest axis, about 4 MiB a file: a small table is one file, padding stays small
    axis = int(np.argmax(shape))
    other = int(np.prod(shape)) // max(shape[axis], 1)
    step = max(1, _TABLE_CHUNK // max(1, other * np.dtype(dtype).itemsize))
    return tuple(
        min(length, step) if index == axis else length for index, length in enumerate(shape)
    )
