"""The bytes of the compact codec: golden blobs, and what no encoder wrote."""

import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.teacher_cache.gram.code import GramCode
from medalign.teacher_cache.gram.codec import decode, encode, max_code_bytes
from medalign.teacher_cache.gram.entropy import stream, words
from medalign.teacher_cache.schema import PatchGrid
from medalign.teacher_cache.storage.untrusted import DamagedError

SMALL = PatchGrid(8, 8)
NATIVE = PatchGrid(6, 5)
VIT = PatchGrid(24, 24)


# Blobs written by hand, byte by byte, from the layout in gram_blob's docstring.
def header(form: int, flags: int, components: int, base: float, body: bytes) -> bytes:
    return struct.pack("<BBBBHIf", 1, form, flags, 0, components, 14 + len(body), base) + body


def stored(data: bytes) -> bytes:
    """A deflate stream of one block that is stored as it is."""
    raw = b"\x01" + struct.pack("<HH", len(data), len(data) ^ 0xFFFF) + data
    return struct.pack("<I", len(raw)) + raw


def test_golden_factors() -> None:
    # two components of three patches; class 9 has 1 raw bit, class 4 none
    raw = bytes([0b0110_0000])  # low bits of 20, 5, -7 (in two's complement ...001): 0, 1, 1
    nine = bytes([2]) + stored(struct.pack("3b", 10, 2, -4))  # 20 >> 1, 5 >> 1, -7 >> 1
    four = bytes([1]) + stored(bytes([(1 + 8) << 4 | (-2 + 8), (0 + 8) << 4 | 8]))
    blob = header(1, 0, 2, 0.5, stored(bytes([9, 4])) + raw + nine + four)
    grid = PatchGrid(1, 3)
    code = decode(blob, grid, grid)
    assert code.codes.tolist() == [[20, 5, -7], [1, -2, 0]]
    # base * 2^(-class / 4)
    assert code.scale.tolist() == [np.float32(0.5 * 2**-2.25), np.float32(0.5 * 2**-1)]
    first = 100 * 0.25 * 2**-4.5 - 2 * 0.25 * 2**-2
    assert code.gram()[0, 1] == pytest.approx(first, rel=1e-6)


def test_bytes_behind_the_last_part_are_refused() -> None:
    grid = PatchGrid(1, 3)
    parts = stored(bytes([4])) + bytes([1]) + stored(bytes([0x9A, 0x88]))
    decode(header(1, 0, 1, 0.5, parts), grid, grid)
    with pytest.raises(DamagedError, match="holds 1 bytes too many"):
        decode(header(1, 0, 1, 0.5, parts + b"\0"), grid, grid)


def test_golden_triangle() -> None:
    # patches in the order 2, 0, 1; one component with pivot 5 and then 2, -1
    body = stored(bytes([1])) + stored(bytes([2, 0, 1])) + stored(bytes(3))
    fall = 65535 - 5
    body += stored(bytes([fall & 255])) + stored(bytes([fall >> 8]))
    body += bytes([1]) + stored(bytes([(2 + 8) << 4 | (-1 + 8)]))
    grid = PatchGrid(3, 1)
    code = decode(header(2, 0, 1, 0.1, body), grid, grid)
    assert code.codes.tolist() == [[2, -1, 5]]
    gram = code.gram()
    # pivot * code * scale^2, and scale^2 is delta / pivot: differences come back as q * delta
    np.testing.assert_allclose(gram[2], [2 * 0.1, -0.1, 1], rtol=1e-6)
    np.testing.assert_allclose(gram[0, 1], 2 * -1 * 0.1 / 5, rtol=1e-6)


