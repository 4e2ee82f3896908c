"""What was never written is an error that names row and path, never zeros."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from medalign.teacher_cache.audit import status
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import TeacherCacheError
from medalign.teacher_cache.seal import seal

Write = Callable[[Any, Iterable[int]], None]


@pytest.fixture
def store(small: Any, tmp_path: Path) -> Path:
    """A store of three shards of which only the second is written."""
    small.write(small.begin(tmp_path / "cache"), [1])
    return tmp_path / "cache"


def test_an_unsealed_cache_is_not_opened_for_training(small: Any, store: Path) -> None:
    with pytest.raises(TeacherCacheError, match=r"not sealed: 1 of 3 shards"):
        TeacherCache.open(store)
    small.write(small.begin(store))
    with pytest.raises(TeacherCacheError, match=r"not sealed: 3 of 3 shards .*cache seal"):
        TeacherCache.open(store)


@pytest.mark.parametrize("key", ["images/1.png", 1, "again/x.png"])
def test_a_row_of_a_pending_shard_is_an_error(store: Path, key: str | int) -> None:
    cache = TeacherCache.open(store, allow_building=True)
    if key == "again/x.png":
        with pytest.raises(KeyError, match=r"again/x\.png"):
            cache[key]
        return
    with pytest.raises(TeacherCacheError, match=r"row 1 of .*cache is not written yet"):
        cache[key]
    with pytest.raises(TeacherCacheError, match=r"row 1 of .*cache is not written yet"):
        cache.read([cache.row_of(key)])


def test_files_without_a_record_do_not_count(store: Path) -> None:
    (store / "_commit" / "1.json").unlink()
    cache = TeacherCache.open(store, allow_building=True)
    with pytest.raises(TeacherCacheError, match=r"row 5 of .* not written yet: shard 1 is"):
        cache[5]


def test_a_hole_between_generations_is_no_row(folder: Callable[..., Any], tmp_path: Path) -> None:
    store, images = tmp_path / "cache", folder({"a.png": 1, "b.png": 2}, shard_rows=4)
    images.build(store)
    seal(store)
    images.images["c.png"] = 3
    images.build(store)
    seal(store)
    cache = TeacherCache.open(store)
    assert cache.row_numbers().tolist() == [0, 1, 4]
    assert cache[4].source_size == tuple(images.wanted("c.png")["source_size"])
    for hole in (2, 3, 5, 7, 8, -1):
        assert hole not in cache
        for read in (cache.__getitem__, cache.sha256_of, lambda row: cache.read([row])):
            with pytest.raises(KeyError, match=f"{hole} is not in .*cache, which has 3 rows"):
                read(hole)
    # plain zarr-python knows no holes, so they read as what no row can be
    group = zarr.open_group(store, mode="r")
    for hole in (2, 3):
        assert np.isnan(np.asarray(group["features"][hole])).all()  # type: ignore[index]
        assert np.isnan(np.asarray(group["attention"][hole])).all()  # type: ignore[index]
        assert not np.asarray(group["valid"][hole]).any()  # type: ignore[index]


def test_rows_that_are_added_are_no_rows_until_they_are_sealed(
    folder: Callable[..., Any], tmp_path: Path
) -> None:
    store, images = tmp_path / "cache", folder({"a.png": 1}, shard_rows=2)
    images.build(store)
    seal(store)
    images.images["b.png"] = 2
    images.build(store)
    assert status(store).state == "growing"
    cache = TeacherCache.open(store)
    for key in ("b.png", 2):
        with pytest.raises(KeyError, match="which has 1 rows"):
            cache[key]


@pytest.mark.parametrize("name", ["features/c.0.0.0", "attention/c.0.0", "valid/c.0.0"])
def test_a_sealed_shard_that_vanished_is_an_error(small: Any, tmp_path: Path, name: str) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    seal(store)
    (store / name).unlink()
    cache = TeacherCache.open(store)
    for row in range(4):
        with pytest.raises(TeacherCacheError, match=rf"row {row} of .*{name.split('/')[0]}"):
            cache[row]
    assert cache[4].source_size == (104, 200)


def test_an_image_that_failed_is_an_error_with_path_and_reason(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    seal(store)
    cache = TeacherCache.open(store)
    with pytest.raises(TeacherCacheError, match=r"row 6 .*images/6\.png: truncated file"):
        cache["images/6.png"]
    with pytest.raises(TeacherCacheError, match=r"bad/no\.png has no teacher row"):
        cache["bad/no.png"]
