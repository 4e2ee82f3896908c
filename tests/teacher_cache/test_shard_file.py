import pickle  # noqa: TID251 - what worker processes do to a reader
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numcodecs import zstd
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from medalign.teacher_cache.format import shard_file
from medalign.teacher_cache.format.arrays import RowArray
from medalign.teacher_cache.format.shard_file import RowReader
from medalign.teacher_cache.storage.untrusted import DamagedError, TeacherCacheError

Array = npt.NDArray[Any]
S = 4
FILE = "x/c.1.0"


@dataclass
class Files:
    """A storage in memory that counts what is read of it."""

    content: dict[str, bytearray] = field(default_factory=dict)
    reads: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        return "STORE"

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        if name not in self.content:
            raise FileNotFoundError("gone")
        data = self.content[name][start : start + len(buffer)]
        if len(data) < len(buffer):
            raise DamagedError("it ends too early")
        self.reads.append(len(buffer))
        buffer[:] = data

    def size(self, name: str) -> int | None:
        return len(self.content[name]) if name in self.content else None


def with_crc(data: bytes) -> bytes:
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")


def shard_of(chunks: list[bytes], shard_rows: int = S) -> bytearray:
    """A shard file by the letter of the Zarr v3 sharding specification."""
    index = np.full((shard_rows, 2), -1, "<i8")
    index[: len(chunks), 1] = [len(chunk) for chunk in chunks]
    index[: len(chunks), 0] = np.cumsum([0, *index[: len(chunks) - 1, 1]])
    return bytearray(b"".join(chunks) + with_crc(index.tobytes()))


def chunks_of(values: Array, *, compressed: bool) -> list[bytes]:
    bodies = [row.astype(row.dtype.newbyteorder("<")).tobytes() for row in values]
    return [with_crc(zstd.compress(body, 3) if compressed else body) for body in bodies]


def made(
    values: Array, counts: list[int], *, compressed: bool = False, shard_rows: int = S
) -> tuple[RowReader, Any, Files]:
    """Reader and zarr-python's array of shards that hold `counts` rows each, and the files."""
    store: dict[str, Any] = {}
    shape = (len(counts) * shard_rows, *values.shape[1:])
    array = zarr.create_array(
        MemoryStore(store),
        name="x",
        shape=shape,
        dtype=values.dtype,
        chunks=(1, *shape[1:]),
        shards=(shard_rows, *shape[1:]),
        compressors=[ZstdCodec(level=3), Crc32cCodec()] if compressed else Crc32cCodec(),
        filters=None,
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    files, chunks = Files(), iter(chunks_of(values, compressed=compressed))
    level = 3 if compressed else None
    layout = RowArray("x", values.shape[1:], values.dtype.name, 0, shard_rows, level)
    for shard, rows in enumerate(counts):
        data = shard_of([next(chunks) for _ in range(rows)], shard_rows)
        files.content[layout.file_of(shard)] = data
        store[layout.file_of(shard)] = zarr.core.buffer.cpu.Buffer.from_bytes(bytes(data))

    def rows_of(shard: int) -> range:
        return range(shard * shard_rows, shard * shard_rows + counts[shard])

    return RowReader(files, layout, rows_of), array, files


def small(**options: Any) -> tuple[RowReader, Files]:
    """Two shards of the same short rows; row 4 is the first of `FILE`."""
    values = np.arange(6 * 40, dtype=np.uint8).reshape(6, 40)
    reader, _, files = made(values, [4, 2], **options)
    return reader, files


@st.composite
def stores(draw: st.DrawFn) -> tuple[Array, list[int], int, bool]:
    """Values of all rows, rows of each shard, rows a shard may have, whether compressed."""
    shard_rows = draw(st.integers(1, 5))
    counts = draw(st.lists(st.integers(1, shard_rows), min_size=1, max_size=4))
    dtype = draw(st.sampled_from(["float16", "float32", "int32", "uint8", "bool", "uint16"]))
    row_shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    elements: Any = {"allow_nan": False, "allow_infinity": False} if "float" in dtype else {}
    values = hnp.arrays(
        dtype, (sum(counts), *row_shape), elements=hnp.from_dtype(np.dtype(dtype), **elements)
    )
    return draw(values), counts, shard_rows, draw(st.booleans())


@given(stores())
def test_every_row_is_what_zarr_python_reads(drawn: tuple[Array, list[int], int, bool]) -> None:
    values, counts, shard_rows, compressed = drawn
    reader, array, _ = made(values, counts, shard_rows=shard_rows, compressed=compressed)
    rows = [shard * shard_rows + k for shard, count in enumerate(counts) for k in range(count)]
    for row, expected in zip(rows, values, strict=True):
        actual = reader.read(row)
        assert actual.tobytes() == np.asarray(array[row]).tobytes() == expected.tobytes()
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        assert actual.flags.writeable
    for row in set(range(len(counts) * shard_rows)) - set(rows):  # zarr-python reads zeros there
        with pytest.raises(TeacherCacheError, match=f"STORE has no row {row}: shard"):
            reader.read(row)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_row_is_one_read_and_an_index_is_read_once(compressed: bool) -> None:
    reader, files = small(compressed=compressed)
    reader.read(4)
    index_bytes = 16 * S + 4
    assert files.reads[0] == index_bytes
    assert len(files.reads) == 2
    reader.read(5)
    reader.raw_chunk(4)
    assert len(files.reads) == 4
    assert index_bytes not in files.reads[1:]


def test_indexes_are_forgotten_from_the_least_recently_used_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_file, "_CACHED_BYTES", 0)
    values = np.ones((20, 3), np.uint8)
    reader, _, files = made(values, [1] * 20, shard_rows=1)
    for row in (*range(16), 0, 16):
        reader.read(row)
    del files.reads[:]
    reader.read(0)
    assert len(files.reads) == 1
    reader.read(1)
    assert len(files.reads) == 3


