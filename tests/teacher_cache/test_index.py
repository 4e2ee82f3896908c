import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.teacher_cache import index
from medalign.teacher_cache.format.arrays import table_files
from medalign.teacher_cache.generations import PlanChain, first_generation
from medalign.teacher_cache.index import path_words, tables_of
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import Plan, TeacherCacheError
from medalign.teacher_cache.writer import TeacherCacheWriter

names = st.text(st.characters(exclude_characters="/\\\0."), min_size=1, max_size=6)


@given(st.lists(names, min_size=1, max_size=30, unique=True))
def test_path_words_are_blake2b_in_two_halves(paths: list[str]) -> None:
    high, low = path_words(paths)
    for path, first, second in zip(paths, high, low, strict=True):
        digest = hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        assert digest == int(first).to_bytes(8, "big") + int(second).to_bytes(8, "big")


def many(rows: int) -> PlanChain:
    content = [hashlib.sha256(str(row).encode()).hexdigest() for row in range(rows)]
    # more paths than rows, and rows out of order
    paths = {f"ordner/ü{n}\ud800.png": (n * 7) % rows for n in range(2 * rows)}
    first = first_generation(Plan(content=tuple(content), paths=paths))
    return PlanChain(4, (first,), ("0" * 64,))


def test_the_stored_index_finds_what_the_plan_knows(
    synthetic_store: Callable[..., Path],
) -> None:
    paths = [f"ü/{n}\ud800.png" for n in range(500)]
    store = synthetic_store(500, "1x1", 1, paths, shard_rows=256)
    cache = TeacherCache.open(store)
    plan = index_plan(store)
    assert cache.paths == list(plan.paths) == paths
    for row, path in enumerate(paths):
        assert cache.row_of(path) == plan.path_row(path) == row
        digest = cache.sha256_of(row)
        assert digest == plan.content_of(row)
        assert cache.row_of(digest) == plan.content_row(digest) == row
    assert "ü/500.png" not in cache
    assert "0" * 64 not in cache


def index_plan(store: Path) -> PlanChain:
    plan = TeacherCacheWriter.load_plan(store)
    assert isinstance(plan, PlanChain)
    return plan


def test_equal_first_halves_are_settled_by_the_second(
    synthetic_store: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crowded(paths: Iterable[str]) -> Any:
        words = path_words(paths)
        words[0] %= np.uint64(3)
        return words

    monkeypatch.setattr(index, "path_words", crowded)
    paths = [f"{n}.png" for n in range(40)]
    cache = TeacherCache.open(synthetic_store(40, "1x1", 1, paths, shard_rows=64))
    assert [cache.row_of(path) for path in paths] == list(range(40))
    assert "40.png" not in cache


def test_equal_prefixes_of_contents_are_settled_by_the_rest(
    synthetic_store: Callable[..., Path],
) -> None:
    content = [f"{7:016x}{row:048x}" for row in range(9)]
    cache = TeacherCache.open(synthetic_store(9, "1x1", 1, content=content))
    assert [cache.row_of(digest) for digest in content] == list(range(9))
    assert f"{7:016x}{9:048x}" not in cache


def test_two_paths_with_one_hash_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        index, "path_words", lambda paths: np.zeros((2, len(list(paths))), np.uint64)
    )
    with pytest.raises(TeacherCacheError, match="same 128-bit hash"):
        tables_of(many(3), np.zeros((3, 16), np.uint8))


def test_rows_of_many_paths_are_found_in_the_tables() -> None:
    plan = many(50)
    tables = tables_of(plan, np.zeros((50, 16), np.uint8))
    assert (np.diff(tables["path_hash"][0].astype(object)) >= 0).all()
    assert (np.diff(tables["content_prefix"].astype(object)) >= 0).all()
    words = dict(zip(map(tuple, path_words(plan.paths).T.tolist()), plan.paths, strict=True))
    for pair, row in zip(
        tables["path_hash"].T.tolist(), tables["path_hash_row"].tolist(), strict=True
    ):
        assert plan.paths[words[tuple(pair)]] == row


def test_a_table_with_right_checksums_and_other_values_is_refused(
    synthetic_store: Callable[..., Path],
) -> None:
    store = synthetic_store(4)
    rows = np.array([3, 2, 1, 0], np.int32)
    for name, data in table_files(rows).items():
        (store / "index" / "1" / "path_hash_row" / name).write_bytes(data)
    cache = TeacherCache.open(store)
    with pytest.raises(TeacherCacheError, match="path_hash_row does not match its digest"):
        cache.row_of("images/0.png")
