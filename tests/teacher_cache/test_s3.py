"""A store on a real S3 server, over a network that drops connections."""

import multiprocessing
import operator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medalign.teacher_cache.audit import info, status, verify
from medalign.teacher_cache.reader import TeacherCache, TeacherRow
from medalign.teacher_cache.seal import seal
from medalign.teacher_cache.storage.local import open_storage
from medalign.teacher_cache.storage.untrusted import TeacherCacheError


@pytest.fixture
def local(small: Any, tmp_path: Path) -> TeacherCache:
    """The same cache on disk."""
    small.write(small.begin(tmp_path / "cache"))
    seal(tmp_path / "cache")
    return TeacherCache.open(tmp_path / "cache")


def same(actual: TeacherRow, expected: TeacherRow) -> bool:
    arrays = ("features", "attention", "valid", "source_size")
    return all(np.array_equal(getattr(actual, n), getattr(expected, n)) for n in arrays)


@pytest.mark.parametrize("every", [0, pytest.param(3, marks=pytest.mark.slow), 10])
def test_a_store_on_s3_is_the_one_on_disk(
    small: Any, bucket: str, proxy: Any, local: TeacherCache, every: int
) -> None:
    proxy.every = every
    store = f"{bucket}/a/cache"
    small.write(small.begin(store))
    with pytest.raises(TeacherCacheError, match=f"medalign cache seal {store}"):
        TeacherCache.open(store)
    seal(store)
    assert verify(store) == []
    assert (status(store).complete, info(store)["state"]) == (3, "sealed")
    cache = TeacherCache.open(store)
    assert cache.content_hash == local.content_hash
    assert cache.paths == local.paths
    readable = [row for row in range(10) if row != 6]
    assert all(same(cache[row], local[row]) for row in readable)
    assert np.array_equal(cache.read(readable).features, local.read(readable).features)
    with pytest.raises(TeacherCacheError, match=r"row 6 of s3://.*truncated file"):
        cache[6]
    assert bool(proxy.cut) == bool(every)


def test_what_is_missing_or_damaged_on_s3_is_an_error(small: Any, bucket: str) -> None:
    store = open_storage(f"{bucket}/cache")
    with pytest.raises(TeacherCacheError, match=r"s3://.* does not exist"):
        TeacherCache.open(store)
    small.write(small.begin(store))
    seal(store)
    data = bytearray(store.read("attention/c.1.0", 2**20))
    data[3] ^= 1
    store.write("attention/c.1.0", bytes(data))
    store.delete("features/c.2.0.0")
    cache = TeacherCache.open(store)
    with pytest.raises(TeacherCacheError, match=r"row 4 of s3://.*attention is damaged"):
        cache[4]
    with pytest.raises(TeacherCacheError, match=r"row 8 of s3://.*features/c\.2\.0\.0: .*missing"):
        cache[8]
    assert [damage.where for damage in verify(store)] == ["attention/c.1.0", "features/c.2.0.0"]


def test_two_parts_build_at_once(small: Any, bucket: str, local: TeacherCache) -> None:
    def build(part: int) -> None:
        writer = small.begin(f"{bucket}/cache")
        small.write(writer, writer.pending(part, 2))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(build, (1, 2)))
    assert seal(f"{bucket}/cache").content_hash == local.content_hash


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_a_store_on_s3(
    small: Any, bucket: str, local: TeacherCache, method: str
) -> None:
    small.write(small.begin(f"{bucket}/cache"))
    seal(f"{bucket}/cache")
    cache = TeacherCache.open(f"{bucket}/cache")
    assert same(cache[5], local[5])  # the parent is connected when it forks
    with multiprocessing.get_context(method).Pool(2) as pool:
        keys: list[str | int] = ["images/5.png", 0, 9]
        actual: Any = pool.starmap_async(operator.getitem, [(cache, key) for key in keys]).get(60)
    assert all(same(row, local[key]) for row, key in zip(actual, keys, strict=True))
    assert same(cache[1], local[1])
