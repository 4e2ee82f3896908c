"""A store that is sealed already: what sealing it again finds, keeps and adds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medalign.teacher_cache.audit import status, verify
from medalign.teacher_cache.damage import DamageFoundError, Remedy
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import TeacherCacheError
from medalign.teacher_cache.seal import reopen, seal

Spoil = Callable[[Path], object]


@pytest.fixture
def store(small: Any, tmp_path: Path) -> Path:
    small.write(small.begin(tmp_path / "cache"))
    seal(tmp_path / "cache")
    return tmp_path / "cache"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Spoil, str, str]] = {
    "a table is gone": (
        lambda store: (store / "index/1/path_hash/c.0.0").unlink(),
        r"index: .*index/1/path_hash/c\.0\.0 is missing; ",
        r"`medalign cache verify .* --mend` unseals it, then run `medalign cache seal ",
    ),
    "a table is short": (
        lambda store: cut(store / "index/1/content/c.0.0"),
        r"index: .*index/1/content/c\.0\.0 has 323 bytes and should have 324; ",
        r"--mend` unseals it",
    ),
    "a bit of a table": (
        lambda store: flip(store / "index/1/content_row/c.0"),
        "index/1/content_row: is damaged: .* does not match its checksum; ",
        r"--mend` unseals it",
    ),
    "a shard is gone": (
        lambda store: (store / "features/c.1.0.0").unlink(),
        r"features/c\.1\.0\.0: is missing; rows 4 to 7 are lost; ",
        "--mend` makes damaged shards pending, then run `medalign cache build .*cache seal",
    ),
    "a record is gone": (
        lambda store: (store / "_commit/2.json").unlink(),
        r"_commit/2\.json: is missing; ",
        "--mend` makes damaged shards pending",
    ),
    "an array's metadata": (
        lambda store: (store / "valid/zarr.json").write_text("{}"),
        r"valid/zarr\.json: .*missing keys.*; ",
        "`medalign cache build MANIFEST .* writes it again",
    ),
    "the plan": (
        lambda store: (store / "_commit/plan.0.json").unlink(),
        r"_commit/plan\.0\.json: is missing; no reader needs it, a new build does; ",
        r"restore _commit/plan\.0\.json from a copy of the store",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_sealing_again_names_damage_and_what_mends_it(store: Path, name: str) -> None:
    spoil, message, mended = DAMAGES[name]
    spoil(store)
    with pytest.raises(DamageFoundError, match=f"(?s)is damaged: {message}.*{mended}"):
        seal(store)
    assert verify(store)


@pytest.mark.parametrize("name", ["a table is gone", "a table is short", "a bit of a table"])
def test_what_is_said_of_a_damaged_index_mends_it(store: Path, name: str) -> None:
    before = TeacherCache.open(store).content_hash
    DAMAGES[name][0](store)
    assert [damage.remedy for damage in verify(store)] == [Remedy.SEAL]
    assert reopen(store) == []
    assert seal(store).content_hash == before
    assert verify(store) == []


def test_status_shows_damage_beyond_the_shards_and_the_commands_that_mend_it(store: Path) -> None:
    assert status(store).damages == ()
    (store / "index/1/path_text/c.0").unlink()
    [actual] = status(store).damages
    assert "path_text/c.0 is missing" in actual.reason
    assert status(store).commands == [
        f"medalign cache verify {store} --mend",
        f"medalign cache seal {store}",
    ]
    (store / "attention/c.0.0").unlink()
    assert len(status(store).commands) == 3


def test_a_plan_that_is_not_the_sealed_one_makes_no_shard_pending(
    small: Any, store: Path, tmp_path: Path
) -> None:
    small.plan = replace(small.plan, failures=())
    small.begin(tmp_path / "other")
    other = (tmp_path / "other/_commit/plan.0.json").read_bytes()
    (store / "_commit/plan.0.json").write_bytes(other)
    with pytest.raises(DamageFoundError, match=r"does not match the seal.*from a copy"):
        reopen(store)
    assert status(store).state == "sealed"
    assert status(store).pending == ()


def test_a_sealed_store_gets_a_certificate_and_keeps_its_content(store: Path) -> None:
    before = TeacherCache.open(store)
    report = seal(store, certify=lambda cache: {"rows": len(cache), "state": cache.state})
    assert report.already
    assert report.certificate == {"rows": 10, "state": "sealed"}
    after = TeacherCache.open(store)
    assert (after.content_hash, after.certificate) == (before.content_hash, report.certificate)
    assert verify(store) == []
    for certify in (None, lambda _: {"rows": 1}):
        assert seal(store, certify=certify).certificate == report.certificate


def test_a_store_that_changes_while_it_is_certified_keeps_its_own_seal(store: Path) -> None:
    def meanwhile(_: TeacherCache) -> dict[str, Any]:
        seal(store, certify=lambda _: {"by": "another"})
        return {"by": "this"}

    with pytest.raises(TeacherCacheError, match="changed while it was sealed"):
        seal(store, certify=meanwhile)
    assert TeacherCache.open(store).certificate == {"by": "another"}


def test_a_certificate_outlives_new_paths_but_not_new_images(
    folder: Callable[..., Any], tmp_path: Path
) -> None:
    store, images = tmp_path / "grown", folder({"a.png": 1, "b.png": 2})
    images.build(store)
    seal(store, certify=lambda _: {"rows": 2})
    images.images["copy of a.png"] = 1
    images.build(store)
    assert seal(store).certificate == {"rows": 2}
    images.images["c.png"] = 3
    images.build(store)
    assert seal(store).certificate is None
