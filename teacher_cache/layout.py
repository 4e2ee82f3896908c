"""Which rows there are: generations of whole shards, with holes between them.

A store grows by generations. Each begins at a shard of its own, so that adding images never
touches a shard that is there; the row numbers that this skips are holes.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from .strict import TeacherCacheError, check_int

MAX_ROWS = 2**31 - 1
MAX_GENERATIONS = 2**16


@dataclass(frozen=True)
class Layout:
    """Where the rows of each generation lie.

    Attributes:
        shard_rows: S, rows per shard; the last shard of a generation may hold fewer.
        counts: rows of each generation; a later one may have none, only paths.
    """

    shard_rows: int
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        check_int(len(self.counts), "number of generations", 1, MAX_GENERATIONS)
        for generation, count in enumerate(self.counts):
            check_int(count, f"rows of generation {generation}", int(not generation), MAX_ROWS)
        if self.extent > MAX_ROWS:
            raise TeacherCacheError(f"{self.extent} rows; the format allows {MAX_ROWS}")

    @cached_property
    def spans(self) -> tuple[range, ...]:
        """Row numbers of each generation."""
        spans, start = [], 0
        for count in self.counts:
            spans.append(range(start, start + count))
            start = -(-spans[-1].stop // self.shard_rows) * self.shard_rows
        return tuple(spans)

    @property
    def rows(self) -> int:
        """Number of rows: distinct image contents."""
        return sum(self.counts)

    @cached_property
    def extent(self) -> int:
        """Length of the arrays: one more than the last row's number, holes included."""
        return max(span.stop for span in self.spans if span)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.extent // self.shard_rows)

    @property
    def next_row(self) -> int:
        """Number of the first row of a generation that were added now."""
        return self.shards * self.shard_rows

    def __contains__(self, row: int) -> bool:
        """Say whether there is a row of this number; holes and numbers outside are none."""
        return 0 <= row < self.extent and row in self.spans[self._generation_of_row(row)]

    def rows_of(self, shard: int) -> range:
        """Return the rows that `shard` holds.

        Raises:
            IndexError: there is no such shard.
        """
        if not 0 <= shard < self.shards:
            raise IndexError(f"shard {shard} is outside 0..{self.shards - 1}")
        start = shard * self.shard_rows
        stop = self.spans[self._generation_of_row(start)].stop
        return range(start, min(start + self.shard_rows, stop))

    def generation_of(self, shard: int) -> int:
        """Return the generation that `shard` belongs to."""
        return self._generation_of_row(self.rows_of(shard).start)

    def numbers(self) -> npt.NDArray[np.int64]:
        """Return the numbers of all rows, ascending."""
        return np.concatenate([np.arange(span.start, span.stop) for span in self.spans])

    def begins(self, other: Self) -> bool:
        """Say whether `other` is this layout, or this one and more generations."""
        mine = len(self.counts)
        return self.shard_rows == other.shard_rows and self.counts == other.counts[:mine]

    def _generation_of_row(self, row: int) -> int:
        # a generation without rows starts where the next one does, so the last start is right
        return bisect_right(self._starts, row) - 1

    @cached_property
    def _starts(self) -> list[int]:
        return [span.start for span in self.spans]
