"""Fixtures of the teacher-cache tests: a small build that can be run step by step."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest

from medalign.teacher_cache.schema import CacheCard, Failure, Plan
from medalign.teacher_cache.writer import TeacherCacheWriter

ROWS = 10


class SmallBuild:
    """Ten rows in shards of four, one of them broken, plus one image that has no row at all."""

    def __init__(self, card: CacheCard, rows: Callable[..., dict[str, npt.NDArray[Any]]]) -> None:
        self.card = card
        self.rows = rows
        digests = [hashlib.sha256(bytes([row])).hexdigest() for row in range(ROWS)]
        paths = {f"images/{row}.png": row for row in range(ROWS)} | {"again/é 5.png": 5}
        self.plan = Plan(
            content=tuple(digests), paths=paths, failures=(Failure("bad/no.png", "zero bytes"),)
        )
        self.failures = {6: "truncated file"}

    def begin(self, store: Path) -> TeacherCacheWriter:
        return TeacherCacheWriter.begin(store, self.card, self.plan)

    def write(self, writer: TeacherCacheWriter, shards: Iterable[int] | None = None) -> None:
        for shard in writer.pending() if shards is None else shards:
            span = writer.rows_of(shard)
            lost = {row: why for row, why in self.failures.items() if row in span}
            writer.write(shard, **self.rows(self.card, span), failures=lost)


@pytest.fixture
def small(
    synthetic_card: Callable[..., CacheCard],
    synthetic_rows: Callable[..., dict[str, npt.NDArray[Any]]],
) -> SmallBuild:
    return SmallBuild(synthetic_card(grid="3x2", width=5), synthetic_rows)
