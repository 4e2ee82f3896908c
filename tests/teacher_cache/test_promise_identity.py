"""Rows belong to image content: renaming keeps them, adding images never moves them."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medalign.teacher_cache import writer as begin_module
from medalign.teacher_cache.audit import info, status, verify
from medalign.teacher_cache.commits import CommitLog
from medalign.teacher_cache.plan_file import load_plans, publish_generation
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import TeacherCacheError
from medalign.teacher_cache.seal import seal
from medalign.teacher_cache.storage.local import LocalStorage

IMAGES = {"a.png": 1, "b.png": 2, "c.png": 3, "copy of a.png": 1}


def shard_files(store: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of change of every file that holds rows or their records."""
    return {
        str(path.relative_to(store)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in store.rglob("*")
        if path.is_file() and not {"zarr.json", "index"} & set(path.relative_to(store).parts)
    }


def check(cache: TeacherCache, folder: Any) -> None:
    """Every readable image of the folder has its own rows."""
    for path, number in folder.images.items():
        if number is None or number >= 100:
            with pytest.raises(TeacherCacheError, match=r"no file|cut"):
                cache[path]
            continue
        row, expected = cache[path], folder.wanted(path)
        assert np.array_equal(row.features, expected["features"])
        assert np.array_equal(row.attention, expected["attention"])
        assert row.source_size == tuple(expected["source_size"])


def test_added_images_become_a_generation_and_old_shards_stay_as_they_are(
    folder: Callable[..., Any], tmp_path: Path
) -> None:
    store, images = tmp_path / "cache", folder(dict(IMAGES), shard_rows=2)
    images.build(store)
    first = seal(store)
    before = shard_files(store)
    images.images |= {"d.png": 4, "e.png": 5, "f.png": 6}
    assert images.build(store) == [2, 3]  # shards 0 and 1 hold three rows, and row 3 is a hole
    assert not seal(store).already
    after = shard_files(store)
    assert {name: after[name] for name in before} == before
    cache = TeacherCache.open(store)
    check(cache, images)
    assert (len(cache), cache.generations) == (6, 2)
    assert cache.row_numbers().tolist() == [0, 1, 2, 4, 5, 6]
    assert [cache.row_of(path) for path in cache.paths] == [0, 1, 2, 0, 4, 5, 6]
    assert cache.content_hash != first.content_hash
    assert verify(store) == []


def test_the_content_hash_is_that_of_one_build_over_all_images(
    folder: Callable[..., Any], tmp_path: Path
) -> None:
    grown = folder({"a.png": 1, "b.png": 100, "z.png": None}, shard_rows=2)
    grown.build(tmp_path / "grown")
    seal(tmp_path / "grown")
    grown.images |= {"c.png": 3, "d.png": 4, "e.png": 5}
    grown.build(tmp_path / "grown")
    expected = seal(tmp_path / "grown").content_hash
    for shard_rows in (1, 2, 7):
        turned = dict(reversed(grown.images.items()))
        other = folder(turned, shard_rows=shard_rows, versions={"torch": "99"})
        store = tmp_path / str(shard_rows)
        other.build(store)
        assert seal(store).content_hash == expected
    images = dict(grown.images)
    for path, number in {"a.png": 9, "b.png": 2, "c.png": 100}.items():
        other = folder({**images, path: number})
        other.build(tmp_path / path)
        assert seal(tmp_path / path).content_hash != expected


def test_what_was_sealed_stays_open_to_readers_while_the_store_grows(
    folder: Callable[..., Any], tmp_path: Path
) -> None:
    store, images = tmp_path / "cache", folder(dict(IMAGES), shard_rows=2)
    images.build(store)
    report, reader = seal(store), TeacherCache.open(store)
    images.images |= {"d.png": 4, "a.png": 9}
    writer = images.begin(store)
    assert not writer.sealed
    now = status(store)
    assert (now.state, now.generations, now.rows, now.pending) == ("growing", 2, 5, (2,))
    old = folder(dict(IMAGES))
    for cache in (reader, TeacherCache.open(store), TeacherCache.open(store, allow_building=True)):
        check(cache, old)
        assert cache.content_hash == report.content_hash
        assert "d.png" not in cache
    assert verify(store) == []
    with pytest.raises(TeacherCacheError, match="2 of 3 shards are complete"):
        seal(store)
    assert images.build(store) == [2]
    assert status(store).state == "growing"
    check(TeacherCache.open(store), old)
    seal(store)
    assert status(store).state == "sealed"
    check(TeacherCache.open(store), images)
    check(reader, old)  # its tables are kept until the seal after the next


def test_tables_of_seals_before_the_last_two_are_dropped(
    folder: Callable[..., Any], tmp_path: Path
) -> None:
    store, images = tmp_path / "cache", folder({"0.png": 0})
    for number in range(1, 5):
        images.build(store)
        seal(store)
        images.images[f"{number}.png"] = number
    assert {path.name for path in (store / "index").iterdir()} == {"3", "4", "zarr.json"}
    assert verify(store) == []


def test_sealing_a_grown_store_reads_new_shards_only_unless_an_old_record_is_another(
    folder: Callable[..., Any], tmp_path: Path
) -> None:
    store, images = tmp_path / "cache", folder({"a.png": 100, "b.png": 2}, shard_rows=1)
    images.build(store)
    seal(store)
    images.images["c.png"] = 3
    images.build(store)
    calls: list[tuple[int, int]] = []
    seal(store, lambda done, total: calls.append((done, total)))
    assert calls == [(1, 1)]
    images.images["d.png"] = 4
    images.build(store)
    card, chain = load_plans(LocalStorage(store))
    log = CommitLog.of_chain(LocalStorage(store), card, chain)
    files = {array.file_of(0): (store / array.file_of(0)).read_bytes() for array in log.arrays}
    log.commit(0, files, log.record(0).row_digests, {0: "another reason"})
    calls.clear()
    seal(store, lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert verify(store) == []


def test_a_sealed_shard_that_was_lost_is_named_when_the_grown_store_is_sealed(
    folder: Callable[..., Any], tmp_path: Path
) -> None:
    store, images = tmp_path / "cache", folder(dict(IMAGES), shard_rows=1)
    images.build(store)
    seal(store)
    images.images["d.png"] = 4
    images.build(store)
    (store / "features" / "c.1.0.0").unlink()
    with pytest.raises(TeacherCacheError, match=r"not complete: shards 1\)"):
        seal(store)
    assert images.build(store) == [1]
    seal(store)
    check(TeacherCache.open(store), images)


def test_a_renamed_or_moved_image_keeps_its_row(folder: Callable[..., Any], tmp_path: Path) -> None:
    store, images = tmp_path / "cache", folder(dict(IMAGES), shard_rows=2)
    images.build(store)
    expected = seal(store).content_hash
    before = shard_files(store)
    images.images = {"elsewhere/a.png": 1, "ü.png": 3}
    assert images.build(store) == []
    assert seal(store).content_hash == expected
    cache = TeacherCache.open(store)
    check(cache, images)
    assert cache.generations == 2
    assert cache.row_of("elsewhere/a.png") == cache.row_of("a.png") == 0
    assert len(cache) == 3
    after = shard_files(store)
    assert {name: after[name] for name in before} == before


def test_a_store_that_is_moved_keeps_its_rows(folder: Callable[..., Any], tmp_path: Path) -> None:
    images = folder(dict(IMAGES))
    images.build(tmp_path / "cache")
    seal(tmp_path / "cache")
    shutil.move(tmp_path / "cache", tmp_path / "moved")
    check(TeacherCache.open(tmp_path / "moved"), images)
    assert images.build(tmp_path / "moved") == []


def test_a_changed_image_gets_a_row_of_its_own_and_the_old_one_is_known_by_content(
    folder: Callable[..., Any], tmp_path: Path
) -> None:
    store, images = tmp_path / "cache", folder(dict(IMAGES), shard_rows=2)
    images.build(store)
    seal(store)
    old = TeacherCache.open(store)
    digest = old.sha256_of(old.row_of("b.png"))
    images.images["b.png"] = 7
    assert images.build(store) == [2]
    seal(store)
    cache = TeacherCache.open(store)
    check(cache, images)
    assert cache.row_of("b.png") == 4
    assert cache.row_of(digest) == 1
    assert np.array_equal(cache[digest].features, folder(dict(IMAGES)).wanted("b.png")["features"])
    with pytest.raises(TeacherCacheError, match=r"row 4 of .* was made from an image with sha256"):
        cache.check_content(4, digest)


def test_an_image_that_failed_and_was_restored_is_added_and_no_longer_listed(
    folder: Callable[..., Any], tmp_path: Path
) -> None:
    store = tmp_path / "cache"
    images = folder({"a.png": 1, "lost.png": None, "cut.png": 100}, shard_rows=2)
    images.build(store)
    assert {failure.path for failure in seal(store).failures} == {"lost.png", "cut.png"}
    images.images |= {"lost.png": 2, "cut.png": 3}
    assert images.build(store) == [1]
    assert seal(store).failures == ()
    cache = TeacherCache.open(store)
    check(cache, images)
    assert cache.failures == list(status(store).failures) == []
    with pytest.raises(TeacherCacheError, match=r"row 1 of .* holds no data: .* failed: cut"):
        cache[1]
    assert verify(store) == []


def test_new_failures_are_told_and_known_ones_make_no_generation(
    folder: Callable[..., Any], tmp_path: Path
) -> None:
    store, images = tmp_path / "cache", folder({"a.png": 1, "lost.png": None})
    images.build(store)
    seal(store)
    images.build(store)
    assert status(store).generations == 1
    images.images["gone.png"] = None
    images.build(store)
    assert [failure.path for failure in status(store).failures] == ["lost.png", "gone.png"]
    seal(store)
    assert TeacherCache.open(store).generations == 2
    with pytest.raises(TeacherCacheError, match=r"gone\.png has no teacher row"):
        TeacherCache.open(store)["gone.png"]
    images.images["a.png"] = None  # was readable once: its row stays
    images.build(store)
    assert status(store).state == "sealed"


def test_fewer_images_than_stored_leave_the_store_as_it_is(
    folder: Callable[..., Any], tmp_path: Path, read_only: Any
) -> None:
    store, images = tmp_path / "cache", folder(dict(IMAGES))
    images.build(store)
    seal(store)
    images.images = {"c.png": 3}
    assert images.build(read_only(store)) == []
    assert info(read_only(store))["state"] == "sealed"
    assert len(TeacherCache.open(read_only(store))) == 3


def test_another_card_is_refused_before_a_store_grows(
    folder: Callable[..., Any], tmp_path: Path
) -> None:
    store, images = tmp_path / "cache", folder(dict(IMAGES), shard_rows=4)
    images.build(store)
    images.card = replace(images.card, shard_rows=8, geometry="crop")
    images.images["d.png"] = 4
    with pytest.raises(TeacherCacheError, match="geometry is 'pad'") as caught:
        images.build(store)
    assert "shard_rows is 4 in the store, 8 asked for (--shard-rows)" in str(caught.value)
    assert status(store).generations == 1


def test_of_two_processes_that_add_images_at_once_both_get_theirs(
    folder: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, images = tmp_path / "cache", folder(dict(IMAGES), shard_rows=2)
    images.build(store)
    seal(store)
    faster = folder({"d.png": 4, "both.png": 5}, shard_rows=2)

    def publish(*plan: Any) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(begin_module, "publish_generation", publish_generation)
            faster.begin(store)
        monkeypatch.setattr(begin_module, "publish_generation", publish_generation)
        published: bool = publish_generation(*plan)
        return published

    monkeypatch.setattr(begin_module, "publish_generation", publish)
    images.images |= {"e.png": 6, "both.png": 5}
    assert images.build(store) == [2, 3]
    assert seal(store).generations == 3
    cache = TeacherCache.open(store)
    check(cache, images)
    check(cache, faster)
    assert len(cache) == 6


def test_metadata_is_never_shortened_by_a_process_that_knows_less(
    folder: Callable[..., Any], tmp_path: Path
) -> None:
    store, images = tmp_path / "cache", folder(dict(IMAGES), shard_rows=2)
    images.build(store)
    short = (store / "features" / "zarr.json").read_bytes()
    images.images["d.png"] = 4
    images.build(store)
    (store / "features" / "zarr.json").write_bytes(short)
    seal(store)
    check(TeacherCache.open(store), images)


def test_a_shard_whose_image_no_path_leads_to_any_more_can_still_be_read(
    folder: Callable[..., Any], tmp_path: Path
) -> None:
    store, images = tmp_path / "cache", folder({"a.png": 1, "b.png": 2}, shard_rows=2)
    images.build(store)
    images.images["a.png"] = 3
    images.build(store)
    plan = images.begin(store).plan
    assert plan.path_of_rows() == {1: "b.png", 2: "a.png"}
    seal(store)
    assert TeacherCache.open(store)[0].source_size == tuple(
        folder({"old.png": 1}).wanted("old.png")["source_size"]
    )
