"""A store that lies, with right digests and checksums, is refused before it costs anything."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medalign.teacher_cache.audit import status, verify
from medalign.teacher_cache.copy import merge, subset
from medalign.teacher_cache.format.arrays import read_table, row_arrays, table_files
from medalign.teacher_cache.generations import Layout
from medalign.teacher_cache.index import table_shapes, values_digest
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import CacheCard, TeacherCacheError
from medalign.teacher_cache.seal import seal
from medalign.teacher_cache.storage.local import LocalStorage
from medalign.teacher_cache.storage.untrusted import canonical_json, with_digest, without_digest

PATHS = ["a.png", "b/ü.png", "c.png"]


@pytest.fixture
def store(synthetic_store: Callable[..., Path]) -> Path:
    return synthetic_store(
        3, "1x2", 3, PATHS, shard_rows=2, failures={1: "torn"}, unreadable=["d.png"]
    )


def everything(store: Path) -> None:
    """Read all that a reader can learn from a store."""
    cache = TeacherCache.open(store)
    for row in (0, 2):
        assert cache.row_of(cache.sha256_of(row)) == row
    assert [cache.row_of(path) for path in cache.paths] == [0, 1, 2]
    cache.read([0, 2])
    assert len(cache.failures) == 2


def lie(store: Path, **changes: Any) -> None:
    """Edit the attributes as an attacker would: with a right digest."""
    path = store / "zarr.json"
    root = json.loads(path.read_bytes())
    fields = without_digest(root["attributes"]["medalign"], "test")
    for key, value in changes.items():
        if value is None:
            del fields[key]
        else:
            fields[key] = value
    root["attributes"]["medalign"] = with_digest(fields)
    path.write_text(json.dumps(root))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generations": [2**31 - 1], "rows": 2**31 - 1}, "shape should be"),
        ({"generations": [3, 2**31 - 1]}, "2147483651 rows; the format allows"),
        ({"generations": [1] * 70_000}, "number of generations takes 1 to 65536"),
        ({"generations": [0, 3]}, "rows of generation 0 takes 1 to"),
        ({"generations": [2, 1]}, "number of plans takes 2 to 2"),
        ({"generations": [3.0]}, "rows of generation 0 takes"),
        ({"generations": [True]}, "rows of generation 0 takes"),
        ({"generations": [-1]}, "rows of generation 0 takes"),
        ({"generations": []}, "number of generations takes"),
        ({"generations": 3}, "generations takes a list"),
        ({"generations": [4], "rows": 4, "paths": 4}, "shape should be"),
        ({"plans": ["../../x"]}, "plans takes 64"),
        ({"plans": []}, "number of plans takes 1"),
        ({"rows": 2**40}, "rows takes 3 to 3"),
        ({"rows": 3.0}, "rows takes"),
        ({"paths": 0}, "paths takes 1 to"),
        ({"paths": 2}, "shape should be"),
        ({"paths": 2**31 - 1, "text_bytes": 2**40}, "shape should be"),
        ({"text_bytes": 1}, "text_bytes takes 3 to"),
        ({"text_bytes": 2**39}, "shape should be"),
        ({"format": 2}, "reads teacher-cache format 1, got 2"),
        ({"format": True}, "format 1, got True"),
        ({"format": None}, "format 1, got None"),
        ({"state": "open"}, "state takes one of building, sealed"),
        ({"state": "building"}, "unknown keys"),
        ({"card": {}}, "card: missing keys"),
        ({"card": None}, "missing keys \\['card'\\]"),
        ({"fingerprint": "0" * 64}, "fingerprint does not fit the card"),
        ({"content_hash": "../../x"}, "content_hash takes 64"),
        ({"tables": {"../../etc": "0" * 64}}, "tables are"),
        ({"tables": {}}, "tables are"),
        ({"tables": []}, "tables takes a JSON object"),
        ({"failures": [["a", "b", 99]]}, "failures: row takes 0 to 2"),
        ({"failures": [["a", "b"]]}, "path, reason and row"),
        ({"failures": [[None, "b", None]]}, "failures: path takes a text"),
        ({"failures": [[1, "b", 0]]}, "failures: path takes a text"),
        ({"failures": {}}, "failures takes a list"),
        ({"certificate": 5}, "certificate takes a JSON object"),
        ({"surprise": 5}, "unknown keys \\['surprise'\\]"),
    ],
)
def test_attributes_that_lie_are_refused(
    store: Path, changes: dict[str, Any], message: str
) -> None:
    lie(store, **changes)
    with pytest.raises(TeacherCacheError, match=message) as caught:
        everything(store)
    assert str(store) in str(caught.value)


def test_a_card_that_lies_about_its_arrays_is_refused(store: Path) -> None:
    cache = TeacherCache.open(store)
    for key, value in {"grid": "2x1", "shard_rows": 1}.items():
        card = {**cache.card.to_json(), key: value}
        lie(store, card=card)
        with pytest.raises(TeacherCacheError, match=r"fingerprint|shape|chunk_grid") as caught:
            everything(store)
        assert str(store) in str(caught.value)
    huge = cache.card.to_json() | {"grid": "1024x1024"}
    lie(store, card=huge)
    with pytest.raises(TeacherCacheError, match=r"fingerprint|format allows|24x24"):
        everything(store)


def test_a_lie_that_all_metadata_agrees_on_costs_no_memory(store: Path) -> None:
    """2^31 rows in the attribute, in every array and every table; only the files are small."""
    cache, rows, text = TeacherCache.open(store), 2**31 - 1, 2**40
    lie(store, generations=[rows], rows=rows, paths=rows, text_bytes=text)
    for array in row_arrays(cache.card):
        (store / array.name / "zarr.json").write_text(json.dumps(array.metadata(rows)))
    for name, (shape, _) in table_shapes(Layout(2, (rows,)), rows, text).items():
        path = store / "index" / "1" / name / "zarr.json"
        metadata = json.loads(path.read_bytes()) | {"shape": shape}
        grid = metadata["chunk_grid"]["configuration"]
        longest = shape.index(max(shape))
        for length in (2**17, 2**18, 2**19, 2**20, 2**22):  # whatever the format takes
            grid["chunk_shape"] = [
                length if axis == longest else side for axis, side in enumerate(shape)
            ]
            path.write_text(json.dumps(metadata))
            tracemalloc.start()
            try:
                with pytest.raises(TeacherCacheError, match=r"shape|chunk|bytes and should have"):
                    everything(store)
                assert tracemalloc.get_traced_memory()[1] < 20_000_000
            finally:
                tracemalloc.stop()


def forge_table(store: Path, generations: int, name: str, values: Any) -> None:
    """Put other values into a table of the index, with a right digest."""
    for file, data in table_files(values).items():
        (store / "index" / str(generations) / name / file).write_bytes(data)
    root = json.loads((store / "zarr.json").read_bytes())
    tables = root["attributes"]["medalign"]["tables"]
    lie(store, tables=tables | {name: values_digest(values)})


@pytest.mark.parametrize("row", [-1, 3, 7, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("name", ["content_row", "path_hash_row"])
def test_a_table_that_leads_to_no_row_is_refused(
    folder: Callable[..., Any], tmp_path: Path, name: str, row: int
) -> None:
    """Rows are 0 to 2 and 4 to 6; row 3 is a hole."""
    store, images = tmp_path / "cache", folder({f"{n}.png": n for n in range(3)}, shard_rows=2)
    images.build(store)
    images.images |= {f"{n}.png": n for n in range(3, 6)}
    images.build(store)
    seal(store)
    sound = TeacherCache.open(store)
    digests = [sound.sha256_of(row) for row in (0, 1, 2, 4, 5, 6)]
    assert [sound.row_of(digest) for digest in digests] == [0, 1, 2, 4, 5, 6]
    values = read_table(LocalStorage(store), f"index/2/{name}", (6,), "int32").copy()
    values[2] = row
    forge_table(store, 2, name, values)
    match = f"index/2/{name} names a row that is not one of the 6"
    key = digests[0] if name == "content_row" else "0.png"
    with pytest.raises(TeacherCacheError, match=match):
        TeacherCache.open(store)[key]
    assert [damage.where for damage in verify(store)] == [f"index/2/{name}"]
    if name == "path_hash_row":
        with pytest.raises(TeacherCacheError, match=match):
            subset(store, ["0.png"], tmp_path / "out")
        with pytest.raises(TeacherCacheError, match=match):
            merge([store, store], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def forge(store: Path, number: int, **changes: Any) -> None:
    """Edit a commit record, with a right digest."""
    path = store / "_commit" / f"{number}.json"
    fields = without_digest(json.loads(path.read_bytes()), "test")
    path.write_bytes(canonical_json(with_digest(fields | changes)))


FILES = json.loads(
    """{"features/c.0.0.0": [0, "x"], "attention/c.0.0": [0, "x"], "valid/c.0.0": [0, "x"],
    "source_size/c.0.0": [0, "x"]}"""
)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"generation": 1},
        {"plan": "0" * 64},
        {"fingerprint": "0" * 64},
        {"shard": 1},
        {"rows": [0, 2**31]},
        {"files": {}},
        {"files": {**FILES, "../../etc/passwd": [1, "0" * 64]}},
        {"files": {name: [2**62, "0" * 64] for name in FILES}},
        {"files": {name: [-1, "0" * 64] for name in FILES}},
        {"files": {name: [56, "../x"] for name in FILES}},
        {"files": dict.fromkeys(FILES, 5)},
        {"row_digests": ""},
        {"row_digests": "0" * 64},
        {"row_digests": "1" * 64},
        {"row_digests": "1" * 32},
        {"row_digests": "../" * 20 + "1234"},
        {"row_digests": ["1" * 32, None]},
        {"row_digests": 5},
        {"failures": {}},
        {"failures": {"0": "x", "1": "y"}},
        {"failures": {"1": "y", "99": "z"}},
        {"failures": {"1": "y", "-1": "z"}},
        {"failures": {"1": 5}},
        {"failures": []},
        {"surprise": 1},
    ],
)
def test_a_record_that_lies_makes_its_shard_damaged(store: Path, changes: dict[str, Any]) -> None:
    forge(store, 0, **changes)
    assert status(store).damaged == (0,)
    assert verify(store)[0].where == "_commit/0.json"


def rewrite(store: Path, name: str, values: Any, card: CacheCard) -> None:
    """Put other values into the first shard of an array, with right checksums."""
    array = next(array for array in row_arrays(card) if array.name == name)
    (store / array.file_of(0)).write_bytes(array.encode(np.asarray(values, array.dtype)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-30])
@pytest.mark.parametrize("name", ["features", "attention"])
def test_values_that_no_writer_writes_are_refused(store: Path, name: str, value: float) -> None:
    card = TeacherCache.open(store).card
    shape = (2, 2, 3) if name == "features" else (2, 2)
    values = np.zeros(shape)
    values[0, 0] = value
    rewrite(store, name, values, card)
    cache = TeacherCache.open(store)
    if name == "features" and np.isfinite(value):
        assert cache[0].features[0].min() <= 0  # a feature may be negative
        return
    with pytest.raises(TeacherCacheError, match=rf"row 0 of .*: {name}"):
        cache[0]
    with pytest.raises(TeacherCacheError, match=rf"row 0 of .*: {name}"):
        cache.read([2, 0])


def test_a_growing_store_whose_seal_is_of_another_chain_is_refused(
    folder: Callable[..., Any], tmp_path: Path
) -> None:
    images = folder({"a.png": 1, "b.png": 2, "c.png": 3}, shard_rows=2)
    images.build(tmp_path / "cache")
    seal(tmp_path / "cache")
    other = folder({"a.png": 1}, shard_rows=2)
    other.build(tmp_path / "other")
    plan = (tmp_path / "other/_commit/plan.0.json").read_bytes()
    (tmp_path / "cache/_commit/plan.0.json").write_bytes(plan)
    with pytest.raises(TeacherCacheError, match="does not fit the plan"):
        images.begin(tmp_path / "cache")


def test_a_damaged_root_says_how_to_mend_it(small: Any, tmp_path: Path) -> None:
    store = tmp_path / "cache"
    small.write(small.begin(store))
    (store / "zarr.json").write_text("{")
    with pytest.raises(TeacherCacheError, match=r"delete .*zarr\.json, then run the same"):
        TeacherCache.open(store)
    (store / "zarr.json").unlink()
    assert small.begin(store).pending() == []


def test_a_path_that_leaves_the_image_folder_is_not_handed_out(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TeacherCache.open(store)
    text = np.frombuffer(b"../../a.png" + b"b" * 5, np.uint8)
    ends = np.array([11, 12, 16])
    index: Any = cache._index
    monkeypatch.setitem(index._tables, "path_text", text)
    monkeypatch.setitem(index._tables, "path_end", ends)
    with pytest.raises(TeacherCacheError, match="must stay below the image folder"):
        _ = cache.paths
