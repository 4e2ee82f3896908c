import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from medalign.teacher_cache.format.arrays import (
    RowArray,
    check_metadata,
    row_arrays,
    table_file_bytes,
    table_files,
    table_metadata,
)
from medalign.teacher_cache.metadata import zarr_json
from medalign.teacher_cache.schema import CacheCard, TeacherCacheError
from medalign.teacher_cache.storage.local import LocalStorage
from medalign.teacher_cache.storage.untrusted import DamagedError, canonical_json

GOLDEN = Path(__file__).parent / "golden_v1"


@given(rows=st.integers(1, 5), patches=st.integers(1, 4), width=st.integers(1, 3))
def test_a_shard_file_is_rows_with_checksums_and_then_an_index(
    rows: int, patches: int, width: int
) -> None:
    # laid out by hand from the Zarr v3 sharding specification, without zarr-python
    array = RowArray("features", (patches, width), "float16", "NaN", 5)
    values = np.arange(rows * patches * width, dtype=np.float16).reshape(rows, patches, width)
    values[0] = np.nan  # equal to the fill value, and written all the same
    expected, index = b"", b""
    for row in values:
        data = row.astype("<f2").tobytes()
        data += google_crc32c.value(data).to_bytes(4, "little")
        index += len(expected).to_bytes(8, "little") + len(data).to_bytes(8, "little")
        expected += data
    index += b"\xff" * 16 * (5 - rows)
    expected += index + google_crc32c.value(index).to_bytes(4, "little")
    assert array.encode(values) == expected
    assert array.file_bytes(rows) == len(expected)


KINDS = {
    "features": RowArray("features", (6, 5), "float16", "NaN", 3),
    "attention": RowArray("attention", (6,), "float32", "NaN", 3),
    "valid": RowArray("valid", (6,), "bool", False, 3),
    "source_size": RowArray("source_size", (2,), "int32", 0, 3),
    "codes": RowArray("codes", (300,), "uint8", 0, 3, zstd_level=0),
    "fast codes": RowArray("codes", (300,), "uint8", 0, 3, zstd_level=1),
    "big shards": RowArray("attention", (6,), "float32", "NaN", 70),
}


def rows_of(array: RowArray, rows: int) -> npt.NDArray[Any]:
    """Rows of any kind, the first of fill values; rows of codes end in zeros of any number."""
    rng = np.random.default_rng(rows)
    values = rng.integers(0, 2 if array.dtype == "bool" else 200, (rows, *array.row_shape))
    if array.zstd_level is not None:
        for row in values:
            row[rng.integers(0, len(row)) :] = 0
    typed = values.astype(array.dtype)
    typed[0] = float("nan") if array.fill == "NaN" else array.fill
    return typed


