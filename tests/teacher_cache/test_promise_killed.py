"""Real processes: killed without warning, several at once, the same part twice."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medalign.teacher_cache.audit import seal, verify
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import CacheCard, TeacherCacheError

ROWS = 24
Start = Callable[..., subprocess.Popen[str]]
BUILD = """
import hashlib, json, sys
from pathlib import Path
import numpy as np
from medalign.teacher_cache.audit import seal
from medalign.teacher_cache.schema import CacheCard, Plan
from medalign.teacher_cache.writer import TeacherCacheWriter

store, card, rows, part, parts = json.loads(sys.argv[1])
card = CacheCard.from_json(card)
plan = Plan(
    content=tuple(hashlib.sha256(str(row).encode()).hexdigest() for row in range(rows)),
    paths={f"{row}.png": row for row in range(rows)},
)
print("ready", flush=True)
writer = TeacherCacheWriter.begin(Path(store), card, plan)
for shard in writer.pending(part, parts):
    span = writer.rows_of(shard)
    values = np.random.default_rng(shard).random((len(span), 6, 5))
    writer.write(
        shard,
        features=values.astype("f2"),
        attention=values[:, :, 0].astype("f4"),
        valid=np.ones((len(span), 6), bool),
        source_size=np.full((len(span), 2), 9, "i4"),
    )
if parts == 1:
    seal(Path(store))
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a build in a process of its own, past its imports; none survives the test."""
    processes: list[subprocess.Popen[str]] = []

    def begin(store: Path, card: CacheCard, part: int = 1, parts: int = 1) -> subprocess.Popen[str]:
        job = json.dumps([str(store), card.to_json(), ROWS, part, parts])
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", BUILD, job]
        processes.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        out = processes[-1].stdout
        assert out is not None
        assert out.readline() == "ready\n"
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate(timeout=60)


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


@pytest.fixture
def card(synthetic_card: Callable[..., CacheCard]) -> CacheCard:
    return synthetic_card(grid="3x2", width=5, shard_rows=2)


@pytest.fixture
def whole(start: Start, card: CacheCard, tmp_path: Path) -> str:
    """The content hash of a build that nobody disturbed."""
    finish(start(tmp_path / "whole", card))
    return str(TeacherCache.open(tmp_path / "whole").content_hash)


@pytest.mark.parametrize("kills", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_a_build_killed_at_random_moments_ends_as_an_undisturbed_one(
    start: Start, card: CacheCard, whole: str, tmp_path: Path, kills: int
) -> None:
    rng = random.Random(kills)
    store, killed = tmp_path / "0", 0
    for turn in range(kills):
        process = start(store, card)
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        process.wait(60)
        killed += process.returncode != 0
        try:
            hit: Any = TeacherCache.open(store).content_hash
        except TeacherCacheError:
            continue
        assert hit == whole
        store = tmp_path / str(turn + 1)  # sealed before the kill: go on with a new one
    assert killed > kills // 3
    finish(start(store, card))
    assert TeacherCache.open(store).content_hash == whole
    assert verify(store) == []
    assert not list(store.rglob("*.partial"))


def test_parts_that_run_at_once_end_as_one_process_would(
    start: Start, card: CacheCard, whole: str, tmp_path: Path
) -> None:
    store = tmp_path / "cache"
    # part 2 of 3 is started twice, as a mistaken job script would
    for process in [start(store, card, part, 3) for part in (1, 2, 2, 3)]:
        finish(process)
    assert seal(store).content_hash == whole
    assert verify(store) == []


def test_two_whole_builds_of_one_store_do_not_disturb_each_other(
    start: Start, card: CacheCard, whole: str, tmp_path: Path
) -> None:
    store = tmp_path / "cache"
    for process in [start(store, card), start(store, card)]:
        finish(process)
    assert TeacherCache.open(store).content_hash == whole
    assert verify(store) == []
