import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from medalign.teacher_cache.arrays import (
    RowArray,
    check_metadata,
    metadata_bytes,
    row_arrays,
    table_file_bytes,
    table_files,
    table_metadata,
)
from medalign.teacher_cache.schema import CacheCard, TeacherCacheError
from medalign.teacher_cache.storage import LocalStorage


@given(rows=st.integers(1, 5), patches=st.integers(1, 4), width=st.integers(1, 3))
def test_a_shard_file_is_rows_with_checksums_and_then_an_index(
    rows: int, patches: int, width: int
) -> None:
    # laid out by hand from the Zarr v3 sharding specification, without zarr-python
    array = RowArray("features", (patches, width), "float16", "NaN", 5)
    values = np.arange(rows * patches * width, dtype=np.float16).reshape(rows, patches, width)
    values[0] = np.nan  # equal to the fill value, and written all the same
    wanted, index = b"", b""
    for row in values:
        data = row.astype("<f2").tobytes()
        data += google_crc32c.value(data).to_bytes(4, "little")
        index += len(wanted).to_bytes(8, "little") + len(data).to_bytes(8, "little")
        wanted += data
    index += b"\xff" * 16 * (5 - rows)
    wanted += index + google_crc32c.value(index).to_bytes(4, "little")
    assert array.encode(values) == wanted
    assert array.file_bytes(rows) == len(wanted)


def test_our_metadata_is_what_zarr_python_writes(
    synthetic_card: Callable[..., CacheCard],
) -> None:
    for array in row_arrays(synthetic_card(shard_rows=3)):
        store: dict[str, Any] = {}
        zarr.create_array(
            MemoryStore(store),
            shape=(7, *array.row_shape),
            dtype=array.dtype,
            chunks=(1, *array.row_shape),
            shards=(3, *array.row_shape),
            compressors=Crc32cCodec(),
            filters=None,
            fill_value=array.fill,
            chunk_key_encoding={"name": "default", "separator": "."},
        )
        found = json.loads(store["zarr.json"].to_bytes())
        found.pop("storage_transformers", None)
        assert found == array.metadata(7)


@pytest.mark.parametrize("shape", [(1,), (100,), (5, 32), (2, 300_000), (3_000_000,)])
def test_tables_have_the_sizes_that_are_announced(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    files = table_files(values)
    assert {name: len(data) for name, data in files.items()} == table_file_bytes(shape, "int64")
    assert max(map(len, files.values())) <= 2**22 + 4
    folder = tmp_path / "table"
    folder.mkdir()
    (folder / "zarr.json").write_bytes(metadata_bytes(table_metadata(shape, "int64")))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    assert np.array_equal(zarr.open_array(folder, mode="r")[...], values)


@pytest.mark.parametrize(
    ("key", "lie"),
    [
        ("shape", [10**12, 6, 5]),
        ("shape", [10, 6]),
        ("data_type", "float64"),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [10**9, 6, 5]}}),
        ("chunk_key_encoding", {"name": "v2", "configuration": {"separator": "../"}}),
        ("fill_value", 0),
        ("fill_value", float("nan")),
        ("codecs", [{"name": "bytes"}, {"name": "zstd"}]),
        ("node_type", "group"),
        ("zarr_format", 2),
        ("storage_transformers", [{"name": "x"}]),
        ("extra", 1),
    ],
)
def test_metadata_that_lies_is_refused_by_file_and_key(tmp_path: Path, key: str, lie: Any) -> None:
    metadata = RowArray("features", (6, 5), "float16", "NaN", 4).metadata(10)
    path = tmp_path / "zarr.json"
    path.write_bytes(metadata_bytes(metadata | {"attributes": {"mine": 1}}))
    check_metadata(LocalStorage(tmp_path), "zarr.json", metadata)
    path.write_text(json.dumps(metadata | {key: lie}))
    with pytest.raises(TeacherCacheError, match=f"zarr.json: .*({key}|JSON)"):
        check_metadata(LocalStorage(tmp_path), "zarr.json", metadata)


def test_metadata_that_is_missing_or_endless_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "zarr.json"
    with pytest.raises(TeacherCacheError, match=r"zarr\.json is missing"):
        check_metadata(LocalStorage(tmp_path), "zarr.json", {})
    path.write_bytes(b" " * 2**17)
    with pytest.raises(TeacherCacheError, match="longer than"):
        check_metadata(LocalStorage(tmp_path), "zarr.json", {})
    path.write_bytes(b"[" * 60_000)
    with pytest.raises(TeacherCacheError, match="damaged"):
        check_metadata(LocalStorage(tmp_path), "zarr.json", {})
