import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medalign.teacher_cache.audit import info, status, verify
from medalign.teacher_cache.commits import CommitLog
from medalign.teacher_cache.plan_file import load_plans
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import Failure, TeacherCacheError
from medalign.teacher_cache.seal import reopen, seal
from medalign.teacher_cache.storage.local import LocalStorage

Job = Callable[[Path, Callable[[int, int], None]], object]


def test_status_counts_exactly_while_building_and_when_sealed(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    writer = small.begin(store)
    small.write(writer, [1, 2])
    (store / "valid" / "c.2.0").write_bytes(b"")
    now = status(store)
    assert (now.state, now.rows, now.rows_written, now.rows_failed) == ("building", 10, 4, 1)
    assert (now.shards, now.complete, now.pending, now.damaged) == (3, 1, (0,), (2,))
    assert now.failures == (
        Failure("bad/no.png", "zero bytes"),
        Failure("images/6.png", "truncated file"),
    )
    small.write(writer)
    seal(store)
    now = status(store)
    assert (now.state, now.rows_written, now.rows_failed) == ("sealed", 10, 1)
    assert (now.complete, now.pending, now.damaged) == (3, (), ())
    assert len(now.failures) == 2
    (store / "features" / "c.0.0.0").unlink()
    assert status(store).damaged == (0,)
    assert json.loads(json.dumps(status(store).to_json()))["damaged"] == [0]


def test_a_failed_content_is_listed_under_every_path_it_has(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.plan = replace(small.plan, paths={**small.plan.paths, "copy.png": 6})
    small.write(small.begin(store))
    building = TeacherCache.open(store, allow_building=True).failures
    report = seal(store)
    assert [failure.path for failure in report.failures] == [
        "bad/no.png",
        "images/6.png",
        "copy.png",
    ]
    assert TeacherCache.open(store).failures == building == list(report.failures)


def test_sealing_again_does_nothing_and_says_so(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    first = seal(store)
    assert not first.already
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    second = seal(store)
    assert second == replace(first, already=True)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


def test_sealing_sweeps_what_killed_writers_left(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    for folder in ("features", "_commit", "."):
        (store / folder / ".c.0.0.0.77-abcd.partial").write_bytes(b"torn")
    assert seal(store).swept == 3
    assert not list(store.rglob("*.partial"))


def test_an_unfinished_store_is_not_sealed(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store), [0, 2])
    with pytest.raises(TeacherCacheError, match=r"2 of 3 shards .*cache build.*shards 1\)"):
        seal(store)
    with pytest.raises(TeacherCacheError, match="does not exist"):
        seal(tmp_path / "nowhere")


def test_sealing_finds_a_flipped_bit_and_makes_its_shard_pending(
    small: Any, tmp_path: Path
) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    path = store / "features" / "c.1.0.0"
    data = bytearray(path.read_bytes())
    data[3] ^= 16
    path.write_bytes(data)
    assert small.begin(store).pending() == []  # the size fits; only reading can tell
    with pytest.raises(TeacherCacheError, match="shards 1 did not match their records"):
        seal(store)
    writer = small.begin(store)
    assert writer.pending() == [1]
    small.write(writer)
    assert not seal(store).already


def test_reopening_makes_damaged_shards_pending_and_a_build_mends_them(
    small: Any, tmp_path: Path
) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    expected = seal(store).content_hash
    path = store / "attention" / "c.2.0"
    data = path.read_bytes()
    path.write_bytes(data[:5] + bytes([data[5] ^ 1]) + data[6:])
    (store / "index" / "1" / "path_hash" / "c.0.0").unlink()
    assert [damage.where for damage in verify(store)] == ["attention/c.2.0", "index"]
    assert reopen(store) == [2]
    writer = small.begin(store)
    small.write(writer)
    assert seal(store).content_hash == expected
    assert verify(store) == []


def test_verify_names_file_and_rows(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store), [0, 1])
    assert verify(store) == []  # a pending shard is not damage
    small.write(small.begin(store))
    seal(store)
    (store / "valid" / "c.2.0").unlink()
    (store / "_commit" / "0.json").unlink()
    actual = {damage.where: str(damage) for damage in verify(store)}
    assert set(actual) == {"valid/c.2.0", "_commit/0.json"}
    assert "rows 8 to 9" in actual["valid/c.2.0"]
    assert "missing" in actual["_commit/0.json"]


def test_verify_notices_shards_that_changed_places(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    seal(store)
    first, second = store / "features/c.0.0.0", store / "features/c.1.0.0"
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    assert [damage.where for damage in verify(store)] == ["features/c.0.0.0", "features/c.1.0.0"]


def test_verify_notices_a_valid_record_that_was_not_sealed(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    seal(store)
    card, chain = load_plans(LocalStorage(store))
    log = CommitLog.of_chain(LocalStorage(store), card, chain)
    files = {array.file_of(1): (store / array.file_of(1)).read_bytes() for array in log.arrays}
    log.commit(1, files, log.record(1).row_digests, {6: "another reason"})
    [damage] = verify(store)
    assert damage.where == "_commit"


def test_verify_notices_another_plan(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    seal(store)
    small.plan = replace(small.plan, failures=())
    small.begin(tmp_path / "other")
    plan = (tmp_path / "other/_commit/plan.0.json").read_bytes()
    (store / "_commit/plan.0.json").write_bytes(plan)
    assert [damage.where for damage in verify(store)] == ["_commit/plan.0.json"]


def calls_of(job: Job, store: Path) -> list[tuple[int, int]]:
    calls: list[tuple[int, int]] = []
    job(store, lambda done, total: calls.append((done, total)))
    return calls


def test_progress_counts_up_to_all_shards(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    for job in (seal, verify):
        assert calls_of(job, store) == [(1, 3), (2, 3), (3, 3)]


def test_info_is_json_and_knows_card_counts_and_size(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    building = info(store)
    assert building["state"] == "building"
    assert building["content_hash"] is None
    report = seal(store)
    actual = json.loads(json.dumps(info(store)))
    assert actual["content_hash"] == report.content_hash
    assert actual["card"] == small.card.to_json()
    assert actual["paths"] == 11
    assert actual["size_bytes"] == sum(p.stat().st_size for p in store.rglob("*") if p.is_file())


def test_a_group_says_in_plain_json_what_it_is(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    seal(store)
    attributes = json.loads((store / "zarr.json").read_bytes())["attributes"]["medalign"]
    assert attributes["state"] == "sealed"
    assert attributes["card"]["expert"]["licence"] == "CC0-1.0"
    assert attributes["failures"] == [
        ["bad/no.png", "zero bytes", None],
        ["images/6.png", "truncated file", 6],
    ]
