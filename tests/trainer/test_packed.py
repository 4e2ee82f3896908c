import hashlib
import json
import pickle  # noqa: TID251 - what a spawned worker receives
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.pipeline.manifest import Record, checked_records, read_manifest, read_record
from medalign.trainer.data.dataset import PackedRecords

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(lambda t: f"x{t}")
json_value: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    images = draw(st.lists(st.sampled_from(["a.png", "b/ö.png", "病.png"]), max_size=2))
    said = [draw(text).replace("<image>", "") for _ in range(draw(st.integers(1, 4)))]
    said[0] = "<image>" * len(images) + said[0]
    raw = {
        "id": draw(text),
        "image": images,
        "answer_type": draw(st.sampled_from([None, "OPEN", "closed"])),
        "conversations": [
            {"from": ("human", "gpt")[k % 2], "value": value} for k, value in enumerate(said)
        ],
        "report": draw(json_value),
    }
    record = read_record(raw, draw(st.integers(1, 10**6)))
    assert isinstance(record, Record), record
    return record


@given(st.lists(records(), max_size=4))
def test_packed_records_are_the_records(given: list[Record]) -> None:
    packed = PackedRecords(given)
    assert len(packed) == len(given)
    assert list(packed) == given
    assert [packed[k] for k in range(len(given))] == given
    assert packed[1:3] == given[1:3]


def test_places_outside_are_refused_and_negative_ones_count_from_the_end() -> None:
    turns = [{"from": "human", "value": "What?"}]
    record = read_record({"id": "a", "conversations": turns}, 1)
    assert isinstance(record, Record)
    packed = PackedRecords([record])
    assert packed[-1] == record
    with pytest.raises(IndexError):
        packed[1]


def test_half_a_character_in_another_field_survives() -> None:
    turns = [{"from": "human", "value": "What?"}]
    record = read_record(json.loads('{"id": "a", "note": "\\ud800"}') | {"conversations": turns}, 1)
    assert isinstance(record, Record)
    assert PackedRecords([record])[0] == record


def test_a_thousand_records_take_little_more_than_their_text_also_on_the_way_to_a_worker(
    dataset: Callable[..., tuple[Path, Path, Path]],
) -> None:
    manifest, _, _ = dataset(images=2, records=1000)
    packed = PackedRecords(checked_records(manifest))
    assert packed.nbytes < manifest.stat().st_size
    sent = pickle.dumps(packed)
    assert len(sent) < packed.nbytes + 2000
    assert list(pickle.loads(sent)) == read_manifest(manifest)


def test_the_identity_of_a_run_sees_no_difference(
    dataset: Callable[..., tuple[Path, Path, Path]],
) -> None:
    """Objects and packed records hash to the same, or runs begun with the former would stop."""
    manifest, _, _ = dataset(images=2, records=20)

    def digest(records: Any) -> str:
        return hashlib.sha256(
            b"".join(
                json.dumps([r.id, r.images, [(t.role, t.text) for t in r.conversations]]).encode()
                for r in records
            )
        ).hexdigest()

    assert digest(read_manifest(manifest)) == digest(PackedRecords(checked_records(manifest)))
