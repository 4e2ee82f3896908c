import errno
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from medalign.teacher_cache.audit import status
from medalign.teacher_cache.format.arrays import RowArray, row_arrays
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import CacheCard, PatchGrid, Plan, TeacherCacheError
from medalign.teacher_cache.seal import seal
from medalign.teacher_cache.writer import TeacherCacheWriter

Rows = dict[str, npt.NDArray[Any]]


def test_what_is_written_is_read(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    seal(store)
    cache = TeacherCache.open(store)
    expected = small.rows(small.card, range(10))
    for row in set(range(10)) - {6}:
        actual = cache[row]
        assert np.array_equal(actual.features, expected["features"][row])
        assert np.array_equal(actual.attention, expected["attention"][row])
        assert np.array_equal(actual.valid, expected["valid"][row])
        assert actual.source_size == tuple(expected["source_size"][row])
        assert actual.features.dtype == np.float16
        assert actual.attention.dtype == np.float32


def test_plain_zarr_reads_the_same_arrays(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    seal(store)
    group = zarr.open_group(store, mode="r")
    expected = small.rows(small.card, range(10))
    good = np.arange(10) != 6
    for name, values in expected.items():
        actual = np.asarray(group[name][:])  # type: ignore[index]
        assert actual.dtype == values.dtype
        assert np.array_equal(actual[good], values[good])
    assert np.isnan(np.asarray(group["features"][6])).all()  # type: ignore[index]
    assert not np.asarray(group["valid"][6]).any()  # type: ignore[index]
    content = np.asarray(group["index/1/content"][:])  # type: ignore[index]
    assert [row.tobytes().hex() for row in content] == list(small.plan.content)


def test_shards_in_any_order_and_any_number_of_parts_give_the_same_bytes(
    small: Any, tmp_path: Path
) -> None:
    stores = []
    for order in itertools.permutations(range(3)):
        stores.append(tmp_path / "".join(map(str, order)))
        small.write(small.begin(stores[-1]), order)
    for parts in (2, 3, 5):
        stores.append(tmp_path / f"parts{parts}")
        for part in range(1, parts + 1):
            writer = small.begin(stores[-1])
            small.write(writer, writer.pending(part, parts))
    hashes = {seal(store).content_hash for store in stores}
    assert len(hashes) == 1
    trees = [
        {path.relative_to(store): path.read_bytes() for path in store.rglob("*") if path.is_file()}
        for store in stores
    ]
    assert all(tree == trees[0] for tree in trees)


def test_parts_share_all_shards_and_no_shard_twice(small: Any, tmp_path: Path) -> None:
    writer = small.begin(tmp_path / "cache")
    for parts in range(1, 6):
        shares = [writer.pending(part, parts) for part in range(1, parts + 1)]
        assert sorted(itertools.chain(*shares)) == [0, 1, 2]
    with pytest.raises(ValueError, match="part takes 1 to 2, got 0"):
        writer.pending(0, 2)


def test_the_content_hash_depends_on_numbers_images_and_card_only(
    small: Any, tmp_path: Path
) -> None:
    def build(name: str) -> str:
        small.write(small.begin(tmp_path / name))
        return str(seal(tmp_path / name).content_hash)

    first = build("first")
    small.plan = replace(small.plan, paths={f"moved/{row}": row for row in range(10)})
    small.card = replace(small.card, versions={"torch": "99"})
    small.failures = {6: "the same failure in other words"}
    assert build("renamed") == first
    rows, small.rows = small.rows, lambda card, span: rows(card, span, seed=1)
    assert build("numbers") != first
    small.rows = rows
    small.failures = {}
    assert build("failures") != first
    small.failures = {6: "again"}
    plan, small.plan = small.plan, replace(small.plan, content=small.plan.content[::-1])
    assert build("images") != first
    small.plan = plan
    small.card = replace(small.card, geometry="crop")
    assert build("card") != first
    small.card = replace(small.card, geometry="pad")
    assert build("again") == first


class Killed(BaseException):
    """Stands for SIGKILL inside the process: no handler of the package may swallow it."""


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Run a block as if the process were killed at its `step`-th fsync."""
    steps_left = step
    real_sync, real_unlink = os.fsync, Path.unlink

    def fsync(descriptor: int) -> None:
        nonlocal steps_left
        steps_left -= 1
        if steps_left == 0:
            raise Killed
        real_sync(descriptor)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if steps_left > 0:  # a killed process does not clean up after itself
            real_unlink(path, missing_ok)

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(os, "fsync", fsync)
        patch.setattr(Path, "unlink", unlink)
        yield


def is_sealed(store: Path) -> bool:
    try:
        return bool(status(store).state == "sealed")
    except TeacherCacheError:
        return False


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_build_killed_at_any_durable_step_is_finished_by_the_next(
    small: Any, tmp_path: Path, stride: int
) -> None:
    def run(store: Path) -> None:
        small.write(small.begin(store))
        seal(store)

    run(tmp_path / "whole")
    expected = seal(tmp_path / "whole").content_hash
    unsealed = 0
    for step in range(1, 90, stride):
        store = tmp_path / str(step)
        with killed_at(step):
            run(store)
        if not is_sealed(store):
            unsealed += 1
            with pytest.raises(TeacherCacheError):
                TeacherCache.open(store)
        run(store)
        assert seal(store).content_hash == expected
        assert not list(store.rglob("*.partial"))
        assert TeacherCache.open(store)[9].source_size == (109, 200)
    assert unsealed > 80 // stride


def test_a_shard_without_a_record_does_not_exist(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    writer = small.begin(store)
    small.write(writer)
    (store / "_commit" / "1.json").unlink()
    assert small.begin(store).pending() == [1]
    with pytest.raises(TeacherCacheError, match=r"2 of 3 shards are complete.*shards 1"):
        seal(store)


@pytest.mark.parametrize("spoil", ["truncate", "remove", "empty", "record"])
def test_a_spoilt_shard_is_pending_again(small: Any, tmp_path: Path, spoil: str) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    path = store / ("_commit/1.json" if spoil == "record" else "attention/c.1.0")
    data = path.read_bytes()
    if spoil == "remove":
        path.unlink()
    else:
        path.write_bytes(b"" if spoil == "empty" else data[:-1])
    writer = small.begin(store)
    assert writer.pending() == [1]
    small.write(writer)
    assert path.read_bytes() == data
    seal(store)


def test_a_shard_that_another_process_completed_stays_as_it_is(small: Any, tmp_path: Path) -> None:
    first, second = small.begin(tmp_path / "cache"), small.begin(tmp_path / "cache")
    small.write(first, [0])
    before = (tmp_path / "cache/features/c.0.0.0").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowArray, "encode", None)  # nor is the work done twice
        second.write(0, **small.rows(small.card, range(4), seed=1))
    assert (tmp_path / "cache/features/c.0.0.0").read_bytes() == before


def test_a_shard_that_another_process_completes_meanwhile_stays_as_it_is(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = small.begin(tmp_path / "cache"), small.begin(tmp_path / "cache")
    real = RowArray.encode

    def encode(self: RowArray, values: npt.NDArray[Any]) -> bytes:
        monkeypatch.setattr(RowArray, "encode", real)
        small.write(first, [0])
        return bytes(real(self, values))

    monkeypatch.setattr(RowArray, "encode", encode)
    second.write(0, **small.rows(small.card, range(4), seed=1))
    cache = TeacherCache.open(tmp_path / "cache", allow_building=True)
    expected = small.rows(small.card, range(4))["features"][2]
    assert np.array_equal(cache[2].features, expected)


def test_a_record_of_another_shard_or_store_does_not_count(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    record = store / "_commit" / "1.json"
    own = record.read_bytes()
    record.write_bytes((store / "_commit" / "0.json").read_bytes())
    assert small.begin(store).pending() == [1]
    small.card = replace(small.card, geometry="crop")
    small.write(small.begin(tmp_path / "other"))
    record.write_bytes((tmp_path / "other/_commit/1.json").read_bytes())
    small.card = replace(small.card, geometry="pad")
    assert small.begin(store).pending() == [1]
    record.write_bytes(own)
    assert small.begin(store).pending() == []


def test_of_two_processes_that_begin_at_once_the_slower_takes_the_plan_of_the_faster(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "cache"
    real = os.link

    def link(source: Path, target: Path) -> None:
        if not target.exists():
            with monkeypatch.context() as patch:
                patch.setattr(os, "link", real)
                small.begin(store)
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    small.write(small.begin(store))
    assert seal(store).shards == 3


def test_data_is_on_disk_before_its_record(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = small.begin(tmp_path / "cache")
    events: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        real_fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        events.append(f"rename {target.parent.name}/{target.name}")
        return real_replace(self, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to name open files")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    small.write(writer, [2])
    record = events.index("rename _commit/2.json")
    for name in ("features/c.2.0.0", "attention/c.2.0", "valid/c.2.0", "source_size/c.2.0"):
        folder, file = name.split("/")
        position = events.index(f"rename {name}")
        assert events[position - 1].startswith(f"sync .{file}.")  # bytes first, then the name
        assert events[position + 1] == f"sync {folder}"  # then the folder that holds the name
        assert position + 1 < record
    assert events[-1] == "sync _commit"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_named_and_what_is_committed_stays(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = tmp_path / "cache"
    writer = small.begin(store)
    small.write(writer, [0])
    calls = itertools.count()

    def fsync(_: int) -> None:
        if next(calls) > 2:
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(TeacherCacheError) as caught:
            small.write(writer, [1])
    assert ("no space left" in str(caught.value)) == (number != errno.EIO)
    assert str(store) in str(caught.value)
    assert "committed shards stay; " in str(caught.value)
    assert not list(store.rglob("*.partial"))
    writer = small.begin(store)
    assert writer.pending() == [1, 2]
    small.write(writer)
    seal(store)


def test_another_card_is_refused_with_what_differs(small: Any, tmp_path: Path) -> None:
    small.begin(tmp_path / "cache")
    small.card = replace(small.card, geometry="crop", shard_rows=5)
    with pytest.raises(TeacherCacheError) as caught:
        small.begin(tmp_path / "cache")
    assert "geometry is 'pad' in the store, 'crop' asked for" in str(caught.value)
    assert "shard_rows is 4 in the store, 5 asked for" in str(caught.value)


def test_other_versions_may_go_on_with_a_store(small: Any, tmp_path: Path) -> None:
    small.begin(tmp_path / "cache")
    small.card = replace(small.card, versions={"torch": "99"})
    assert small.begin(tmp_path / "cache").card.versions == {"medalign": "0"}


def test_the_plan_of_an_earlier_build_is_loaded(small: Any, tmp_path: Path) -> None:
    assert TeacherCacheWriter.load_plan(tmp_path / "cache") is None
    small.begin(tmp_path / "cache")
    plan = TeacherCacheWriter.load_plan(tmp_path / "cache")
    assert plan is not None
    assert (plan.paths, plan.failures) == (small.plan.paths, small.plan.failures)
    assert [plan.content_of(row) for row in range(10)] == list(small.plan.content)


@pytest.mark.parametrize("what", ["file", "folder", "group"])
def test_a_store_path_that_is_something_else_is_refused_and_left_alone(
    small: Any, tmp_path: Path, what: str
) -> None:
    store = tmp_path / "thing"
    if what == "file":
        store.write_text("mine")
    elif what == "folder":
        store.mkdir()
        (store / "notes.txt").write_text("mine")
    else:
        zarr.open_group(store, mode="w").create_array("x", shape=(1,), dtype="u1")
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(TeacherCacheError, match="folder"):
        small.begin(store)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_an_empty_folder_may_become_a_store(small: Any, tmp_path: Path) -> None:
    small.begin(tmp_path)
    assert status(tmp_path).pending == (0, 1, 2)


def test_a_sealed_store_has_nothing_pending_and_takes_no_shard(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    seal(store)
    writer = small.begin(store)
    assert writer.sealed
    assert writer.pending() == []
    (store / "_commit" / "0.json").unlink()
    with pytest.raises(TeacherCacheError, match="is sealed"):
        small.write(writer, [0])


def test_a_sealed_store_that_lost_a_shard_goes_back_to_building(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    expected = seal(store).content_hash
    (store / "features" / "c.1.0.0").unlink()
    writer = small.begin(store)
    assert not writer.sealed
    assert writer.pending() == [1]
    with pytest.raises(TeacherCacheError, match="not sealed"):
        TeacherCache.open(store)
    small.write(writer)
    assert seal(store).content_hash == expected


def test_a_store_that_lost_its_plan_says_so(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    seal(store)
    (store / "_commit" / "plan.0.json").unlink()
    with pytest.raises(TeacherCacheError, match=r"plan\.0\.json is missing: a sealed cache can"):
        small.begin(store)
    assert TeacherCache.open(store)[0].source_size == (100, 200)


def spoilt(rows: Rows, name: str, position: Any, value: Any) -> Rows:
    rows[name][position] = value
    return rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: spoilt(r, "features", (2, 1, 1), np.nan), "row 2: features holds NaN"),
        (lambda r: spoilt(r, "features", (0, 0, 0), np.inf), "row 0: features holds NaN"),
        (lambda r: spoilt(r, "attention", (3, 0), np.nan), "row 3: attention holds NaN"),
        (lambda r: spoilt(r, "attention", (1, 0), -1e-9), "row 1: attention holds negative"),
        (lambda r: spoilt(r, "source_size", (1, 1), 0), "row 1: source_size"),
        (lambda r: r | {"features": r["features"].astype("f4")}, "features of float16"),
        (lambda r: r | {"features": r["features"][:3]}, r"float16 \(4, 6, 5\), got float16 \(3"),
        (lambda r: r | {"attention": r["attention"][:, :5]}, r"attention of float32 \(4, 6\)"),
        (lambda r: r | {"valid": r["valid"].astype("u1")}, "valid of bool"),
        (lambda r: r | {"failures": {9: "of another shard"}}, r"failures of rows \[9\]"),
    ],
)
def test_wrong_arrays_are_refused_before_anything_is_written(
    small: Any, tmp_path: Path, change: Callable[[Rows], Rows], message: str
) -> None:
    writer = small.begin(tmp_path / "cache")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        writer.write(0, **change(small.rows(small.card, range(4))))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        ((2, 0), -1e-9, "row 2: gram_error holds negative"),
        ((1, 1), -1e-9, "row 1: gram_error holds negative"),
        ((3, 0), 1.00001e-3, "row 3: gram_error holds an RMS above the card's 0.001"),
        ((3, 0), 1e-3 * (1 + 5e-7), None),  # rounding to float32 may go up
        ((3, 1), 0.5, None),  # the worst pair of patches has no limit
    ],
)
def test_an_error_that_the_card_does_not_allow_is_refused(
    small: Any, tmp_path: Path, position: tuple[int, int], value: float, message: str | None
) -> None:
    small.card = replace(small.card, codec="gram", max_gram_error=1e-3)
    writer = small.begin(tmp_path / "cache")
    shapes = {array.name: array.row_shape for array in row_arrays(small.card)}
    rows = small.rows(small.card, range(4))
    del rows["features"]
    rows["codes"] = np.zeros((4, *shapes["codes"]), np.uint8)
    rows["gram_error"] = np.full((4, 2), 1e-3, np.float32)
    rows["gram_error"][position] = value
    if message is None:
        writer.write(0, **rows)
    else:
        with pytest.raises(ValueError, match=message):
            writer.write(0, **rows)
        writer.write(0, **rows, failures={position[0]: "what a failed row holds is not looked at"})
    assert writer.pending() == [1, 2]


def test_what_the_arrays_hold_in_a_failed_row_is_not_looked_at(small: Any, tmp_path: Path) -> None:
    writer = small.begin(tmp_path / "cache")
    rows = small.rows(small.card, range(4, 8))
    rows["features"][2] = np.nan
    rows["attention"][2] = -1
    rows["source_size"][2] = 0
    before = rows["features"].copy()
    writer.write(1, **rows, failures={6: "truncated"})
    assert np.array_equal(rows["features"], before, equal_nan=True)
    assert writer.pending() == [0, 2]


def test_a_plan_of_many_sizes_fits_its_shards(
    synthetic_card: Callable[..., CacheCard], tmp_path: Path
) -> None:
    for rows in (1, 3, 4, 5, 8):
        plan = Plan(
            content=tuple(f"{row:064x}" for row in range(rows)),
            paths={str(row): row for row in range(rows)},
        )
        card = synthetic_card(grid=str(PatchGrid(1, 1)), width=1)
        writer = TeacherCacheWriter.begin(tmp_path / str(rows), card, plan)
        spans = [writer.rows_of(shard) for shard in writer.pending()]
        assert list(itertools.chain(*spans)) == list(range(rows))
        with pytest.raises(IndexError, match="outside 0"):
            writer.rows_of(len(spans))
