"""Every flipped bit in any file of a sealed store is an error or changes nothing."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medalign.teacher_cache.audit import verify
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import TeacherCacheError
from medalign.teacher_cache.strict import with_digest, without_digest

PATHS = ["a.png", "b/ü.png", "c.png"]


@pytest.fixture
def store(synthetic_store: Callable[..., Path]) -> Path:
    return synthetic_store(
        3, "1x2", 3, PATHS, shard_rows=2, failures={1: "torn"}, unreadable=["d.png"]
    )


def everything(store: Path) -> dict[str, Any]:
    """All that a reader can learn from a store, as plain comparable values."""
    cache = TeacherCache.open(store)
    rows = {}
    for row in (0, 2):
        found = cache[row]
        arrays = (found.features, found.attention, found.valid, np.array(found.source_size))
        rows[row] = [array.tobytes() for array in arrays]
    return {
        "rows": rows,
        "places": [cache.row_of(path) for path in cache.paths],
        "digests": [cache.sha256_of(row) for row in range(len(cache))],
        "by digest": [cache.row_of(cache.sha256_of(row)) for row in range(len(cache))],
        "paths": cache.paths,
        "failures": cache.failures,
        "card": cache.card,
        "hash": cache.content_hash,
    }


def outcome(job: Callable[[Path], Any], store: Path) -> Any:
    """What `job` returns, or the error that it ends in."""
    try:
        return job(store)
    except TeacherCacheError as error:
        return error


def files_of(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file())


@pytest.mark.parametrize("flips", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_an_error_or_changes_nothing(store: Path, flips: int) -> None:
    wanted, rng = everything(store), random.Random(0)
    files = files_of(store)
    assert len(files) > 25
    for path in files:
        data = path.read_bytes()
        for place in rng.sample(range(8 * len(data)), min(flips, 8 * len(data))):
            spoilt = bytearray(data)
            spoilt[place // 8] ^= 1 << place % 8
            path.write_bytes(spoilt)
            name = f"bit {place} of {path.relative_to(store)}"
            found = outcome(everything, store)
            assert found == wanted or str(store) in str(found), name
            assert found == wanted or isinstance(found, TeacherCacheError), name
            if "zarr.json" not in path.name:  # metadata has free text: attributes, white space
                damages = verify(store)
                assert damages, name
                assert str(path.relative_to(store)).startswith(damages[0].where), name
        path.write_bytes(data)
    assert everything(store) == wanted
    assert verify(store) == []


@pytest.mark.parametrize("spoil", ["missing", "empty", "half"])
def test_a_missing_or_short_file_is_an_error_or_changes_nothing(store: Path, spoil: str) -> None:
    wanted = everything(store)
    for path in files_of(store):
        data = path.read_bytes()
        if spoil == "missing":
            path.unlink()
        else:
            path.write_bytes(b"" if spoil == "empty" else data[: len(data) // 2])
        name = path.relative_to(store)
        found = outcome(everything, store)
        if "_commit" in path.parts:  # plan and records are for builders, not for readers
            assert found == wanted, name
        else:
            assert isinstance(found, TeacherCacheError), name
            assert str(store) in str(found), name
        damages = outcome(verify, store)
        if name == Path("zarr.json"):  # without it the store is a build again, and sound as such
            assert isinstance(damages, TeacherCacheError) or spoil == "missing"
        else:
            assert isinstance(damages, list), name
            assert damages, name
        path.write_bytes(data)
    assert everything(store) == wanted


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
