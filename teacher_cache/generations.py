"""What all generations of a store plan together, and what a wanted plan adds to that."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from .schema import Failure, Plan, check_failures
from .storage.untrusted import MAX_ROWS, TeacherCacheError, check_int, check_relative

MAX_GENERATIONS = 2**16
DIGEST_BYTES = 32


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
        """Return whether there is a row of this number; holes and numbers outside are none."""
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
        """Return whether `other` is this layout, or this one and more generations."""
        mine = len(self.counts)
        return self.shard_rows == other.shard_rows and self.counts == other.counts[:mine]

    def _generation_of_row(self, row: int) -> int:
        # a generation without rows starts where the next one does, so the last start is right
        return bisect_right(self._starts, row) - 1

    @cached_property
    def _starts(self) -> list[int]:
        return [span.start for span in self.spans]


@dataclass(frozen=True)
class Generation:
    """What one generation adds; on disk before its first row, and never changed.

    Attributes:
        content: SHA-256 of each new row's image file, 32 bytes each, in row order.
        paths: manifest path -> row, of this or an earlier generation; overrides earlier ones.
        failures: images that could not even be read for hashing.
    """

    content: bytes
    paths: Mapping[str, int] = field(hash=False)
    failures: tuple[Failure, ...] = ()

    @property
    def rows(self) -> int:
        """Number of new rows."""
        return len(self.content) // DIGEST_BYTES


@dataclass(frozen=True)
class PlanChain:
    """The plans of all generations of a store as one.

    Attributes:
        shard_rows: S, rows per shard.
        generations: from the first on.
        digests: SHA-256 (hex) of each generation's plan file.
    """

    shard_rows: int
    generations: tuple[Generation, ...]
    digests: tuple[str, ...]

    @cached_property
    def layout(self) -> Layout:
        """Where the rows lie."""
        return Layout(self.shard_rows, tuple(added.rows for added in self.generations))

    @cached_property
    def paths(self) -> Mapping[str, int]:
        """Manifest path -> row."""
        if len(self.generations) == 1:
            return self.generations[0].paths
        return {path: row for added in self.generations for path, row in added.paths.items()}

    @cached_property
    def failures(self) -> tuple[Failure, ...]:
        """Images that were never readable, under paths that have no row up to now."""
        reasons = {fail.path: fail.reason for added in self.generations for fail in added.failures}
        return tuple(Failure(path, why) for path, why in reasons.items() if path not in self.paths)

    def content_of(self, row: int) -> str:
        """Return the SHA-256 (hex) of the image that `row` is made from."""
        generation = self.layout.generation_of(row // self.shard_rows)
        start = (row - self.layout.spans[generation].start) * DIGEST_BYTES
        return self.generations[generation].content[start : start + DIGEST_BYTES].hex()

    def content_row(self, digest: str) -> int | None:
        """Return the row of an image content (SHA-256, hex)."""
        return self._rows.get(bytes.fromhex(digest))

    def path_row(self, path: str) -> int | None:
        """Return the row of a manifest path."""
        return self.paths.get(path)

    def path_rows(self) -> npt.NDArray[np.int32]:
        """Return the row of every path, in the order of `paths`."""
        return np.fromiter(self.paths.values(), np.int32, len(self.paths))

    def content_table(self) -> npt.NDArray[np.uint8]:
        """Return the digests of all rows as [extent, 32]; holes hold zeros."""
        table = np.zeros((self.layout.extent, DIGEST_BYTES), np.uint8)
        for span, added in zip(self.layout.spans, self.generations, strict=True):
            table[span.start : span.stop] = digests_of(added.content)
        return table

    def path_of_rows(self) -> dict[int, str]:
        """Return one manifest path of each row that has any: the first that leads to it."""
        first: dict[int, str] = {}
        for path, row in self.paths.items():
            first.setdefault(row, path)
        return first

    def starting(self, count: int) -> Self:
        """Return the chain of the first `count` generations."""
        return type(self)(self.shard_rows, self.generations[:count], self.digests[:count])

    @cached_property
    def _rows(self) -> dict[bytes, int]:
        return {
            added.content[start : start + DIGEST_BYTES]: row
            for span, added in zip(self.layout.spans, self.generations, strict=True)
            for start, row in zip(range(0, len(added.content), DIGEST_BYTES), span, strict=True)
        }


def first_generation(plan: Plan) -> Generation:
    """Return the first generation of a store that shall hold `plan`.

    Raises:
        TeacherCacheError: it has no readable image.
    """
    if not plan.content:
        raise TeacherCacheError("a new cache takes at least one readable image")
    return Generation(bytes.fromhex("".join(plan.content)), plan.paths, plan.failures)


def next_generation(chain: PlanChain, plan: Plan) -> Generation | None:
    """Return what `plan` adds to a store; None where everything is there.

    New are contents without a row, paths without a row or with another content, and failures of
    paths that the store does not know. Reasons of failures do not count.
    """
    content = ((path, plan.content[number]) for path, number in plan.paths.items())
    changed = {
        path: digest
        for path, digest in content
        if (row := chain.paths.get(path)) is None or chain.content_of(row) != digest
    }
    known = chain.paths.keys() | {failure.path for failure in chain.failures}
    failures = tuple(failure for failure in plan.failures if failure.path not in known)
    if not changed and not failures:
        return None
    stored = {
        digest: row for digest in changed.values() if (row := chain.content_row(digest)) is not None
    }
    new = set(changed.values()) - stored.keys()
    added = [digest for digest in plan.content if digest in new]
    rows = stored | {digest: row for row, digest in enumerate(added, chain.layout.next_row)}
    paths = {path: rows[digest] for path, digest in changed.items()}
    return Generation(bytes.fromhex("".join(added)), paths, failures)


def check_generation(layout: Layout, added: Generation) -> None:
    """Refuse a generation from a file that cannot be the last of `layout`.

    Raises:
        TeacherCacheError: it adds nothing, a path leaves the image folder or leads to no row.
    """
    if not (added.rows or added.paths or added.failures):
        raise TeacherCacheError("a generation adds an image, a path or a failure")
    for path in added.paths:
        check_relative(path)
    rows = np.unique(np.fromiter(added.paths.values(), np.int64, len(added.paths)))
    starts = np.array([span.start for span in layout.spans])
    stops = np.array([span.stop for span in layout.spans])
    if (rows >= stops[np.searchsorted(starts, rows, "right") - 1]).any():
        raise TeacherCacheError(f"a path leads to a row that is not one of the {layout.rows}")
    span = layout.spans[-1]
    if np.count_nonzero((rows >= span.start) & (rows < span.stop)) != len(span):
        raise TeacherCacheError("every new row of a generation takes at least one path")
    check_failures(added.failures)
    for failure in added.failures:
        if failure.path in added.paths:
            raise TeacherCacheError(f"{failure.path} has both a row and a failure")


def check_distinct(chain: PlanChain) -> None:
    """Refuse a chain that gives two rows to one content.

    Raises:
        TeacherCacheError: it does.
    """
    digests = np.concatenate([digests_of(added.content) for added in chain.generations])
    prefix = np.sort(prefix_of(digests))
    if (prefix[1:] != prefix[:-1]).all():  # the usual case, and four times faster to check
        return
    ordered = digests[order_of(digests)]
    if (ordered[1:] == ordered[:-1]).all(axis=1).any():
        raise TeacherCacheError("a plan takes every content once, got a digest twice")


def digests_of(content: bytes) -> npt.NDArray[np.uint8]:
    """Return SHA-256 digests, 32 bytes each, as [rows, 32]."""
    return np.frombuffer(content, np.uint8).reshape(-1, DIGEST_BYTES)


def order_of(digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the positions of digests [rows, 32] in ascending order of their bytes."""
    words = digests.copy().view(">u8")
    order: npt.NDArray[np.int64] = np.lexsort(words.T[::-1])
    return order


def prefix_of(digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return the first 8 bytes of digests [rows, 32], big-endian, as numbers [rows]."""
    return digests[:, :8].copy().view(">u8")[:, 0].astype(np.uint64)
