import multiprocessing
import operator
import pickle  # noqa: TID251 - what worker processes do to a cache
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from medalign.teacher_cache.format.arrays import row_arrays
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import Failure, TeacherCacheError
from medalign.teacher_cache.seal import seal

Maker = Callable[..., Path]


@pytest.fixture
def store(small: Any, tmp_path: Path) -> Path:
    small.write(small.begin(tmp_path / "cache"))
    seal(tmp_path / "cache")
    return tmp_path / "cache"


def test_a_row_is_found_by_path_by_content_and_by_number(small: Any, store: Path) -> None:
    cache = TeacherCache.open(store)
    assert len(cache) == 10
    assert cache.paths == list(small.plan.paths)
    assert cache.row_of("images/5.png") == cache.row_of("again/é 5.png") == 5
    number: Any = np.int64(5)
    assert cache.row_of(small.plan.content[5]) == cache.row_of(number) == 5
    assert cache.sha256_of(5) == small.plan.content[5]
    assert "images/5.png" in cache
    assert small.plan.content[5] in cache
    assert 9 in cache


@pytest.mark.parametrize("key", ["images/77.png", "f" * 64, "F" * 64, 10, -1, "", None, 1.5])
def test_an_absent_key_is_named_with_the_number_of_rows(store: Path, key: Any) -> None:
    cache = TeacherCache.open(store)
    assert key not in cache
    with pytest.raises(KeyError, match=r"is not in .* which has 10 rows") as caught:
        cache[key]
    assert repr(key) in str(caught.value).replace("\\'", "'")


def test_a_batch_holds_rows_in_the_order_asked_for(store: Path) -> None:
    cache = TeacherCache.open(store)
    batch = cache.read([9, 0, 9, 4])
    assert batch.features.shape == (4, 6, 5)
    assert batch.source_size.tolist() == [[109, 200], [100, 200], [109, 200], [104, 200]]
    for position, row in enumerate([9, 0, 9, 4]):
        for name in ("features", "attention", "valid"):
            assert np.array_equal(getattr(batch, name)[position], getattr(cache[row], name))
    assert cache.read(np.array([], np.int32)).attention.shape == (0, 6)
    with pytest.raises(KeyError, match="10 is not in"):
        cache.read([0, 10])


def test_a_failed_image_is_an_error_with_path_and_reason(small: Any, store: Path) -> None:
    cache = TeacherCache.open(store)
    assert cache.failures == [
        Failure("bad/no.png", "zero bytes"),
        Failure("images/6.png", "truncated file"),
    ]
    for key in ("images/6.png", 6, small.plan.content[6]):
        assert key not in cache
        with pytest.raises(TeacherCacheError, match=r"row 6 of .*images/6.png: truncated file"):
            cache[key]
    assert "bad/no.png" not in cache
    with pytest.raises(TeacherCacheError, match=r"bad/no.png .*zero bytes"):
        cache["bad/no.png"]
    with pytest.raises(TeacherCacheError, match="row 6"):
        cache.read([5, 6])


def test_a_changed_image_is_refused_with_both_digests(small: Any, store: Path) -> None:
    cache = TeacherCache.open(store)
    cache.check_content(3, small.plan.content[3])
    with pytest.raises(TeacherCacheError) as caught:
        cache.check_content(3, "e" * 64)
    assert "row 3" in str(caught.value)
    assert small.plan.content[3] in str(caught.value)
    assert "e" * 64 in str(caught.value)
    assert "`medalign cache build ... --rehash`" in str(caught.value)  # a plain build does nothing
    assert f"`medalign cache seal {store}`" in str(caught.value)


def test_an_unsealed_store_is_refused_with_the_commands_that_finish_it(
    small: Any, tmp_path: Path
) -> None:
    store = tmp_path / "cache"
    writer = small.begin(store)
    small.write(writer, [1])
    with pytest.raises(TeacherCacheError) as caught:
        TeacherCache.open(store)
    message = str(caught.value)
    assert "1 of 3 shards" in message
    unknown = "MANIFEST --images DIR --expert NAME"
    assert f"`medalign cache build {unknown} --out {store}`" in message
    assert f"medalign cache seal {store}" in message
    small.write(writer)
    with pytest.raises(TeacherCacheError) as caught:
        TeacherCache.open(store)
    assert "cache build" not in str(caught.value)


