"""Killed at any byte: the next run finishes, and the cache is that of an undisturbed build."""

import random
import time
from pathlib import Path
from typing import Any

import pytest

from medalign.teacher_cache.audit import status, verify
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import CacheCard, TeacherCacheError

GENERATIONS = [24, 5, 9]
"""Images that each run of the build knows; a run adds what the store lacks."""


def kill_builds(
    processes: Any, card: CacheCard, folder: Path, kills: int, images: list[int]
) -> int:
    """Kill builds at random moments; return how many died while a store was unsealed.

    A store that is sealed in spite of the kill is checked, and a new one is begun.
    """
    rng = random.Random(kills)
    expected = processes.undisturbed(card, images)
    turn = killed = 0
    while turn < kills:
        store, known = folder / str(turn), 0
        while turn < kills and known < len(images):
            process = processes.start(store, card, images=images[: known + 1])
            time.sleep(rng.uniform(0, 0.15))
            process.kill()
            process.wait(60)
            turn += 1
            killed += process.returncode != 0
            try:
                sealed = TeacherCache.open(store).generations
            except TeacherCacheError:
                continue
            assert TeacherCache.open(store).content_hash == expected[sealed - 1]
            known = sealed
        for count in range(1, len(images) + 1):
            processes.finish(processes.start(store, card, images=images[:count]))
        assert TeacherCache.open(store).content_hash == expected[-1]
        assert verify(store) == []
        assert not list(store.rglob("*.partial"))
    return killed


@pytest.mark.parametrize("kills", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_a_build_killed_at_random_moments_ends_as_an_undisturbed_one(
    processes: Any, tiny_card: CacheCard, tmp_path: Path, kills: int
) -> None:
    assert kill_builds(processes, tiny_card, tmp_path, kills, [24]) > kills // 3


@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_a_growing_store_killed_at_random_moments_ends_as_an_undisturbed_one(
    processes: Any, tiny_card: CacheCard, tmp_path: Path, kills: int
) -> None:
    assert kill_builds(processes, tiny_card, tmp_path, kills, GENERATIONS) > kills // 3


def test_a_kill_costs_at_most_the_shard_that_was_being_written(
    processes: Any, tiny_card: CacheCard, tmp_path: Path
) -> None:
    store, rng, complete = tmp_path / "cache", random.Random(3), 0
    for _ in range(8):
        process = processes.start(store, tiny_card, slowly=True)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.wait(60)
        try:
            now = status(store)
        except TeacherCacheError:
            assert complete == 0
            continue
        assert now.complete >= complete  # what was committed is never lost
        assert now.damaged == ()
        complete = now.complete
