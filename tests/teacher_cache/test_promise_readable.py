"""Readable by others and for ever: plain zarr-python, and a store written by this version."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from medalign.teacher_cache.audit import info, verify
from medalign.teacher_cache.gram.code import GramError
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import Failure, TeacherCacheError
from medalign.teacher_cache.seal import seal

GOLDEN = Path(__file__).parent / "golden_v1"


@pytest.fixture
def group(small: Any, tmp_path: Path) -> Any:
    small.write(small.begin(tmp_path / "cache"))
    seal(tmp_path / "cache")
    return zarr.open_group(tmp_path / "cache", mode="r")


def test_plain_zarr_reads_every_array(small: Any, group: Any, tmp_path: Path) -> None:
    expected, cache = small.rows(small.card, range(10)), TeacherCache.open(tmp_path / "cache")
    for row in set(range(10)) - {6}:
        for name, values in expected.items():
            actual = np.asarray(group[name][row])
            assert actual.dtype == values.dtype
            assert np.array_equal(actual, values[row])
        assert np.array_equal(cache[row].features, group["features"][row])
    index = group["index/1"]
    assert [bytes(row).hex() for row in index["content"][:]] == list(small.plan.content)
    text, ends = index["path_text"][:].tobytes(), index["path_end"][:].tolist()
    paths = [text[a:b].decode() for a, b in zip([0, *ends], ends, strict=False)]
    assert paths == list(small.plan.paths)


def test_attributes_are_plain_json(group: Any, tmp_path: Path) -> None:
    actual = group.attrs["medalign"]
    assert (
        actual == json.loads((tmp_path / "cache/zarr.json").read_bytes())["attributes"]["medalign"]
    )
    assert (actual["state"], actual["generations"], actual["rows"]) == ("sealed", [10], 10)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    """What the golden store has to say, in plain JSON beside it."""
    actual: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())
    return actual


def test_the_golden_store_is_small() -> None:
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 100_000


def test_the_golden_store_of_version_1_is_read(golden: dict[str, Any]) -> None:
    cache = TeacherCache.open(GOLDEN / "store")
    assert cache.content_hash == golden["content_hash"]
    assert cache.fingerprint == golden["fingerprint"]
    assert cache.generations == 2
    assert cache.certificate == golden["certificate"]
    assert cache.card.to_json() == golden["card"]
    assert cache.row_numbers().tolist() == golden["row_numbers"]
    assert cache.failures == [Failure(*failure) for failure in golden["failures"]]
    assert {path: cache.row_of(path) for path in cache.paths} == golden["paths"]
    assert {str(row): cache.sha256_of(row) for row in golden["row_numbers"]} == golden["content"]
    for row, expected in golden["rows"].items():
        actual = cache[int(row)]
        assert actual.source_size == tuple(expected["source_size"])
        for name in ("features", "attention", "valid"):
            values = getattr(actual, name)
            assert values.dtype == np.dtype(expected[name]["dtype"])
            assert values.tolist() == expected[name]["values"]
    for row in golden["lost"]:
        with pytest.raises(TeacherCacheError, match="holds no data"):
            cache[row]


def test_the_golden_store_is_as_it_was_written(golden: dict[str, Any]) -> None:
    assert verify(GOLDEN / "store") == []
    actual = info(GOLDEN / "store")
    assert (actual["state"], actual["generations"], actual["format"]) == ("sealed", 2, 1)
    assert actual["content_hash"] == golden["content_hash"]


def test_plain_zarr_reads_the_golden_store(golden: dict[str, Any]) -> None:
    group: Any = zarr.open_group(GOLDEN / "store", mode="r")
    for row, expected in golden["rows"].items():
        assert np.asarray(group["features"][int(row)]).tolist() == expected["features"]["values"]
        assert np.asarray(group["attention"][int(row)]).tolist() == expected["attention"]["values"]


def test_the_golden_store_of_codec_gram_is_read() -> None:
    golden = json.loads((GOLDEN / "expected_gram.json").read_text())
    cache = TeacherCache.open(GOLDEN / "store_gram")
    assert verify(GOLDEN / "store_gram") == []
    assert cache.content_hash == golden["content_hash"]
    for row, (gram, errors) in enumerate(zip(golden["grams"], golden["errors"], strict=True)):
        assert np.allclose(cache[row].gram(), gram, atol=1e-6)
        assert cache[row].features.size == 0
        assert cache.gram_error(row) == GramError(*errors)
    assert cache.gram_errors is not None
    assert cache.gram_errors.largest == max(largest for _, largest in golden["errors"])