def test_golden_mask_and_norms() -> None:
    # one column of two native patches, three of the student's; the last is padding
    native, student = PatchGrid(2, 1), PatchGrid(3, 1)
    body = (
        stored(bytes([0b1100_0000]))
        + struct.pack("<f", 0.5)
        + stored(bytes([0, 2]))
        + stored(bytes(2))
    )
    body += stored(bytes([0])) + bytes([0]) + stored(bytes([1 + 3 * 1 + 9 + 27 + 81]))
    code = decode(header(1, 3, 1, 0.1, body), native, student)
    assert code.codes.tolist() == [[0, 0]]
    assert code.norms.tolist() == [1, 0.5]
    assert code.valid.tolist() == [True, True, False]
    # orthogonal patches of lengths 1 and 1/2: the first as it is, then half of each
    expected = [[1, 1 / np.sqrt(1.25), 0], [1 / np.sqrt(1.25), 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(code.gram(), expected, rtol=1e-6)


def test_golden_codes_of_five_a_byte() -> None:
    grid = PatchGrid(1, 7)
    trits = [1, -1, 0, 0, 1, -1, 1]
    digits = [2, 0, 1, 1, 2, 0, 2]  # plus one; lowest power of three first
    first = sum(digit * 3**position for position, digit in enumerate(digits[:5]))
    second = sum(digit * 3**position for position, digit in enumerate(digits[5:]))
    body = stored(bytes([0])) + bytes([0]) + stored(bytes([first, second]))
    assert decode(header(1, 0, 1, 0.1, body), grid, grid).codes.tolist() == [trits]


def coded(native: PatchGrid, student: PatchGrid, share: float, allowed: float) -> bytes:
    rng = np.random.default_rng(0)
    patches = rng.standard_normal((native.size, 40)) * np.geomspace(1, 0.02, 40)
    valid = np.arange(student.size) < share * student.size
    blob: bytes = encode(patches, native, student, valid, allowed)[0]
    return blob


BLOBS = {
    "factors": (coded(SMALL, SMALL, 1, 1e-2), SMALL, SMALL),
    "triangle": (coded(SMALL, SMALL, 1, 1e-4), SMALL, SMALL),
    "factors, mask and norms": (coded(NATIVE, SMALL, 0.4, 1e-2), NATIVE, SMALL),
    "triangle, mask and norms": (coded(NATIVE, SMALL, 0.4, 1e-4), NATIVE, SMALL),
}


def test_the_blobs_below_are_of_both_forms() -> None:
    kinds = [tuple(blob[1:3]) for blob, _, _ in BLOBS.values()]
    assert kinds == [(1, 0), (2, 0), (1, 3), (2, 3)]


def opened(blob: bytes, native: PatchGrid, student: PatchGrid) -> GramCode | None:
    """Decode what may be damaged: into a code of the right shape, or None for a DamagedError."""
    try:
        code = decode(blob, native, student)
    except DamagedError:
        return None
    assert code.codes.shape == (len(code.scale), native.size)
    assert np.isfinite(code.scale).all()
    assert code.gram().shape == (student.size, student.size)
    return code


@pytest.mark.parametrize("name", BLOBS)
def test_every_truncation_is_refused(name: str) -> None:
    blob, native, student = BLOBS[name]
    for size in range(len(blob)):
        if blob[size:].strip(b"\0"):
            assert opened(blob[:size], native, student) is None, size


@pytest.mark.parametrize("name", BLOBS)
def test_flipped_bytes_never_crash(name: str) -> None:
    blob, native, student = BLOBS[name]
    rng = np.random.default_rng(0)
    places = [*range(min(80, len(blob))), *rng.integers(0, len(blob), 150)]
    for position in places:
        for value in (0, 255, int(rng.integers(256))):
            opened(blob[:position] + bytes([value]) + blob[position + 1 :], native, student)


@given(st.binary(max_size=200), st.sampled_from([1, 2]), st.integers(0, 3), st.integers(0, 70))
def test_random_bytes_never_crash(body: bytes, form: int, flags: int, components: int) -> None:
    opened(body, SMALL, SMALL)
    opened(header(form, flags, components, 0.01, body), SMALL, SMALL)


def test_zeros_may_follow_a_blob_and_nothing_else() -> None:
    blob, native, student = BLOBS["factors"]
    row = blob.ljust(max_code_bytes(native, student), b"\0")
    code = decode(memoryview(row), native, student)
    assert np.array_equal(code.codes, decode(blob, native, student).codes)
    with pytest.raises(DamagedError, match="not followed by zeros"):
        decode(row[:-1] + b"\1", native, student)


def test_unknown_versions_forms_flags_and_steps_are_refused() -> None:
    blob, native, student = BLOBS["factors"]
    for position, value, text in ((0, 2, "version 2"), (1, 3, "form 3"), (2, 4, "flags=4")):
        changed = blob[:position] + bytes([value]) + blob[position + 1 :]
        with pytest.raises(DamagedError, match=text):
            decode(changed, native, student)
    for step in (0.0, -1.0, float("nan"), float("inf"), 17.0):
        with pytest.raises(DamagedError, match="a step of"):
            decode(blob[:10] + struct.pack("<f", step) + blob[14:], native, student)


def test_a_blob_of_another_grid_is_refused() -> None:
    blob, _, _ = BLOBS["factors"]
    for grid in (PatchGrid(8, 7), PatchGrid(2, 2), VIT):
        with pytest.raises(DamagedError):
            decode(blob, grid, grid)


def bomb(size: int) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflate.compress(bytes(size)) + deflate.flush()
    return struct.pack("<I", len(packed)) + packed


ONE, ALL = stream(bytes(1)), words(np.arange(64))
NAN, NINE = struct.pack("<f", float("nan")), struct.pack("<f", 9.0)
LIES: dict[str, Callable[[], bytes]] = {
    "classes that inflate": lambda: header(1, 0, 64, 0.1, bomb(50_000_000)),
    "a mask that inflates": lambda: header(1, 1, 64, 0.1, bomb(50_000_000)),
    "an order that inflates": lambda: header(2, 0, 60, 0.1, stream(bytes(60)) + bomb(50_000_000)),
    "symbols that inflate": lambda: header(1, 0, 1, 0.1, ONE + b"\3" + bomb(50_000_000)),
    "too many components": lambda: header(1, 0, 65535, 0.1, b""),
    "as many pivots as patches": lambda: header(2, 0, 64, 0.1, b""),
    "a long stream": lambda: header(1, 0, 64, 0.1, struct.pack("<I", 2**32 - 1)),
    "unknown classes": lambda: header(1, 0, 64, 0.1, stream(bytes([255]) * 64)),
    "a patch twice": lambda: header(2, 0, 1, 0.1, ONE + words(np.zeros(64, int))),
    "no pivot": lambda: header(2, 0, 1, 0.1, ONE + ALL + words(np.array([65535]))),
    "a wide pivot": lambda: header(2, 0, 1, 0.1, ONE + ALL + words(np.array([9]))),
    "tiny norms": lambda: header(1, 2, 1, 0.1, NINE + words(np.full(64, 65535))),
    "no norms": lambda: header(1, 2, 1, 0.1, NAN + words(np.ones(64, int))),
    "wide values": lambda: header(
        1, 0, 1, 0.1, stream(bytes([32])) + bytes(8 * 13) + b"\2" + stream(bytes([127]) * 64)
    ),
    "unknown symbols": lambda: header(1, 0, 1, 0.1, ONE + b"\7"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_blobs_are_refused_before_much_is_allocated(lie: str) -> None:
    blob = LIES[lie]()
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError):
            decode(blob, SMALL, SMALL)
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()


def test_factors_that_would_overflow_are_refused() -> None:
    grid = PatchGrid(1, 2)
    words = struct.pack("<2h", 32767, 32767)
    low_high = stored(words[0::2]) + stored(words[1::2])
    blob = header(1, 0, 1, 16.0, stored(bytes([0])) + bytes([3]) + low_high)
    with pytest.raises(DamagedError, match="factors of length"):
        decode(blob, grid, grid)
