import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.teacher_cache.schema import (
    CacheCard,
    ExpertCard,
    Failure,
    PatchGrid,
    Plan,
    TeacherCacheError,
)

grids = st.builds(PatchGrid, st.integers(1, 64), st.integers(1, 64))
texts = st.text(min_size=1, max_size=20)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
experts = st.builds(
    ExpertCard,
    name=texts,
    architecture=texts,
    weights_sha256=digests,
    features=st.sampled_from(["last", "ln_post"]),
    grid=grids,
    width=st.integers(1, 2048),
    image_size=st.integers(1, 1024),
    normalise_before_interpolation=st.booleans(),
    licence=st.text(max_size=20),
)
bytes8 = st.integers(0, 255)
cards = st.builds(
    CacheCard,
    expert=experts,
    grid=grids,
    geometry=texts,
    mode=st.sampled_from(["aligned", "paper"]),
    fill=st.tuples(bytes8, bytes8, bytes8),
    alpha=texts,
    dtype=texts,
    interpolation=texts,
    codec=st.just("fp16"),
    shard_rows=st.integers(1, 1024),
    versions=st.dictionaries(texts, texts, max_size=3),
)
names = st.text(st.characters(exclude_characters="/\\\0."), min_size=1, max_size=8)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


@given(grids)
def test_a_grid_survives_a_round_trip_through_text(grid: PatchGrid) -> None:
    assert PatchGrid.parse(str(grid)) == grid
    assert grid.size == grid.rows * grid.cols


@pytest.mark.parametrize("text", ["", "24", "24x", "x24", "0x4", "-1x4", "24X24", "2x2x2", "٣x٣"])
def test_a_misspelt_grid_is_refused(text: str) -> None:
    with pytest.raises(TeacherCacheError, match="24x24"):
        PatchGrid.parse(text)


@given(cards)
def test_a_card_survives_a_round_trip_through_json(card: CacheCard) -> None:
    back = CacheCard.from_json(json.loads(json.dumps(card.to_json())))
    assert back == card
    assert back.fingerprint() == card.fingerprint()
    assert card.differences(back) == []


CHANGES: dict[str, Any] = {
    "grid": PatchGrid(2, 2),
    "geometry": "crop",
    "mode": "paper",
    "fill": (0, 0, 0),
    "alpha": "white",
    "dtype": "bfloat16",
    "interpolation": "nearest",
}
EXPERT_CHANGES: dict[str, Any] = {
    "name": "other",
    "architecture": "other",
    "weights_sha256": "f" * 64,
    "features": "ln_post",
    "grid": PatchGrid(3, 3),
    "width": 9,
    "image_size": 57,
    "normalise_before_interpolation": False,
}


@pytest.mark.parametrize("field", [*CHANGES, *(f"expert.{name}" for name in EXPERT_CHANGES)])
def test_every_field_that_decides_numbers_changes_the_fingerprint(
    synthetic_card: Callable[..., CacheCard], field: str
) -> None:
    card = synthetic_card()
    if field in CHANGES:
        other = replace(card, **{field: CHANGES[field]})
    else:
        name = field.removeprefix("expert.")
        other = replace(card, expert=replace(card.expert, **{name: EXPERT_CHANGES[name]}))
    assert other.fingerprint() != card.fingerprint()
    [difference] = card.differences(other)
    assert difference.startswith(f"{field} is ")


def test_codec_and_error_of_the_gram_belong_together(
    synthetic_card: Callable[..., CacheCard],
) -> None:
    card = synthetic_card()
    coarse = replace(card, codec="gram", max_gram_error=1e-3)
    fine = replace(coarse, max_gram_error=1e-5)
    assert len({version.fingerprint() for version in (card, coarse, fine)}) == 3
    assert CacheCard.from_json(json.loads(json.dumps(fine.to_json()))) == fine
    for codec, error in (("fp16", 1e-3), ("gram", None), ("gram", 0.5), ("gram", float("nan"))):
        with pytest.raises(TeacherCacheError, match="max_gram_error"):
            replace(card, codec=codec, max_gram_error=error)


def test_no_field_of_a_card_is_forgotten_by_the_test_above() -> None:
    assert {f.name for f in fields(CacheCard)} - set(CHANGES) == {
        "expert",
        "codec",
        "max_gram_error",
        "shard_rows",
        "versions",
    }
    assert {f.name for f in fields(ExpertCard)} - set(EXPERT_CHANGES) == {"licence"}


def test_versions_licence_and_shards_do_not_change_the_fingerprint(
    synthetic_card: Callable[..., CacheCard],
) -> None:
    card = synthetic_card()
    other = replace(
        card, versions={}, shard_rows=7, expert=replace(card.expert, licence="something else")
    )
    assert other.fingerprint() == card.fingerprint()
    assert card.differences(other) == ["shard_rows is 4 in the store, 7 asked for (--shard-rows)"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "other"}, "mode takes one of aligned, paper"),
        ({"codec": "zip"}, "codec takes one of fp16"),
        ({"fill": (1, 2, 256)}, "fill takes 0 to 255, got 256"),
        ({"fill": [1, 2]}, "3 to 3, got 2"),
        ({"shard_rows": 0}, "shard_rows takes 1 to"),
        ({"shard_rows": True}, "shard_rows takes 1 to"),
        ({"shard_rows": 10**9}, "shard_rows takes 1 to"),
        ({"grid": "100x99999"}, "24x24"),
        ({"grid": "1024x1024"}, "bytes; the format allows"),
        ({"geometry": ""}, "geometry takes a text"),
        ({"versions": {"zarr": 3}}, "versions 'zarr' takes a text"),
        ({"expert": None}, "expert takes a JSON object"),
        ({"surprise": 1}, "unknown keys \\['surprise'\\]"),
    ],
)
def test_a_card_that_cannot_be_is_refused(
    synthetic_card: Callable[..., CacheCard], change: dict[str, Any], message: str
) -> None:
    lie = {**synthetic_card(width=4096).to_json(), **change}
    with pytest.raises(TeacherCacheError, match=message):
        CacheCard.from_json(lie)


def test_a_card_without_a_key_is_refused(synthetic_card: Callable[..., CacheCard]) -> None:
    fields = synthetic_card().to_json()
    del fields["alpha"]
    with pytest.raises(TeacherCacheError, match="missing keys \\['alpha'\\]"):
        CacheCard.from_json(fields)


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x.png", "a/../../x.png", "a\\..\\..\\x.png", "a\0b"]
)
def test_a_plan_refuses_a_path_that_leaves_the_image_folder(path: str) -> None:
    with pytest.raises(TeacherCacheError, match="path of an image"):
        Plan(content=("0" * 64,), paths={path: 0})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"content": ("a" * 64, "a" * 64), "paths": {"a": 0, "b": 1}}, "digest twice"),
        ({"content": ("A" * 64,), "paths": {"a": 0}}, "64 lower-case hex"),
        ({"content": ("a" * 64,), "paths": {"a": 1}}, "row of a takes 0 to 0, got 1"),
        ({"content": ("a" * 64, "b" * 64), "paths": {"a": 0}}, "at least one path"),
        (
            {"content": ("a" * 64,), "paths": {"a": 0}, "failures": (Failure("a", "x"),)},
            "both a row and a failure",
        ),
    ],
)
def test_a_plan_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TeacherCacheError, match=message):
        Plan(**fields)
