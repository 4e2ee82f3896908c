import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from medalign.pipeline.commands.cache import cache as app
from medalign.teacher_cache.diff import diff
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import Plan, TeacherCacheError
from medalign.teacher_cache.seal import seal
from medalign.teacher_cache.writer import TeacherCacheWriter

Make = Callable[..., Path]
ROWS = 6


@pytest.fixture
def altered(
    synthetic_card: Callable[..., Any], synthetic_rows: Callable[..., Any], tmp_path: Path
) -> Make:
    """Make a sealed store as `synthetic_store` does, after `change(arrays of all rows)`."""

    def make(change: Callable[[dict[str, Any]], None], name: str = "altered", **card: Any) -> Path:
        own_card = synthetic_card(shard_rows=ROWS, **card)
        content = [
            hashlib.sha256(repr(f"images/{row}.png").encode()).hexdigest() for row in range(ROWS)
        ]
        paths = {f"images/{row}.png": row for row in range(ROWS)}
        writer = TeacherCacheWriter.begin(
            tmp_path / name, own_card, Plan(content=tuple(content), paths=paths)
        )
        arrays = synthetic_rows(own_card, range(ROWS))
        change(arrays)
        writer.write(0, **arrays)
        seal(tmp_path / name)
        return tmp_path / name

    return make


def nothing(_arrays: dict[str, Any]) -> None:
    pass


