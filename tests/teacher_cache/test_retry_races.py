"""Replacing failed rows while others seal the store, replace the same rows, or pull the plug."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medalign.teacher_cache.audit import status, verify
from medalign.teacher_cache.commits import CommitLog
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import TeacherCacheError
from medalign.teacher_cache.seal import seal
from medalign.teacher_cache.storage.local import LocalStorage
from medalign.teacher_cache.writer import TeacherCacheWriter


@pytest.fixture
def store(small: Any, tmp_path: Path) -> Path:
    """Build a store that is complete, not sealed, and lacks rows 1, 3 and 6."""
    small.failures = {1: "no decoder", 3: "no decoder", 6: "no decoder"}
    small.write(small.begin(tmp_path / "cache"))
    return tmp_path / "cache"


def retry(small: Any, writer: TeacherCacheWriter, *rows: int, failures: Any = None) -> None:
    parts = [small.rows(small.card, range(row, row + 1)) for row in rows]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    writer.write_again(rows[0] // 4, rows, **arrays, failures=failures)


def check(small: Any, store: Path, *rows: int) -> None:
    assert verify(store) == []
    cache = TeacherCache.open(store)
    expected = small.rows(small.card, range(10))["features"]
    for row in rows:
        assert np.array_equal(cache[row].features, expected[row])


def once_before(
    patch: pytest.MonkeyPatch, owner: type, method: str, act: Callable[[], None], call: int = 1
) -> None:
    """Let `act` happen just before the `call`-th call of a method."""
    real, calls = getattr(owner, method), 0

    def spy(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            act()
        return real(self, *args)

    patch.setattr(owner, method, spy)


def test_a_retry_unseals_what_another_process_sealed_between_two_shards(
    small: Any, store: Path
) -> None:
    seal(store)
    writer = small.begin(store)
    retry(small, writer, 1, 3)
    seal(store)
    retry(small, writer, 6)
    assert status(store).state == "building"
    assert not seal(store).already
    check(small, store, 0, 1, 3, 6)


@pytest.mark.parametrize("killed", [False, True])
def test_a_retry_while_the_seal_is_certified_is_refused_and_the_next_seal_holds(
    small: Any, store: Path, killed: bool
) -> None:
    def certify(_: TeacherCache) -> dict[str, Any]:
        writer = small.begin(store)
        retry(small, writer, 1, 3)
        if killed:
            (store / "_commit" / "0.json").unlink()
        return {}

    with pytest.raises(TeacherCacheError, match=r"changed while it was sealed.*same command again"):
        seal(store, certify=certify)
    assert status(store).state == "building"
    small.write(small.begin(store))
    seal(store)
    assert verify(store) == []


def test_a_retry_unseals_what_was_sealed_while_it_wrote(
    small: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal(store)
    root = (store / "zarr.json").read_bytes()
    writer = small.begin(store)
    with monkeypatch.context() as patch:

        def save() -> None:
            (store / "zarr.json").write_bytes(root)  # a seal that had checked the old record

        once_before(patch, CommitLog, "commit", save)
        retry(small, writer, 1, 3)
    assert status(store).state == "building"
    seal(store)
    check(small, store, 1, 3)


@pytest.mark.parametrize("written", [0, 2])
def test_a_retry_leaves_a_shard_alone_that_another_is_replacing(
    small: Any, store: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    first, second = small.begin(store), small.begin(store)
    with monkeypatch.context() as patch:
        once_before(
            patch, LocalStorage, "write", lambda: retry(small, second, 1, 3), call=written + 1
        )
        retry(small, first, 1, 3)
    seal(store)
    check(small, store, 0, 1, 2, 3)


@pytest.mark.parametrize(
    ("owner", "method", "call"),
    [
        (CommitLog, "record", 1),
        (CommitLog, "record", 2),  # the files are spliced
        (LocalStorage, "write", 1),  # it is unsealing
    ],
)
def test_a_retry_does_not_drop_the_record_that_another_finished_meanwhile(
    small: Any, store: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, call: int
) -> None:
    seal(store)
    first, second = small.begin(store), small.begin(store)
    forgotten: list[int] = []
    with monkeypatch.context() as patch:

        def other() -> None:
            retry(small, second, 1, 3)
            patch.setattr(CommitLog, "forget", lambda _, shard: forgotten.append(shard))

        once_before(patch, owner, method, other, call=call)
        retry(small, first, 1, 3)
    assert forgotten == []
    seal(store)
    check(small, store, 0, 1, 2, 3)


def test_files_that_another_replaces_while_they_are_read_are_no_damage(
    small: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = small.begin(store), small.begin(store)
    with monkeypatch.context() as patch:
        once_before(patch, LocalStorage, "read", lambda: retry(small, second, 1), call=2)
        retry(small, first, 1, 3)
    seal(store)
    check(small, store, 0, 1, 2, 3)


def test_a_row_that_another_could_decode_does_not_fail_again(small: Any, store: Path) -> None:
    first, second = small.begin(store), small.begin(store)
    retry(small, second, 1)
    retry(small, first, 1, 3, failures={1: "still no decoder"})
    assert first.failed_rows() == {1: [6]}
    seal(store)
    check(small, store, 1, 3)


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("written", range(5))
def test_a_retry_killed_before_its_record_leaves_the_shard_pending(
    small: Any, store: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    writer = small.begin(store)

    def die() -> None:
        raise Killed

    with monkeypatch.context() as patch:
        once_before(patch, LocalStorage, "write", die, call=written + 1)
        with pytest.raises(Killed):
            retry(small, writer, 1, 3)
    assert small.begin(store).pending() == [0]
    small.failures = {}
    small.write(small.begin(store))
    seal(store)
    check(small, store, 0, 1, 2, 3)


@pytest.mark.parametrize("spoil", ["flip", "swap", "longer", "missing"])
def test_a_retry_refuses_a_shard_whose_kept_rows_are_damaged(
    small: Any, store: Path, spoil: str
) -> None:
    writer = small.begin(store)
    path, record = store / "features" / "c.0.0.0", store / "_commit" / "0.json"
    data, before = path.read_bytes(), record.read_bytes()
    if spoil == "flip":
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif spoil == "swap":  # sound by all its checksums, but not what was committed
        other = store.parent / "other"
        rows = small.rows
        small.rows = lambda card, span: rows(card, span, seed=1)
        small.write(small.begin(other))
        small.rows = rows
        path.write_bytes((other / "features" / "c.0.0.0").read_bytes())
    elif spoil == "longer":
        path.write_bytes(data + b"!")
    else:
        path.unlink()
    with pytest.raises(TeacherCacheError, match=r"features/c\.0\.0\.0"):
        retry(small, writer, 1, 3)
    assert record.read_bytes() == before


def test_a_damaged_record_is_told_and_not_taken_for_a_missing_one(small: Any, store: Path) -> None:
    writer = small.begin(store)
    (store / "_commit" / "0.json").write_bytes(b"{}")
    with pytest.raises(TeacherCacheError, match=r"_commit/0\.json"):
        retry(small, writer, 1, 3)


def test_a_retry_keeps_the_other_rows_and_their_reasons(small: Any, store: Path) -> None:
    small.failures = {}
    writer = small.begin(store)
    retry(small, writer, 1, 3, failures={3: "still none"})
    record = CommitLog.of_chain(writer.store, small.card, writer.plan).record(0)
    assert dict(record.failures) == {3: "still none"}
    seal(store)
    check(small, store, 0, 1, 2)