def written_by_zarr(array: RowArray, values: npt.NDArray[Any], rows: int) -> dict[str, bytes]:
    """The files that zarr-python writes for `rows` rows of which `values` are the first."""
    store: dict[str, Any] = {}
    level = array.zstd_level
    zstd = [] if level is None else [ZstdCodec(level=level, checksum=False)]
    zarr.create_array(
        MemoryStore(store),
        shape=(rows, *array.row_shape),
        dtype=array.dtype,
        chunks=(1, *array.row_shape),
        shards=(array.shard_rows, *array.row_shape),
        compressors=[*zstd, Crc32cCodec()],
        filters=None,
        fill_value=array.fill,
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
    )[: len(values)] = values
    return {name: data.to_bytes() for name, data in store.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_our_shards_are_byte_for_byte_what_zarr_python_writes(kind: str, rows: int) -> None:
    array = KINDS[kind]
    values = rows_of(array, rows)
    expected = written_by_zarr(array, values, rows)["c.0" + ".0" * len(array.row_shape)]
    for form in (values, list(values), values.astype(values.dtype.newbyteorder(">"))):
        assert array.encode(form) == expected
    assert array.may_have(len(expected), rows)
    assert array.assemble(array.split(expected, rows)) == expected
    if array.zstd_level is None:
        assert array.file_bytes(rows) == len(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reader_expects_the_metadata_that_zarr_python_writes(kind: str) -> None:
    array = KINDS[kind]
    actual = json.loads(written_by_zarr(array, rows_of(array, 1), 7)["zarr.json"])
    actual.pop("storage_transformers", None)
    assert actual == array.metadata(7)
    assert zarr_json(actual) == canonical_json(actual)


@pytest.mark.parametrize("path", sorted(GOLDEN.rglob("zarr.json")), ids=str)
def test_zarr_json_has_the_bytes_of_earlier_releases(path: Path) -> None:
    data = path.read_bytes()
    assert zarr_json(json.loads(data)) == data


def test_a_zarr_python_that_writes_other_metadata_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def renamed(store: MemoryStore, **options: Any) -> object:
        return plain(store, **{**options, "fill_value": 1})

    plain = zarr.create_array
    monkeypatch.setattr(zarr, "create_array", renamed)
    with pytest.raises(TeacherCacheError, match=r"zarr-python 3\.\S+ writes fill_value as "):
        zarr_json(KINDS["attention"].metadata(7))


def test_the_kinds_above_are_those_of_a_card(synthetic_card: Callable[..., CacheCard]) -> None:
    arrays = row_arrays(synthetic_card(grid="3x2", width=5, shard_rows=3))
    assert list(arrays) == [KINDS[array.name] for array in arrays]


@pytest.mark.parametrize("kind", KINDS)
def test_plain_zarr_reads_our_shards_short_ones_included(kind: str, tmp_path: Path) -> None:
    array, values = KINDS[kind], rows_of(KINDS[kind], 5)
    storage = LocalStorage(tmp_path)
    storage.write(f"{array.name}/zarr.json", zarr_json(array.metadata(5)))
    for shard in range(-(-5 // array.shard_rows)):
        rows = values[shard * array.shard_rows :][: array.shard_rows]
        storage.write(array.file_of(shard), array.encode(rows))
    actual = np.asarray(zarr.open_array(tmp_path / array.name, mode="r")[...])
    assert actual.dtype == values.dtype
    assert actual.tobytes() == values.tobytes()


def test_rows_that_cannot_be_compressed_fit_their_limit() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 5, 300, 70_000, 2**20 + 7):
        for level in (-5, 0, 3, 19):
            array = RowArray("codes", (size,), "uint8", 0, 2, zstd_level=level)
            row = rng.integers(0, 256, size, np.uint8)
            assert len(array.chunk(row)) <= array.chunk_limit
            assert array.may_have(len(array.encode([row])), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_is_taken_apart_is_checked(kind: str) -> None:
    array = KINDS[kind]
    data = array.encode(rows_of(array, 3))
    assert array.split(data, 3) == [array.chunk(row) for row in rows_of(array, 3)]
    for position in range(len(data)):
        spoilt = bytearray(data)
        spoilt[position] ^= 64
        with pytest.raises(DamagedError, match="checksum"):
            array.split(bytes(spoilt), 3)
    with pytest.raises(DamagedError, match="checksum"):
        array.split(b"", 3)


def test_a_row_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of codes has 300 bytes, got 299"):
        KINDS["codes"].encode([np.zeros(299, np.uint8)])


@pytest.mark.parametrize("shape", [(1,), (100,), (5, 32), (2, 300_000), (3_000_000,)])
def test_tables_have_the_sizes_that_are_announced(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    files = table_files(values)
    assert {name: len(data) for name, data in files.items()} == dict(
        table_file_bytes(shape, "int64")
    )
    assert max(map(len, files.values())) <= 2**22 + 4
    folder = tmp_path / "table"
    folder.mkdir()
    (folder / "zarr.json").write_bytes(zarr_json(table_metadata(shape, "int64")))
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
    path.write_bytes(canonical_json(metadata | {"attributes": {"mine": 1}}))
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