def test_a_cache_equals_itself_whatever_its_shards_and_order(
    synthetic_store: Make, altered: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = synthetic_store(ROWS)  # shards of four rows
    monkeypatch.setattr(TeacherCache, "__getitem__", None)  # equal digests: nothing is read
    for other in (store, altered(nothing)):
        actual = diff(store, other)
        assert actual.equal
        assert (actual.same, actual.different, actual.only_a, actual.only_b) == (ROWS, 0, 0, 0)


def test_renamed_images_are_the_same_images(synthetic_store: Make) -> None:
    content = [hashlib.sha256(bytes([row])).hexdigest() for row in range(3)]
    one = synthetic_store(3, content=content)
    other = synthetic_store(3, content=content, paths=["x", "y", "z"], name="other")
    assert diff(one, other).equal


def test_images_of_one_side_are_counted_and_named(synthetic_store: Make) -> None:
    content = [hashlib.sha256(bytes([row])).hexdigest() for row in range(5)]
    one = synthetic_store(3, content=content[:3], paths=["a", "b", "c"])
    other = synthetic_store(3, content=content[2:], paths=["c", "d", "e"], name="other")
    actual = diff(one, other)
    assert (actual.only_a, actual.examples_a) == (2, ("a", "b"))
    assert (actual.only_b, actual.examples_b) == (2, ("d", "e"))
    assert diff(one, other, limit=1).examples_a == ("a",)
    assert not actual.equal
    assert actual.same + actual.different == 1


def turned(arrays: dict[str, Any]) -> None:
    """Turn the first of 16 patches of row 4 by 60 degrees, within a plane of its own."""
    features = np.zeros((16, 8), np.float16)
    features[:, 1] = 1
    features[0, :2] = (0.8660254, 0.5)
    arrays["features"][4] = features


def plain(arrays: dict[str, Any]) -> None:
    features = np.zeros((16, 8), np.float16)
    features[:, 1] = 1
    arrays["features"][4] = features


def test_the_gram_is_compared_in_units_of_the_loss(altered: Make) -> None:
    actual = diff(altered(plain, "a"), altered(turned, "b"))
    assert (actual.same, actual.different) == (ROWS - 1, 1)
    [row] = actual.worst
    assert (row.path, row.row_a, row.row_b) == ("images/4.png", 4, 4)
    # Patch 0 was like the 15 others by 1 and is so by 0.5: 30 of 256 entries are off by 0.5.
    assert row.gram_max == pytest.approx(0.5, abs=1e-3)
    assert row.gram_rms == pytest.approx(np.sqrt(30 * 0.25 / 256), rel=1e-3)
    assert actual.gram_rms == pytest.approx(row.gram_rms)
    assert (row.attention_kl, row.attention_max, row.valid) == (0.0, 0.0, 0)


def test_rotated_features_differ_in_bytes_and_not_in_the_loss(altered: Make) -> None:
    def swapped(arrays: dict[str, Any]) -> None:
        arrays["features"][:] = arrays["features"][..., ::-1].copy()

    actual = diff(altered(nothing, "a"), altered(swapped, "b"))
    assert actual.different == ROWS
    assert actual.gram_max < 1e-6


def test_attention_is_compared_by_divergence_over_image_patches(altered: Make) -> None:
    def even(arrays: dict[str, Any]) -> None:
        arrays["attention"][2] = 0.02
        arrays["attention"][2, 0] = 0.9
        arrays["valid"][2] = np.arange(16) > 0

    def uneven(arrays: dict[str, Any]) -> None:
        even(arrays)
        arrays["attention"][2, 1] = 0.04
        arrays["attention"][2, 0] = 0.1  # padding, so it does not count

    [row] = diff(altered(even, "a"), altered(uneven, "b")).worst
    # p is 1/15 everywhere, q is 2/16 once and 1/16 elsewhere.
    expected = np.log(16 / 30) / 15 + 14 * np.log(16 / 15) / 15
    assert row.attention_kl == pytest.approx(expected, rel=1e-5)
    assert row.attention_max == pytest.approx(0.02, rel=1e-5)
    assert row.gram_rms == 0.0


def test_patches_that_changed_between_image_and_padding_are_counted(altered: Make) -> None:
    def cut(arrays: dict[str, Any]) -> None:
        arrays["valid"][1, :3] = False

    actual = diff(altered(nothing, "a"), altered(cut, "b"))
    assert [(row.row_a, row.valid) for row in actual.worst] == [(1, 3)]
    assert not actual.equal


def test_rows_are_listed_from_bad_to_better_up_to_a_limit(altered: Make) -> None:
    def mixed(arrays: dict[str, Any]) -> None:
        turned(arrays)
        arrays["attention"][1] *= np.linspace(1, 1.1, 16)

    one, other = altered(plain, "a"), altered(mixed, "b")
    assert [row.row_a for row in diff(one, other).worst] == [4, 1]
    assert [row.row_a for row in diff(one, other, limit=1).worst] == [4]
    assert diff(one, other, limit=0).different == 2


def test_an_image_that_only_one_side_could_decode_is_a_difference(synthetic_store: Make) -> None:
    one = synthetic_store(4, failures={2: "cut short"})
    other = synthetic_store(4, name="other")
    [row] = diff(one, other).worst
    assert (row.path, row.missing) == ("images/2.png", "A")
    assert diff(other, one).worst[0].missing == "B"
    both = synthetic_store(4, failures={2: "another reason"}, name="both")
    assert diff(one, both).equal


def test_cards_are_compared_field_by_field(synthetic_store: Make) -> None:
    one = synthetic_store(3)
    other = synthetic_store(3, dtype="bfloat16", name="other", versions={"medalign": "9"})
    actual = diff(one, other)
    assert actual.card == ("dtype is 'float32' in A, 'bfloat16' in B",)
    assert (actual.different, actual.equal) == (0, False)


def test_rows_of_other_grids_are_not_compared(synthetic_store: Make) -> None:
    actual = diff(synthetic_store(3), synthetic_store(3, "2x2", name="other"))
    assert (actual.comparable, actual.different, actual.worst) == (False, 3, ())


def test_images_that_were_replaced_later_still_count(
    synthetic_card: Callable[..., Any], synthetic_rows: Callable[..., Any], tmp_path: Path
) -> None:
    def grown(name: str, *plans: Plan) -> Path:
        card = synthetic_card()
        for plan in plans:
            writer = TeacherCacheWriter.begin(tmp_path / name, card, plan)
            for shard in writer.pending():
                writer.write(shard, **synthetic_rows(card, writer.rows_of(shard)))
        seal(tmp_path / name)
        return tmp_path / name

    old, new = (hashlib.sha256(data).hexdigest() for data in (b"old", b"new"))
    before = Plan(content=(old,), paths={"a.png": 0})
    both = grown("a", before, Plan(content=(new,), paths={"a.png": 0}))
    actual = diff(both, grown("b", before))
    assert (actual.same, actual.only_a, actual.examples_a) == (1, 1, ("a.png",))
    actual = diff(grown("c", before), both)
    assert actual.examples_b == ("a.png",)


def test_a_damaged_row_is_an_error_that_names_it(altered: Make) -> None:
    one, other = altered(plain, "a"), altered(turned, "b")
    file = other / "features" / "c.0.0.0"
    content = bytearray(file.read_bytes())
    content[4 * (16 * 8 * 2 + 4) + 20] ^= 1
    file.write_bytes(content)
    with pytest.raises(TeacherCacheError, match=f"row 4 of {other}"):
        diff(one, other)


def test_an_unsealed_cache_is_refused(synthetic_store: Make) -> None:
    with pytest.raises(TeacherCacheError, match="not sealed"):
        diff(synthetic_store(3), synthetic_store(3, sealed=False, name="other"))


def test_rows_that_are_not_sealed_yet_are_counted_and_not_compared(
    folder: Callable[..., Any], tmp_path: Path
) -> None:
    images = folder({"a.png": 1})
    for name in ("a", "b"):
        images.build(tmp_path / name)
        seal(tmp_path / name)
    images.images |= {"b.png": 2, "c.png": 3}
    images.build(tmp_path / "b")
    actual = diff(tmp_path / "a", tmp_path / "b")
    assert (actual.equal, actual.unsealed_a, actual.unsealed_b) == (True, 0, 2)
    result = CliRunner().invoke(app, ["diff", str(tmp_path / "a"), str(tmp_path / "b")])
    assert "not sealed  2 rows added to B and not compared" in result.stdout


def test_progress_counts_the_rows_that_are_read(altered: Make) -> None:
    calls: list[tuple[int, int]] = []
    diff(altered(plain, "a"), altered(turned, "b"), lambda *progress: calls.append(progress))
    assert calls == [(1, 1)]


def test_the_command_exits_1_when_anything_differs(altered: Make, synthetic_store: Make) -> None:
    def run(*words: object) -> Any:
        return CliRunner().invoke(app, ["diff", *map(str, words)])

    one, other = altered(plain, "a"), altered(turned, "b")
    same = run(one, one)
    assert (same.exit_code, same.stdout.splitlines()[-1]) == (0, "equal    both teach the same")
    result = run(one, other)
    assert result.exit_code == 1
    assert "5 images with the same row, 1 with another" in result.stdout
    assert "images/4.png (row 4 and 4): Gram RMS 1.71e-01, largest 5.00e-01" in result.stdout
    answer = json.loads(run(one, other, "--json").stdout)
    assert (answer["equal"], answer["worst"][0]["path"]) == (False, "images/4.png")
    grids = run(one, synthetic_store(3, "2x2", name="other"))
    assert "rows of different patch grids cannot be compared" in grids.stdout
    assert "only in A  3 images" in grids.stdout
