"""What is different between two caches, row by row, in units of the losses."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .commits import Progress
from .index import StoredIndex
from .plan_file import has_newer_plan, load_plans
from .reader import TeacherCache, TeacherRow
from .storage.local import Storage, open_storage

_TINY = 1e-38

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDifference:
    """An image of which two caches hold different rows.

    Attributes:
        path: a manifest path of it, of A or else of B; empty where neither has one any more.
        row_a, row_b: its rows.
        gram_rms: RMS difference of the cosine Gram over pairs of image patches. A student that
            fits one cache exactly has L_vis = gram_rms^2 against the other.
        gram_max: largest absolute difference of the Gram.
        attention_kl: KL(A || B) of the attention over image patches, in nats, as L_att takes it.
        attention_max: largest absolute difference of attention.
        valid: patches that are image in one cache and padding in the other.
        missing: `A` or `B` where that cache could not decode the image; the numbers are 0 then.
    """

    path: str
    row_a: int
    row_b: int
    gram_rms: float = 0.0
    gram_max: float = 0.0
    attention_kl: float = 0.0
    attention_max: float = 0.0
    valid: int = 0
    missing: str = ""

    @property
    def severity(self) -> tuple[bool, int, float, float]:
        """Order from bad to worse: numbers, then what counts as image, then no numbers at all."""
        return bool(self.missing), self.valid, self.gram_rms, self.attention_kl


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheDiff:
    """How cache A differs from cache B; images are matched by their content.

    Attributes:
        card: fields that decide numbers and differ, each with both sides.
        comparable: whether the patch grids are the same; if not, no two rows can be compared, and
            all numbers below are 0.
        same, different: images of both caches, by whether their rows are the same.
        only_a, only_b: number of images that only one cache has.
        unsealed_a, unsealed_b: rows that were added to a cache since it was sealed; they are not
            compared.
        examples_a, examples_b: paths of some of them.
        gram_rms: over the different rows together.
        gram_max, attention_kl, attention_max: largest of any different row.
        worst: the rows that differ most.
    """

    a: str
    b: str
    card: tuple[str, ...]
    comparable: bool
    same: int
    different: int
    only_a: int
    only_b: int
    unsealed_a: int
    unsealed_b: int
    examples_a: tuple[str, ...]
    examples_b: tuple[str, ...]
    gram_rms: float
    gram_max: float
    attention_kl: float
    attention_max: float
    worst: tuple[RowDifference, ...]

    @property
    def equal(self) -> bool:
        """Whether both caches teach the same."""
        return not (self.card or self.different or self.only_a or self.only_b)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"equal": self.equal, **asdict(self)}


def diff(
    a: Path | str | Storage,
    b: Path | str | Storage,
    progress: Progress | None = None,
    *,
    limit: int = 10,
) -> CacheDiff:
    """Compare two sealed caches.

    Rows whose sealed digests are equal are not read. Order, paths, shards and versions of
    libraries do not count.

    Args:
        a: folder or URL of the one cache.
        b: of the other.
        progress: called after every row that has to be read.
        limit: most rows and paths to name.

    Raises:
        TeacherCacheError: either is missing, not sealed or damaged.
    """
    one, other = _Side(a), _Side(b)
    _, at_a, at_b = np.intersect1d(one.content, other.content, return_indices=True)
    comparable = one.cache.card.grid == other.cache.card.grid
    unequal = _unequal(one, other, at_a, at_b)
    pairs = [(one.rows[at_a[k]], other.rows[at_b[k]]) for k in unequal] if comparable else []
    total = _Total()
    differences = total.watch(_compared(one, other, pairs, progress))
    worst = heapq.nlargest(limit, differences, key=attrgetter("severity"))
    only_a, only_b = _without(one.rows, at_a), _without(other.rows, at_b)
    return CacheDiff(
        a=str(one.cache.store),
        b=str(other.cache.store),
        card=tuple(_card_differences(one.cache, other.cache)),
        comparable=comparable,
        same=len(at_a) - len(unequal),
        different=len(unequal),
        only_a=len(only_a),
        only_b=len(only_b),
        unsealed_a=one.unsealed,
        unsealed_b=other.unsealed,
        examples_a=one.names(only_a[:limit]),
        examples_b=other.names(only_b[:limit]),
        gram_rms=float(np.sqrt(total.squares / max(total.rows, 1))),
        gram_max=total.gram_max,
        attention_kl=total.attention_kl,
        attention_max=total.attention_max,
        worst=tuple(_named(difference, one, other) for difference in worst),
    )


class _Side:
    """One of the two caches.

    Attributes:
        rows: numbers of its rows, ascending.
        content: SHA-256 of each of those.
        digest: of each row's values.
        failed: which of them hold no data.
        unsealed: how many more there are that no seal covers.
    """

    def __init__(self, store: Path | str | Storage) -> None:
        store = open_storage(store)
        self.cache = TeacherCache.open(store)
        seal = self.cache.seal
        assert seal is not None
        index = StoredIndex(store, seal)
        self.rows: Rows = self.cache.row_numbers()
        # As text numpy sorts them; all have one length, so that trailing zeros mean nothing.
        self.content = np.ascontiguousarray(index.load("content")[self.rows]).view("S32")[:, 0]
        self.digest = index.load("row_digest")[self.rows]
        self.failed = np.isin(self.rows, list(seal.reasons))
        self.unsealed = 0
        if has_newer_plan(store, seal.generations):
            _, chain = load_plans(store)
            self.unsealed = chain.layout.rows - len(self.rows)

    def names(self, rows: Rows) -> tuple[str, ...]:
        """Return a path of each row, its digest where none leads to it any more."""
        paths = self.cache.paths_of(rows.tolist())
        return tuple(
            next(iter(paths[row]), f"sha256 {self.cache.sha256_of(row)}") for row in rows.tolist()
        )


@dataclass
class _Total:
    """Sums and largest values over rows as they pass."""

    rows: int = 0
    squares: float = 0.0
    gram_max: float = 0.0
    attention_kl: float = 0.0
    attention_max: float = 0.0

    def watch(self, differences: Iterator[RowDifference]) -> Iterator[RowDifference]:
        for row in differences:
            self.rows += not row.missing
            self.squares += row.gram_rms**2
            self.gram_max = max(self.gram_max, row.gram_max)
            self.attention_kl = max(self.attention_kl, row.attention_kl)
            self.attention_max = max(self.attention_max, row.attention_max)
            yield row


def _unequal(one: _Side, other: _Side, at_a: Rows, at_b: Rows) -> Rows:
    """Return which of the common images differ, by digests; two failures are equal."""
    lost_a, lost_b = one.failed[at_a], other.failed[at_b]
    differ = (one.digest[at_a] != other.digest[at_b]).any(axis=1)
    return np.flatnonzero((lost_a != lost_b) | (differ & ~lost_a & ~lost_b))


def _without(rows: Rows, taken: Rows) -> Rows:
    remaining = np.ones(len(rows), np.bool_)
    remaining[taken] = False
    return rows[remaining]


def _compared(
    one: _Side, other: _Side, pairs: Sequence[tuple[int, int]], progress: Progress | None
) -> Iterator[RowDifference]:
    for done, (row_a, row_b) in enumerate(pairs, 1):
        there_a, there_b = row_a in one.cache, row_b in other.cache
        if there_a and there_b:
            yield _compare(int(row_a), one.cache[int(row_a)], int(row_b), other.cache[int(row_b)])
        else:
            missing = "A" if there_b else "B"
            yield RowDifference(path="", row_a=int(row_a), row_b=int(row_b), missing=missing)
        if progress is not None:
            progress(done, len(pairs))


def _compare(row_a: int, a: TeacherRow, row_b: int, b: TeacherRow) -> RowDifference:
    both = a.valid & b.valid
    gram = (a.gram().astype(np.float64) - b.gram())[np.ix_(both, both)]
    p, q = a.attention[both].astype(np.float64), b.attention[both].astype(np.float64)
    return RowDifference(
        path="",
        row_a=row_a,
        row_b=row_b,
        gram_rms=float(np.sqrt(np.square(gram).mean())) if both.any() else 0.0,
        gram_max=float(np.abs(gram).max(initial=0)),
        attention_kl=_divergence(p, q),
        attention_max=float(np.abs(p - q).max(initial=0)),
        valid=int((a.valid != b.valid).sum()),
    )


def _divergence(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    """Return KL(p || q) in nats, each made to sum to 1; zeros count as the least number."""
    p, q = np.maximum(p, _TINY), np.maximum(q, _TINY)
    p, q = p / p.sum(), q / q.sum()
    return max(0.0, float((p * np.log(p / q)).sum()))


def _named(difference: RowDifference, one: _Side, other: _Side) -> RowDifference:
    row_a, row_b = difference.row_a, difference.row_b
    paths = one.cache.paths_of([row_a])[row_a] or other.cache.paths_of([row_b])[row_b]
    return replace(difference, path=paths[0] if paths else "")


def _card_differences(a: TeacherCache, b: TeacherCache) -> Iterator[str]:
    mine, theirs = a.card.identity(), b.card.identity()
    for key in mine:
        if mine[key] != theirs[key]:
            yield f"{key} is {mine[key]!r} in A, {theirs[key]!r} in B"
