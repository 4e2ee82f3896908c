import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medalign.teacher_cache import copy
from medalign.teacher_cache.audit import status, verify
from medalign.teacher_cache.copy import merge, subset
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import TeacherCacheError
from medalign.teacher_cache.seal import seal
from medalign.teacher_cache.writer import TeacherCacheWriter

FIRST = {"a.png": 1, "b.png": 2, "bad.png": 100, "c.png": 3, "lost.png": None, "a2.png": 1}
SECOND = {"b.png": 2, "d.png": 4, "bad.png": 100, "e.png": 5, "gone.png": None, "f.png": 6}


@pytest.fixture
def sealed(folder: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """Build and seal a cache of a folder: `sealed("name", images, shard_rows=2)`."""

    def make(name: str, images: dict[str, int | None], **card: Any) -> Path:
        folder(images, **card).build(tmp_path / name)
        seal(tmp_path / name)
        return tmp_path / name

    return make


def check(store: Path, images: Any) -> None:
    cache = TeacherCache.open(store)
    for path, number in images.images.items():
        if number is None or number >= 100:
            with pytest.raises(TeacherCacheError, match=r"no file|cut"):
                cache[path]
        else:
            row, expected = cache[path], images.wanted(path)
            assert np.array_equal(row.features, expected["features"])
            assert np.array_equal(row.attention, expected["attention"])
            assert row.source_size == tuple(expected["source_size"])
    assert verify(store) == []


@pytest.mark.parametrize("shard_rows", [1, 2, 7])
def test_merging_gives_what_one_build_over_all_images_would(
    sealed: Callable[..., Path], folder: Callable[..., Any], tmp_path: Path, shard_rows: int
) -> None:
    first = sealed("first", FIRST, shard_rows=shard_rows)
    second = sealed("second", SECOND, shard_rows=2)
    expected = TeacherCache.open(sealed("union", FIRST | SECOND)).content_hash
    calls: list[tuple[int, int]] = []
    report = merge([first, second], tmp_path / "out", lambda *call: calls.append(call))
    assert report.content_hash == expected
    assert (report.rows, report.conflicts, report.differing) == (7, 0, 0)
    assert calls[-1] == (report.shards, report.shards) == (report.copied, report.copied)
    assert {failure.path for failure in report.failures} == {"lost.png", "gone.png", "bad.png"}
    check(tmp_path / "out", folder(FIRST | SECOND))
    assert TeacherCache.open(tmp_path / "out").card.shard_rows == shard_rows
    assert merge([second, first], tmp_path / "turned").content_hash == expected


def test_a_subset_holds_the_rows_and_failures_of_its_images(
    sealed: Callable[..., Path], folder: Callable[..., Any], tmp_path: Path
) -> None:
    source = sealed("source", FIRST | SECOND, shard_rows=2)
    expected = {"f.png": 6, "bad.png": 100, "lost.png": None, "a2.png": 1}
    report = subset(source, expected, tmp_path / "out")
    assert report.rows == 3
    assert {failure.path for failure in report.failures} == {"lost.png", "bad.png"}
    check(tmp_path / "out", folder(expected))
    assert TeacherCache.open(tmp_path / "out").paths == ["f.png", "bad.png", "a2.png"]
    assert report.content_hash == TeacherCache.open(sealed("direct", expected)).content_hash
    with pytest.raises(KeyError):
        TeacherCache.open(tmp_path / "out")["a.png"]


def test_a_subset_of_what_is_not_there_is_refused(
    sealed: Callable[..., Path], tmp_path: Path
) -> None:
    source = sealed("source", FIRST)
    with pytest.raises(TeacherCacheError, match=r"lacks 2 of the images, for example x\.png, y"):
        subset(source, ["a.png", "x.png", "y.png"], tmp_path / "out")
    with pytest.raises(TeacherCacheError, match="at least one readable image"):
        subset(source, ["lost.png"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_of_a_grown_store_are_copied_and_forgotten_ones_left_behind(
    folder: Callable[..., Any], sealed: Callable[..., Path], tmp_path: Path
) -> None:
    store, images = tmp_path / "grown", folder(dict(FIRST), shard_rows=2)
    images.build(store)
    images.images |= {"a.png": 7, "bad.png": 8, "lost.png": 9}
    images.build(store)
    seal(store)
    second = sealed("second", SECOND | {"bad.png": 8})
    report = merge([store, second], tmp_path / "out")
    assert report.rows == 9  # content 100 has no path any more, content 1 still has a2.png
    check(tmp_path / "out", folder(images.images | SECOND | {"bad.png": 8}))
    union = sealed("union", images.images | SECOND | {"bad.png": 8})
    assert report.content_hash == TeacherCache.open(union).content_hash


def test_a_path_with_two_images_is_refused_unless_the_first_is_preferred(
    sealed: Callable[..., Path], folder: Callable[..., Any], tmp_path: Path
) -> None:
    first = sealed("first", FIRST)
    second = sealed("second", SECOND | {"c.png": 9, "lost.png": 3})
    with pytest.raises(TeacherCacheError, match=r"1 paths have different images .* c\.png; --pre"):
        merge([first, second], tmp_path / "out")
    report = merge([first, second], tmp_path / "out", prefer="first")
    assert report.conflicts == 1
    check(tmp_path / "out", folder(SECOND | FIRST | {"lost.png": 3}))


def test_of_other_numbers_for_one_image_the_first_are_taken_and_counted(
    sealed: Callable[..., Path], folder: Callable[..., Any], tmp_path: Path, small: Any
) -> None:
    first = sealed("first", FIRST)
    other = folder({"b.png": 2, "z.png": 9})
    writer = other.begin(tmp_path / "second")
    writer.write(0, **small.rows(other.card, range(2)))
    seal(tmp_path / "second")
    report = merge([first, tmp_path / "second"], tmp_path / "out")
    assert report.differing == 1
    cache = TeacherCache.open(tmp_path / "out")
    assert np.array_equal(cache["b.png"].features, other.wanted("b.png")["features"])
    assert cache["z.png"].source_size == (101, 200)


def test_an_image_that_one_cache_could_not_decode_is_taken_from_the_other(
    sealed: Callable[..., Path], folder: Callable[..., Any], tmp_path: Path, small: Any
) -> None:
    first = sealed("first", FIRST)
    other = folder({"bad.png": 100})
    other.begin(tmp_path / "second").write(0, **small.rows(other.card, range(1)))
    seal(tmp_path / "second")
    second = tmp_path / "second"
    for name, sources in {"out": [first, second], "turned": [second, first]}.items():
        report = merge(sources, tmp_path / name)
        assert {failure.path for failure in report.failures} == {"lost.png"}
        assert TeacherCache.open(tmp_path / name)["bad.png"].source_size == (100, 200)


def test_caches_that_do_not_go_together_are_refused_with_what_differs(
    sealed: Callable[..., Path], folder: Callable[..., Any], tmp_path: Path
) -> None:
    first = sealed("first", FIRST)
    other = sealed("other", SECOND, geometry="crop", shard_rows=3)
    with pytest.raises(TeacherCacheError) as caught:
        merge([first, other], tmp_path / "out")
    assert "geometry is 'crop' there and 'pad' here" in str(caught.value)
    assert "shard_rows" not in str(caught.value)
    folder(SECOND).begin(tmp_path / "unsealed")
    with pytest.raises(TeacherCacheError, match="not sealed"):
        merge([first, tmp_path / "unsealed"], tmp_path / "out")
    with pytest.raises(TeacherCacheError, match="at least two"):
        merge([first], tmp_path / "out")
    second = sealed("second", SECOND)
    with pytest.raises(TeacherCacheError, match="is one of the caches to copy from"):
        merge([first, second], first)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["features/c.0.0.0", "attention/c.0.0", "source_size/c.0.0"])
def test_a_damaged_source_is_named_and_nothing_is_sealed(
    sealed: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    first, second = sealed("first", FIRST, shard_rows=4), sealed("second", SECOND)
    path = first / name
    data = bytearray(path.read_bytes())
    data[3] ^= 16
    path.write_bytes(data)
    with pytest.raises(TeacherCacheError, match=rf"row \d of {first}: {name.split('/')[0]}"):
        merge([first, second], tmp_path / "out")
    assert status(tmp_path / "out").state == "building"


def test_shards_that_changed_places_are_noticed_although_their_checksums_fit(
    sealed: Callable[..., Path], tmp_path: Path
) -> None:
    first = sealed("first", {"1.png": 1, "2.png": 2, "3.png": 3, "4.png": 4}, shard_rows=2)
    second = sealed("second", SECOND)
    one, other = first / "features/c.0.0.0", first / "features/c.1.0.0"
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    with pytest.raises(TeacherCacheError, match=r"row 0 of .*first does not match the digest"):
        merge([first, second], tmp_path / "out")


def test_a_copy_that_was_killed_is_finished_by_the_same_call(
    sealed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = sealed("first", FIRST, shard_rows=1), sealed("second", SECOND)
    expected = merge([first, second], tmp_path / "whole")
    write = TeacherCacheWriter.write_chunks

    def killed(self: TeacherCacheWriter, shard: int, *rest: Any) -> None:
        if shard == 3:
            raise KeyboardInterrupt
        write(self, shard, *rest)

    monkeypatch.setattr(TeacherCacheWriter, "write_chunks", killed)
    with pytest.raises(KeyboardInterrupt):
        merge([first, second], tmp_path / "out")
    monkeypatch.setattr(TeacherCacheWriter, "write_chunks", write)
    report = merge([first, second], tmp_path / "out")
    assert report == replace(expected, store=report.store, copied=expected.shards - 3)
    assert merge([first, second], tmp_path / "out").copied == 0
    assert tree(tmp_path / "whole") == tree(tmp_path / "out")


MERGE = """
import sys
from medalign.teacher_cache.copy import merge
print("ready", flush=True)
merge(sys.argv[2:], sys.argv[1])
"""


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_a_copy_killed_at_random_moments_ends_as_an_undisturbed_one(
    sealed: Callable[..., Path], tmp_path: Path, kills: int
) -> None:
    many = {f"{number}.png": number % 90 for number in range(60)}
    first, second = sealed("first", many, shard_rows=1), sealed("second", SECOND)
    expected = merge([first, second], tmp_path / "whole").content_hash
    rng, out = random.Random(kills), tmp_path / "out"
    command = [sys.executable, "-c", MERGE, str(out), str(first), str(second)]
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert merge([first, second], out).content_hash == expected
    assert verify(out) == []
    assert not list(out.rglob("*.partial"))


def test_a_store_of_other_images_is_not_finished_with_these(
    sealed: Callable[..., Path], folder: Callable[..., Any], tmp_path: Path
) -> None:
    source = sealed("source", FIRST)
    folder({"other.png": 77}).begin(tmp_path / "out")
    with pytest.raises(TeacherCacheError, match=r"out is a cache .* other images .* another --out"):
        subset(source, ["a.png"], tmp_path / "out")


@pytest.mark.parametrize("spelling", ["link", "relative", "dotted"])
def test_a_source_is_known_by_any_spelling(
    sealed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    first, second = sealed("first", FIRST), sealed("second", SECOND)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(first)
    spellings: dict[str, Path | str] = {
        "link": tmp_path / "link",
        "relative": "first",
        "dotted": "second/../first",
    }
    out = spellings[spelling]
    before = tree(first)
    for sources in ([first, second], [second, first]):
        with pytest.raises(TeacherCacheError, match="is one of the caches to copy from; give an"):
            merge(sources, out)
        with pytest.raises(TeacherCacheError, match="is one of the caches to copy from; give an"):
            subset(first, ["a.png"], out)
    assert tree(first) == before


@pytest.mark.parametrize(
    "images",
    [
        {"other.png": 77},
        {"a.png": 1},
        {"a.png": 2, "c.png": 1},
        {"a.png": 1, "c.png": 3, "z.png": 1},
        {"a.png": 1, "c.png": 3, "z.png": 7},
    ],
)
def test_a_cache_of_other_images_is_never_grown(
    sealed: Callable[..., Path], images: dict[str, int | None]
) -> None:
    source, out = sealed("source", {"a.png": 1, "c.png": 3}), sealed("out", images)
    copy_of = sealed("copy", {"a.png": 1})
    before = tree(out)
    with pytest.raises(TeacherCacheError, match=r"out is a cache .* other images .* another --out"):
        subset(source, ["a.png", "c.png"], out)
    with pytest.raises(TeacherCacheError, match=r"out is a cache .* other images .* another --out"):
        merge([source, copy_of], out)
    assert tree(out) == before


def test_a_copy_that_was_grown_since_is_left_alone(
    sealed: Callable[..., Path], folder: Callable[..., Any], tmp_path: Path
) -> None:
    source, out = sealed("source", {"a.png": 1, "c.png": 3, "lost.png": None}), tmp_path / "out"
    subset(source, ["a.png", "lost.png"], out)
    for images in ({"a.png": 1, "c.png": 3}, {"a.png": 3}):
        folder(images).build(out)
        seal(out)
        before = tree(out)
        if images["a.png"] == 1:
            assert subset(source, ["a.png", "lost.png"], out).copied == 0
        else:
            with pytest.raises(TeacherCacheError, match="other images"):
                subset(source, ["a.png", "lost.png"], out)
        with pytest.raises(TeacherCacheError, match="other images"):
            subset(source, ["c.png"], out)
        assert tree(out) == before


def tree(store: Path) -> dict[str, bytes]:
    """Return the bytes of every file of a store."""
    files = (path for path in store.rglob("*") if path.is_file())
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def test_many_paths_find_their_rows(sealed: Callable[..., Path], tmp_path: Path) -> None:
    images = {hashlib.sha256(str(n).encode()).hexdigest() + ".png": n % 37 for n in range(90)}
    source = sealed("source", images, shard_rows=8)
    opened = copy._Source.open(source)
    cache = TeacherCache.open(source)
    assert opened.paths() == {path: cache.row_of(path) for path in images}
    assert subset(source, images, tmp_path / "out").rows == 37
