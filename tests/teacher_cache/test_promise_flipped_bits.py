"""Every flipped bit in any file of a store is an error or changes nothing."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medalign.teacher_cache.audit import status, verify
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import TeacherCacheError
from medalign.teacher_cache.seal import seal

GOLDEN = Path(__file__).parent / "golden_v1"
FIRST = {"a.png": 1, "b/ü.png": 100, "c.png": 3, "d.png": None, "e.png": 1}
UNSEALED = [
    "_commit/plan.1.json",
    "_commit/2.json",
    "features/c.2.0.0",
    "attention/c.2.0",
    "valid/c.2.0",
    "source_size/c.2.0",
]
"""Files of the second generation."""
THEN = {"a.png": 2, "f.png": 4, "g.png": None}


@pytest.fixture(params=["sealed once", "grown", "growing", "codec gram"])
def store(request: pytest.FixtureRequest, folder: Callable[..., Any], tmp_path: Path) -> Path:
    """A store that was sealed, that grew and was sealed again, that is growing; one of codes."""
    if request.param == "codec gram":
        return Path(shutil.copytree(GOLDEN / "store_gram", tmp_path / "cache"))
    store, images = tmp_path / "cache", folder(dict(FIRST), shard_rows=2)
    images.build(store)
    seal(store)
    if request.param != "sealed once":
        images.images |= THEN
        images.build(store)
    if request.param == "grown":
        seal(store)
    return store


def everything(store: Path) -> dict[str, Any]:
    """All that a reader can learn from a store, as plain comparable values."""
    cache = TeacherCache.open(store)
    rows = {}
    for row in cache.row_numbers().tolist():
        if row not in cache:  # its image failed
            continue
        actual = cache[row]
        similar = actual.features if actual.code is None else actual.gram()
        arrays = (similar, actual.attention, actual.valid, np.array(actual.source_size))
        rows[row] = [array.tobytes() for array in arrays]
    return {
        "rows": rows,
        "places": [cache.row_of(path) for path in cache.paths],
        "numbers": cache.row_numbers().tolist(),
        "digests": [cache.sha256_of(row) for row in cache.row_numbers().tolist()],
        "by digest": [cache.row_of(cache.sha256_of(row)) for row in cache.row_numbers().tolist()],
        "paths": cache.paths,
        "failures": cache.failures,
        "errors": [cache.gram_error(row) for row in rows],
        "card": cache.card,
        "hash": cache.content_hash,
    }


def outcome(job: Callable[[Path], Any], store: Path) -> Any:
    """What `job` returns, or the error that it ends in."""
    try:
        return job(store)
    except TeacherCacheError as error:
        return error


def is_unread(store: Path, path: Path) -> bool:
    """Whether a file is of the tables of a seal before the last, which nobody opens any more."""
    name = path.relative_to(store)
    return name.parts[:2] == ("index", "1") and TeacherCache.open(store).generations > 1


def files_of(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file())


@pytest.mark.parametrize("flips", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_an_error_or_changes_nothing(store: Path, flips: int) -> None:
    expected, rng = everything(store), random.Random(0)
    files = [path for path in files_of(store) if not is_unread(store, path)]
    assert len(files) > 25
    for path in files:
        data = path.read_bytes()
        for position in rng.sample(range(8 * len(data)), min(flips, 8 * len(data))):
            spoilt = bytearray(data)
            spoilt[position // 8] ^= 1 << position % 8
            path.write_bytes(spoilt)
            name = f"bit {position} of {path.relative_to(store)}"
            actual = outcome(everything, store)
            assert actual == expected or str(store) in str(actual), name
            assert actual == expected or isinstance(actual, TeacherCacheError), name
            if "zarr.json" not in path.name:  # metadata has free text: attributes, white space
                damages = verify(store)
                assert damages, name
                assert str(path.relative_to(store)).startswith(damages[0].where), name
        path.write_bytes(data)
    assert everything(store) == expected
    assert verify(store) == []


@pytest.mark.parametrize("spoil", ["missing", "empty", "half"])
def test_a_missing_or_short_file_is_an_error_or_changes_nothing(store: Path, spoil: str) -> None:
    expected, growing = everything(store), status(store).state == "growing"
    for path in [path for path in files_of(store) if not is_unread(store, path)]:
        data = path.read_bytes()
        if spoil == "missing":
            path.unlink()
        else:
            path.write_bytes(b"" if spoil == "empty" else data[: len(data) // 2])
        name = path.relative_to(store)
        actual = outcome(everything, store)
        unsealed = growing and name.as_posix() in UNSEALED
        if "_commit" in path.parts or unsealed:  # for builders, not for readers
            assert actual == expected, name
        else:
            assert isinstance(actual, TeacherCacheError), name
            assert str(store) in str(actual), name
        damages = outcome(verify, store)
        if name == Path("zarr.json"):  # without it the store is a build again, and sound as such
            assert isinstance(damages, TeacherCacheError) or spoil == "missing"
        elif unsealed and spoil == "missing" and "_commit" in path.parts:
            assert damages == [], name  # what is not committed is no damage
        else:
            assert isinstance(damages, list), name
            assert damages, name
        path.write_bytes(data)
    assert everything(store) == expected


@pytest.mark.parametrize("flips", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_bit_that_flips_while_a_store_is_built_never_reaches_the_sealed_cache(
    folder: Callable[..., Any], tmp_path: Path, flips: int
) -> None:
    images = folder(dict(FIRST), shard_rows=2)
    images.build(tmp_path / "whole")
    expected = seal(tmp_path / "whole").content_hash
    store, rng, mended = tmp_path / "cache", random.Random(flips), 0
    images.build(store)
    for name in [path.relative_to(store) for path in files_of(store)]:
        for _ in range(flips):
            shutil.rmtree(store)
            images.build(store)
            data = bytearray((store / name).read_bytes())
            position = rng.randrange(8 * len(data))
            data[position // 8] ^= 1 << position % 8
            (store / name).write_bytes(data)
            errors = [error for _ in range(3) if (error := outcome(finish(images), store))]
            assert all(isinstance(error, TeacherCacheError) for error in errors)
            if len(errors) == 3:  # what cannot be made again is refused, by name
                assert f"{store}/{name}" in str(errors[-1])
                assert name.name in ("plan.0.json", "zarr.json")
            else:
                mended += 1
                assert TeacherCache.open(store).content_hash == expected
                assert verify(store) == []
    assert mended > 7 * flips


def finish(images: Any) -> Callable[[Path], None]:
    """Build what is pending, and seal; nothing is left to do where both went well."""

    def run(store: Path) -> None:
        images.build(store)
        if status(store).state != "sealed":
            seal(store)

    return run
