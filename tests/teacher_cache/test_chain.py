import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.teacher_cache.generations import PlanChain, first_generation, next_generation
from medalign.teacher_cache.plan_file import load_plans, publish_generation
from medalign.teacher_cache.schema import Failure, Plan, TeacherCacheError
from medalign.teacher_cache.storage.local import LocalStorage
from medalign.teacher_cache.storage.untrusted import (
    DamagedError,
    canonical_json,
    json_with_digest,
    with_digest,
)

NAMES = [f"{name}.png" for name in "abcdef"]


def digest(content: int) -> str:
    return hashlib.sha256(bytes([content])).hexdigest()


def plan_of(folder: dict[str, int | None]) -> Plan:
    """The plan of a folder: path -> content, None where the file cannot be read."""
    contents = list(dict.fromkeys(data for data in folder.values() if data is not None))
    return Plan(
        content=tuple(map(digest, contents)),
        paths={path: contents.index(data) for path, data in folder.items() if data is not None},
        failures=tuple(Failure(path, "?") for path, data in folder.items() if data is None),
    )


folders = st.dictionaries(st.sampled_from(NAMES), st.none() | st.integers(0, 5), max_size=6)


@given(st.lists(folders, min_size=1, max_size=6), st.integers(1, 4))
def test_a_chain_knows_the_newest_content_of_every_path_and_every_content_it_ever_had(
    history: list[dict[str, int | None]], shard_rows: int
) -> None:
    chain: PlanChain | None = None
    newest: dict[str, int] = {}
    failed: dict[str, None] = {}
    rows: dict[str, int] = {}
    for folder in history:
        expected = plan_of(folder)
        if chain is None and not expected.content:
            with pytest.raises(TeacherCacheError, match="at least one readable image"):
                first_generation(expected)
            continue
        added = first_generation(expected) if chain is None else next_generation(chain, expected)
        newest |= {path: content for path, content in folder.items() if content is not None}
        failed |= {path: None for path, content in folder.items() if content is None}
        if added is not None:
            before = chain.generations if chain else ()
            chain = PlanChain(shard_rows, (*before, added), ())
        assert chain is not None
        assert next_generation(chain, expected) is None  # it holds all that was wanted
        assert {path: chain.content_of(row) for path, row in chain.paths.items()} == {
            path: digest(content) for path, content in newest.items()
        }
        assert {failure.path for failure in chain.failures} == failed.keys() - newest.keys()
        for known, row in rows.items():  # rows never move
            assert chain.content_row(known) == row
        rows = {chain.content_of(int(row)): int(row) for row in chain.layout.numbers()}
        assert len(rows) == chain.layout.rows
        named = chain.path_of_rows()
        assert all(chain.paths[path] == row for row, path in named.items())


