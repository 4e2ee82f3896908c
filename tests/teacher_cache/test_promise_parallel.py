"""Parts share nothing: any number of processes, given any shares, build the same cache."""

import time
from pathlib import Path
from typing import Any

import pytest

from medalign.teacher_cache.audit import status, verify
from medalign.teacher_cache.schema import CacheCard
from medalign.teacher_cache.seal import seal

pytestmark = pytest.mark.distributed


def test_four_processes_that_run_at_once_end_as_one_would(
    processes: Any, tiny_card: CacheCard, tmp_path: Path
) -> None:
    store = tmp_path / "cache"
    for process in [processes.start(store, tiny_card, (part, 4)) for part in (1, 2, 3, 4)]:
        processes.finish(process)
    assert seal(store).content_hash == processes.undisturbed(tiny_card)[0]
    assert verify(store) == []


def test_a_part_that_was_killed_is_finished_under_another_number_of_parts(
    processes: Any, tiny_card: CacheCard, tmp_path: Path
) -> None:
    store = tmp_path / "cache"
    others = [processes.start(store, tiny_card, (part, 4)) for part in (1, 3, 4)]
    second = processes.start(store, tiny_card, (2, 4), slowly=True)
    time.sleep(0.1)
    second.kill()
    second.wait(60)
    for process in others:
        processes.finish(process)
    assert {shard % 4 for shard in status(store).pending} == {1}
    for process in [processes.start(store, tiny_card, (part, 3)) for part in (1, 2, 3)]:
        processes.finish(process)
    assert status(store).pending == ()
    assert seal(store).content_hash == processes.undisturbed(tiny_card)[0]
    assert verify(store) == []


def test_the_same_part_given_to_two_processes_loses_nothing(
    processes: Any, tiny_card: CacheCard, tmp_path: Path
) -> None:
    store = tmp_path / "cache"
    for process in [processes.start(store, tiny_card, (part, 3)) for part in (1, 2, 2, 3)]:
        processes.finish(process)
    assert seal(store).content_hash == processes.undisturbed(tiny_card)[0]
    assert verify(store) == []


def test_four_processes_that_add_the_same_images_at_once_plan_them_once(
    processes: Any, tiny_card: CacheCard, tmp_path: Path
) -> None:
    store, images = tmp_path / "cache", [24, 9]
    processes.finish(processes.start(store, tiny_card))
    parts = [processes.start(store, tiny_card, (part, 4), images=images) for part in (1, 2, 3, 4)]
    for process in parts:
        processes.finish(process)
    assert status(store).generations == 2
    assert seal(store).content_hash == processes.undisturbed(tiny_card, images)[1]
    assert verify(store) == []


def test_two_whole_builds_of_one_store_do_not_disturb_each_other(
    processes: Any, tiny_card: CacheCard, tmp_path: Path
) -> None:
    store = tmp_path / "cache"
    for process in [processes.start(store, tiny_card), processes.start(store, tiny_card)]:
        processes.finish(process)
    assert seal(store).content_hash == processes.undisturbed(tiny_card)[0]
    assert verify(store) == []
