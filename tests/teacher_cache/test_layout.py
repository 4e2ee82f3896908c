from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.teacher_cache.generations import Layout
from medalign.teacher_cache.storage.untrusted import MAX_ROWS, TeacherCacheError

layouts = st.builds(
    Layout,
    shard_rows=st.integers(1, 5),
    counts=st.tuples(st.integers(1, 12)).flatmap(
        lambda first: st.lists(st.integers(0, 12), max_size=5).map(lambda later: (*first, *later))
    ),
)


@given(layouts)
def test_generations_begin_at_shards_of_their_own_and_share_none(layout: Layout) -> None:
    owners: dict[int, int] = {}
    for generation, (span, count) in enumerate(zip(layout.spans, layout.counts, strict=True)):
        assert len(span) == count
        assert span.start % layout.shard_rows == 0
        for row in span:
            shard = row // layout.shard_rows
            assert owners.setdefault(shard, generation) == generation
            assert layout.generation_of(shard) == generation
            assert row in layout
            assert row in layout.rows_of(shard)
    assert sorted(owners) == list(range(layout.shards))
    assert layout.next_row % layout.shard_rows == 0
    assert layout.next_row >= layout.extent


@given(layouts)
def test_rows_and_holes_fill_the_arrays(layout: Layout) -> None:
    rows = [row for row in range(-3, layout.extent + 9) if row in layout]
    assert rows == layout.numbers().tolist() == [row for span in layout.spans for row in span]
    assert [row for shard in range(layout.shards) for row in layout.rows_of(shard)] == rows
    assert len(rows) == layout.rows
    assert rows[-1] == layout.extent - 1


@given(layouts, st.integers(0, 12))
def test_a_later_generation_moves_nothing(layout: Layout, count: int) -> None:
    longer = Layout(layout.shard_rows, (*layout.counts, count))
    assert longer.spans[:-1] == layout.spans
    assert longer.spans[-1].start == layout.next_row
    assert layout.begins(longer)
    assert not longer.begins(layout)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Layout(4, ()),
        lambda: Layout(4, (0,)),
        lambda: Layout(4, (3, -1)),
        lambda: Layout(4, (3, True)),
        lambda: Layout(4, (MAX_ROWS, 1)),
        lambda: Layout(4, (1,) * 70_000),
    ],
)
def test_a_layout_that_cannot_be_is_refused(make: Callable[[], Layout]) -> None:
    with pytest.raises(TeacherCacheError):
        make()


def test_a_shard_that_is_not_there_is_an_error() -> None:
    layout = Layout(4, (5, 0, 3))
    assert [layout.rows_of(shard) for shard in range(3)] == [
        range(4),
        range(4, 5),
        range(8, 11),
    ]
    for shard in (-1, 3):
        with pytest.raises(IndexError, match=r"outside 0\.\.2"):
            layout.rows_of(shard)