def test_a_building_store_gives_committed_rows_only(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    writer = small.begin(store)
    small.write(writer, [1])
    cache = TeacherCache.open(store, allow_building=True)
    assert (cache.state, cache.content_hash) == ("building", None)
    assert cache["images/5.png"].source_size == (105, 200)
    assert "images/5.png" in cache
    assert "images/1.png" not in cache
    with pytest.raises(TeacherCacheError, match=r"row 1 of .* not written yet: shard 0 is pending"):
        cache["images/1.png"]
    with pytest.raises(TeacherCacheError, match="truncated file"):
        cache[6]
    with pytest.raises(TeacherCacheError, match="zero bytes"):
        cache["bad/no.png"]
    assert cache.failures == [
        Failure("bad/no.png", "zero bytes"),
        Failure("images/6.png", "truncated file"),
    ]
    small.write(writer)
    assert cache[1].source_size == (101, 200)
    assert cache.sha256_of(1) == small.plan.content[1]


def test_what_is_not_a_store_is_refused_each_by_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    zarr.open_group(tmp_path / "group", mode="w")
    zarr.create_array(tmp_path / "array", shape=(1,), dtype="u1")
    messages = {
        "missing": "does not exist",
        "file": "not a teacher cache: it has no zarr.json",
        "empty": "not a teacher cache: it has no zarr.json",
        "group": "a Zarr store but not a teacher cache",
        "array": "a Zarr store but not a teacher cache",
    }
    for name, message in messages.items():
        with pytest.raises(TeacherCacheError, match=message) as caught:
            TeacherCache.open(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["features/c.1.0.0", "attention/c.1.0", "valid/c.1.0"])
@pytest.mark.parametrize("spoil", ["missing", "empty", "short", "long"])
def test_a_spoilt_shard_file_is_an_error_and_never_fill_values(
    store: Path, name: str, spoil: str
) -> None:
    path = store / name
    data = path.read_bytes()
    if spoil == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "short": data[:-7], "long": data + b"0"}[spoil])
    cache = TeacherCache.open(store)
    assert cache[0].source_size == (100, 200)
    assert 5 in cache  # damage is an error when it is read, not a row that was never there
    with pytest.raises(TeacherCacheError) as caught:
        cache[5]
    assert "row 5" in str(caught.value)
    assert name in str(caught.value)
    assert f"medalign cache verify --mend {store}" in str(caught.value)


def test_a_shard_that_vanishes_while_reading_is_an_error(store: Path) -> None:
    cache = TeacherCache.open(store)
    cache[0]
    (store / "features" / "c.1.0.0").unlink()
    with pytest.raises(TeacherCacheError, match=r"row 4 of .*features is damaged"):
        cache[4]


def test_files_that_are_open_are_read_on_when_somebody_replaces_them(store: Path) -> None:
    # a build of another cache at the same place must not mix its rows into ours
    cache = TeacherCache.open(store)
    expected = cache[4].features
    shutil.rmtree(store)
    assert np.array_equal(cache[4].features, expected)
    with pytest.raises(TeacherCacheError, match=r"row 0 of .*missing"):
        cache[0]


def test_nan_in_a_row_is_an_error(small: Any, store: Path) -> None:
    # a checksum cannot tell, because the lie was written with a right one
    features = row_arrays(small.card)[0]
    values = np.full((4, 6, 5), np.nan, np.float16)
    (store / features.file_of(1)).write_bytes(features.encode(values))
    with pytest.raises(
        TeacherCacheError, match=r"features is damaged: features/c.1.0.0: it holds NaN"
    ):
        TeacherCache.open(store)[5]


def test_a_cache_survives_pickling_without_its_handles(store: Path) -> None:
    cache = TeacherCache.open(store)
    cache["images/5.png"]
    data = pickle.dumps(cache)
    assert b"zarr" not in data
    back = pickle.loads(data)
    assert np.array_equal(back["images/5.png"].features, cache[5].features)
    assert back.failures == cache.failures
    assert back.content_hash == cache.content_hash


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same_rows(store: Path, method: str) -> None:
    cache = TeacherCache.open(store)
    expected = cache["images/5.png"]  # the parent has open handles when it forks
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        keys = ["images/5.png", 5, 0, 9] * 3
        calls = pool.starmap_async(operator.getitem, [(cache, key) for key in keys])
        actual: Any = calls.get(60)
    assert np.array_equal(actual[0].features, expected.features)
    assert [row.source_size[0] for row in actual] == [105, 105, 100, 109] * 3


def test_a_moved_store_keeps_its_rows(store: Path, tmp_path: Path) -> None:
    expected = TeacherCache.open(store)["images/5.png"].features
    shutil.move(store, tmp_path / "elsewhere")
    cache = TeacherCache.open(str(tmp_path / "elsewhere"))
    assert np.array_equal(cache["images/5.png"].features, expected)


def test_the_shared_fixture_makes_what_it_is_asked_for(synthetic_store: Maker) -> None:
    paths = ["a.png", "b/c.png", "d.png"]
    cache = TeacherCache.open(synthetic_store(3, "2x3", 7, paths, geometry="crop", shard_rows=2))
    assert cache.paths == paths
    row = cache["b/c.png"]
    assert row.features.shape == (6, 7)
    assert np.allclose(np.linalg.norm(row.features.astype("f8"), axis=1), 1, atol=1e-3)
    assert row.attention.sum() == pytest.approx(1)
    assert row.valid.all()
    assert cache.card.geometry == "crop"


def test_reading_and_checking_a_cache_load_no_zarr() -> None:
    modules = ("audit", "diff", "reader")
    code = (
        f"import sys, importlib; [importlib.import_module('medalign.teacher_cache.' + m) for m in "
        f"{modules}]; sys.exit('zarr' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
