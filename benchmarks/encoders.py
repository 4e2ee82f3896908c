"""What `build.py` and `growth.py` share: zarr-python as encoder, and the time inside a method."""

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def shards_by_zarr() -> Iterator[None]:
    """Let zarr-python encode the shards of every cache that is written meanwhile.

    As quick as it can be: into memory, with one array a kind, and without a copy of the result.
    """
    import numpy as np
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec
    from zarr.storage import MemoryStore

    from medalign.teacher_cache.format.arrays import RowArray

    @functools.cache
    def opened(layout: Any) -> tuple[dict[str, Any], Any]:
        files: dict[str, Any] = {}
        level = layout.zstd_level
        zstd = [] if level is None else [ZstdCodec(level=level, checksum=False)]
        array = zarr.create_array(
            MemoryStore(files),
            shape=(layout.shard_rows, *layout.row_shape),
            dtype=layout.dtype,
            chunks=(1, *layout.row_shape),
            shards=(layout.shard_rows, *layout.row_shape),
            compressors=[*zstd, Crc32cCodec()],
            filters=None,
            fill_value=layout.fill,
            chunk_key_encoding={"name": "default", "separator": "."},
            config={"write_empty_chunks": True},
        )
        return files, array

    def encode(layout: Any, values: Any) -> Any:
        files, array = opened(layout)
        name = layout.file_of(0).removeprefix(f"{layout.name}/")
        files.pop(name, None)  # or the rows of the last shard would be read and merged
        array[: len(values)] = np.asarray(values)
        return files[name].as_numpy_array().data

    ours = RowArray.encode
    setattr(RowArray, "encode", encode)  # noqa: B010 - mypy refuses a plain assignment
    try:
        yield
    finally:
        setattr(RowArray, "encode", ours)  # noqa: B010


@contextmanager
def timed(owner: type, method: str) -> Iterator[list[float]]:
    """Collect the seconds that every call of a method takes."""
    plain, seconds = getattr(owner, method), []

    @functools.wraps(plain)
    def measured(*inputs: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        try:
            return plain(*inputs, **options)
        finally:
            seconds.append(time.perf_counter() - begun)

    setattr(owner, method, measured)
    try:
        yield seconds
    finally:
        setattr(owner, method, plain)