@pytest.fixture
def store(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


def publish(store: LocalStorage, card: Any, *folders: dict[str, int | None]) -> PlanChain:
    chain = None
    for folder in folders:
        expected = plan_of(folder)
        added = first_generation(expected) if chain is None else next_generation(chain, expected)
        assert added is not None
        assert publish_generation(store, card, chain, added)
        _, chain = load_plans(store)
    assert chain is not None
    return chain


def test_plans_survive_the_disk(small: Any, store: LocalStorage) -> None:
    chain = publish(
        store,
        small.card,
        {"ü/a.png": 1, "b.png": 2, "c.png": None},
        {"again.png": 1},
        {"c.png": 3, "b.png": 4, "\ud800.png": 2, "d.png": None},
    )
    assert chain.layout.counts == (2, 0, 2)
    assert chain.paths == {
        "ü/a.png": 0,
        "b.png": 5,
        "again.png": 0,
        "c.png": 4,
        "\ud800.png": 1,
    }
    assert chain.failures == (Failure("d.png", "?"),)
    assert load_plans(store) == (small.card, chain)
    assert chain.digests == tuple(
        hashlib.sha256((store.folder / f"_commit/plan.{number}.json").read_bytes()).hexdigest()
        for number in range(3)
    )


def test_of_two_that_plan_at_once_one_is_told(small: Any, store: LocalStorage) -> None:
    first = first_generation(plan_of({"a.png": 1}))
    assert publish_generation(store, small.card, None, first)
    assert not publish_generation(store, small.card, None, first_generation(plan_of({"b.png": 2})))
    assert load_plans(store)[1].paths == {"a.png": 0}


def edit(store: LocalStorage, number: int, **changes: Any) -> None:
    """Edit a plan as an attacker would: with a right digest."""
    path = store.folder / f"_commit/plan.{number}.json"
    fields = json.loads(path.read_bytes()) | changes
    del fields["digest"]
    path.write_bytes(canonical_json(with_digest(fields)))


CONTENT = digest(7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "reads teacher-cache format 1, got 2"),
        ({"generation": 0}, "generation takes 1 to 1"),
        ({"previous": "0" * 64}, "does not follow the plan of the generation before it"),
        ({"previous": None}, "does not follow the plan"),
        ({"rows": [0, 1]}, r"rows should be \[4, 5\]"),
        ({"rows": [4, 2**31]}, "rows should be"),
        ({"content": CONTENT.upper()}, "lower-case hex"),
        ({"content": CONTENT[:-2]}, "SHA-256"),
        ({"content": "../.."}, "plan: "),
        ({"content": [CONTENT]}, "plan content takes a str"),
        ({"content": digest(1)}, "a digest twice"),
        ({"content": ""}, "leads to a row that is not one"),
        ({"content": CONTENT + digest(8)}, "takes at least one path"),
        ({"paths": ["../x.png"]}, "below the image folder"),
        ({"paths": ["/etc/passwd"]}, "below the image folder"),
        ({"paths": ["a\\..\\..\\b"]}, "below the image folder"),
        ({"paths": [5]}, "path of an image takes a text"),
        ({"paths": [["a"]]}, "plan: "),
        ({"paths": ["x.png", "y.png"]}, "plan: "),
        ({"paths": ["x.png", "x.png"], "path_rows": [4, 4]}, "a path is there twice"),
        ({"path_rows": [3]}, "leads to a row that is not one"),  # a hole
        ({"path_rows": [9]}, "leads to a row that is not one"),
        ({"path_rows": [-1]}, "path_rows takes row numbers"),
        ({"path_rows": [2**31]}, "path_rows takes row numbers"),
        ({"path_rows": [2**70]}, "path_rows takes row numbers"),
        ({"path_rows": [4.0]}, "path_rows takes row numbers"),
        ({"path_rows": [True]}, "path_rows takes row numbers"),
        ({"path_rows": [[4]]}, "path_rows takes row numbers"),
        ({"path_rows": ["4"]}, "path_rows takes row numbers"),
        ({"failures": [["x"]]}, "plan: "),
        ({"failures": [[1, "x"]]}, "path of a failure takes a text"),
        ({"failures": [["c.png", "x"]]}, "both a row and a failure"),
        ({"failures": {}}, "failures takes a list"),
        ({"content": "", "paths": [], "path_rows": [], "rows": [4, 4]}, "a generation adds"),
        ({"surprise": 1}, r"unknown keys \['surprise'\]"),
    ],
)
def test_a_plan_that_lies_is_refused(
    small: Any, store: LocalStorage, changes: dict[str, Any], message: str
) -> None:
    publish(store, small.card, {"a.png": 1, "b.png": 2}, {"c.png": 3})
    edit(store, 1, **changes)
    with pytest.raises(TeacherCacheError, match=message) as caught:
        load_plans(store)
    assert f"{store}/_commit" in str(caught.value)


def test_a_plan_of_another_cache_is_refused(small: Any, store: LocalStorage) -> None:
    publish(store, small.card, {"a.png": 1}, {"c.png": 3})
    edit(store, 1, card=small.card.to_json() | {"geometry": "crop"})
    with pytest.raises(TeacherCacheError, match=r"plan\.1\.json: is of another cache: geometry"):
        load_plans(store)


def test_a_chain_with_a_gap_or_an_edited_link_is_refused(small: Any, store: LocalStorage) -> None:
    publish(store, small.card, {"a.png": 1}, {"b.png": 2}, {"c.png": 3})
    second = store.read("_commit/plan.1.json", 10_000)
    store.delete("_commit/plan.1.json")
    with pytest.raises(TeacherCacheError, match=r"plan\.1\.json is missing"):
        load_plans(store)
    store.write("_commit/plan.1.json", second)
    edit(store, 1, paths=["other.png"])
    with pytest.raises(TeacherCacheError, match=r"plan\.2\.json: does not follow"):
        load_plans(store)
    store.write("_commit/plan.1.json", store.read("_commit/plan.2.json", 10_000))  # a loop
    with pytest.raises(TeacherCacheError, match=r"plan\.1\.json: generation takes 1 to 1"):
        load_plans(store)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"[" * 100_000, b'"x"', b"\xff"])
def test_a_plan_that_is_not_json_is_damaged(small: Any, store: LocalStorage, data: bytes) -> None:
    publish(store, small.card, {"a.png": 1})
    store.write("_commit/plan.0.json", data)
    with pytest.raises(DamagedError, match=r"plan\.0\.json is damaged"):
        load_plans(store)


def test_a_plan_in_another_spelling_is_damaged(small: Any, store: LocalStorage) -> None:
    publish(store, small.card, {"a.png": 1})
    data = store.read("_commit/plan.0.json", 10_000)
    store.write("_commit/plan.0.json", data.replace(b":", b": "))
    with pytest.raises(DamagedError, match="does not match its digest"):
        load_plans(store)


@given(st.dictionaries(st.text(max_size=9).filter(lambda key: key != "digest"), st.text()))
def test_json_is_the_same_written_at_once_or_value_by_value(fields: dict[str, str]) -> None:
    assert json_with_digest(fields) == canonical_json(with_digest(fields))