@pytest.mark.parametrize("compressed", [False, True])
def test_a_raw_chunk_can_be_copied_to_another_shard(compressed: bool) -> None:
    reader, files = small(compressed=compressed)
    expected = reader.read(5)
    files.content["x/c.0.0"] = shard_of([reader.raw_chunk(row) for row in (4, 5, 0, 1)])
    fresh = RowReader(reader.storage, reader.layout, reader.rows_of)
    assert np.array_equal(fresh.read(1), expected)


@pytest.mark.parametrize("compressed", [False, True])
def test_no_flipped_bit_is_read_as_data(compressed: bool) -> None:
    reader, files = small(compressed=compressed)
    expected = [reader.read(row).tobytes() for row in (4, 5)]
    data = files.content[FILE]
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        damaged = 0
        for row, value in zip((4, 5), expected, strict=True):
            fresh = RowReader(reader.storage, reader.layout, reader.rows_of)
            try:
                actual = fresh.read(row).tobytes()
            except DamagedError as error:
                damaged += f"row {row} of STORE: x is damaged: {FILE}: " in str(error)
            else:
                assert actual == value, f"bit {bit}"
        assert damaged, f"bit {bit}"
        data[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("cut", [0, 10, 67, 68, 100, -1])
def test_a_short_or_missing_file_is_an_error(compressed: bool, cut: int) -> None:
    reader, files = small(compressed=compressed)
    files.content[FILE] = files.content[FILE][:cut]
    with pytest.raises(DamagedError, match=f"row 4 of STORE: x is damaged: {FILE}: .*cache verify"):
        reader.read(4)
    del files.content[FILE]
    with pytest.raises(DamagedError, match=rf"{FILE}: .*(gone|missing)"):
        reader.read(4)


GOOD = [[0, 44], [44, 44], [-1, -1], [-1, -1]]


@pytest.mark.parametrize(
    "entries",
    [
        [[44, 44], [0, 44], *GOOD[2:]],  # rows exchanged
        [[0, 44], [0, 44], *GOOD[2:]],  # one row twice
        [[0, 44], [-1, -1], *GOOD[2:]],  # a row that is not there
        [*GOOD[:2], [0, 44], GOOD[3]],  # a row too many
        [[0, 2**62], [44, 44], *GOOD[2:]],
        [[0, 0], [0, 88], *GOOD[2:]],
        [[0, 43], [43, 45], *GOOD[2:]],
        [[-(2**63), 44], [44, 44], *GOOD[2:]],
        [[4, 44], [48, 44], *GOOD[2:]],
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_an_index_that_lies_is_refused_before_anything_is_allocated(
    entries: list[list[int]], compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, files = small(compressed=compressed)
    rows = files.content[FILE][:-68].ljust(88, b"0")[:88]
    files.content[FILE] = rows + with_crc(np.array(entries, "<i8").tobytes())
    sizes, empty = [], np.empty

    def counted(size: int, dtype: Any) -> Array:
        sizes.append(size)
        return empty(size, dtype)

    monkeypatch.setattr(np, "empty", counted)
    with pytest.raises(DamagedError, match=f"{FILE}: "):
        reader.read(4)
    assert max(sizes, default=0) <= 16 * S + 4


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (zstd.compress(bytes(39), 3), "declares itself 39 bytes long"),
        (zstd.compress(bytes(2**20), 3), "declares itself 1048576 bytes long"),
        (zstd.compress(bytes(40), 3) * 2, "cannot be decompressed"),
        (zstd.compress(bytes(40), 3)[:-1], "cannot be decompressed"),
        (b"\x28\xb5\x2f\xfd\x00\x58\x01\x00\x00", "declares itself None"),  # an empty frame
        (b"\x28\xb5\x2f\xfd", "declares itself None"),
        (b"not a frame of Zstandard", "declares itself None"),
        # 2**63 bytes, in the widest form that a header has
        (b"\x28\xb5\x2f\xfd\xe0" + bytes(7) + b"\x80" + bytes(9), f"itself {2**63} bytes"),
    ],
)
def test_a_frame_that_lies_about_its_size_is_refused(frame: bytes, reason: str) -> None:
    reader, files = small(compressed=True)
    files.content[FILE] = shard_of([with_crc(frame)] * 2)
    with pytest.raises(DamagedError, match=reason):
        reader.read(4)


@pytest.mark.parametrize("size", [1, 255, 256, 65_791, 65_792, 2**20])
def test_frames_of_every_header_width_are_read(size: int) -> None:
    values = np.random.default_rng(size).integers(0, 3, (2, size)).astype(np.uint8)
    reader, _, _ = made(values, [2], compressed=True)
    assert np.array_equal(reader.read(1), values[1])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_a_number_without_an_end_is_refused(dtype: str, value: float) -> None:
    for others in (0.5, -1e4, 1e4):
        values = np.full((1, 33), others, dtype)
        values[0, 32] = value
        reader, _, _ = made(values, [1])
        with pytest.raises(DamagedError, match=r"row 0 of STORE: .*NaN or infinite"):
            reader.read(0)


@given(hnp.arrays("float16", (1, 8)))
@settings(max_examples=300)
def test_finite_rows_and_no_others_are_read(values: Array) -> None:
    reader, _, _ = made(values, [1])
    if np.isfinite(values).all():
        assert np.array_equal(reader.read(0), values[0])
    else:
        with pytest.raises(DamagedError, match="NaN or infinite"):
            reader.read(0)


def test_what_is_neither_true_nor_false_is_refused() -> None:
    values = np.array([[0, 1, 2]], np.uint8).view(bool)
    reader, _, _ = made(values, [1])
    with pytest.raises(DamagedError, match="neither true nor false"):
        reader.read(0)


def test_a_reader_survives_pickling_without_what_it_cached() -> None:
    reader, _ = small()
    expected = reader.read(5)
    reader.rows_of = [range(4), range(4, 6)].__getitem__
    back = pickle.loads(pickle.dumps(reader))
    assert len(back._ends) == 0
    assert np.array_equal(back.read(5), expected)
