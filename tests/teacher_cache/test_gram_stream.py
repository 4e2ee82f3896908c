import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.teacher_cache.gram.entropy import MAX_CLASS, Reader, class_of, pack, unpack, words
from medalign.teacher_cache.storage.untrusted import DamagedError


@given(
    st.dictionaries(st.integers(0, MAX_CLASS), st.integers(1, 40), max_size=6),
    st.integers(0, 2**32),
    st.sampled_from([1, 2, 8, 2**6, 2**16]),
)
def test_values_come_back_whatever_their_class(
    counts: dict[int, int], seed: int, wide: int
) -> None:
    rng = np.random.default_rng(seed)
    runs = sorted(counts.items(), reverse=True)
    parts = [rng.standard_normal(count) * 2 ** ((h - 2) / 2) * wide for h, count in runs]
    whole = np.rint(np.concatenate([np.zeros(0), *parts]))
    values = np.clip(whole, -32768, 32767).astype(np.int16)
    reader = Reader(memoryview(pack(values, runs)))
    assert np.array_equal(unpack(reader, runs), values)
    reader.end()


def test_classes_are_half_octaves() -> None:
    spreads = np.array([0, 0.5, 0.6, 1, 2**0.5, 2, 8, 2**15, 2**20])
    assert class_of(spreads).tolist() == [0, 0, 1, 2, 3, 4, 8, 32, 32]


@pytest.mark.parametrize("h", range(1, 26, 3))
def test_bytes_are_near_the_entropy(h: int) -> None:
    count = 8000
    spread = 2 ** ((h - 2) / 2)
    drawn = np.random.default_rng(h).standard_normal(count) * spread
    values = np.rint(drawn).astype(np.int16)
    share = np.unique(values, return_counts=True)[1] / count
    drawn_bits = -(share * np.log2(share)).sum()
    # few draws from many values look poorer than they are: there, that of a normal variable
    bits = drawn_bits if h < 8 else np.log2(spread * np.sqrt(2 * np.pi * np.e))
    assert len(pack(values, [(h, count)])) < 1.04 * bits * count / 8 + 60


def test_rare_values_take_little() -> None:
    values = np.zeros(8000, np.int16)
    values[::400] = 1
    # 20 in 8000 are at least 20 log2(400) bits, or 22 bytes; five a byte and runs come near
    assert len(pack(values, [(0, 8000)])) < 120


def test_words_take_two_bytes_at_most_and_streams_must_end_where_they_say() -> None:
    numbers = np.random.default_rng(0).integers(0, 2**16, 3000)
    packed = words(numbers)
    assert len(packed) < 2 * 3000 + 40
    assert np.array_equal(Reader(memoryview(packed)).words(3000), numbers)
    for wrong in (2999, 3001):
        with pytest.raises(DamagedError, match="not of"):
            Reader(memoryview(packed)).words(wrong)
    with pytest.raises(DamagedError, match="ends early"):
        Reader(memoryview(packed[:-1])).words(3000)
    with pytest.raises(DamagedError, match="1 bytes too many"):
        Reader(memoryview(b"x")).end()
