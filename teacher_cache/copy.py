"""Merge caches and cut subsets out of them: rows are copied as they lie, after being checked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from .attributes import Seal, load_attributes
from .build_plan import Failure, Plan
from .commits import ROW_DIGEST_BYTES, row_digests_of
from .format.arrays import row_arrays
from .format.shard_file import RowReader
from .generations import next_generation
from .index import StoredIndex
from .plan_file import has_plan, load_plans
from .reader import InFlight, TeacherCache
from .schema import CacheCard, TeacherCacheError
from .seal import Progress, seal
from .storage.local import LocalStorage, Storage, open_storage
from .storage.open_files import keep_open
from .storage.untrusted import within
from .writer import TeacherCacheWriter

_IN_FLIGHT = 16
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyReport:
    """What was copied.

    Attributes:
        store: the new cache, sealed.
        rows: of the new cache.
        shards: of the new cache.
        copied: shards that this run wrote; those of an earlier, killed run stay.
        failures: images without a readable row.
        content_hash: identity of what the new cache holds.
        conflicts: paths whose image differs between the sources; the first source's was taken.
        differing: images that the sources have different numbers of; the first source's were taken.
    """

    store: Storage
    rows: int
    shards: int
    copied: int
    failures: tuple[Failure, ...]
    content_hash: str
    conflicts: int
    differing: int


def merge(
    sources: Sequence[Path | str | Storage],
    out: Path | str | Storage,
    progress: Progress | None = None,
    *,
    prefer: Literal["first"] | None = None,
) -> CopyReport:
    """Copy everything that a path leads to from several sealed caches into one, and seal it.

    Killed at any moment, the same call goes on. The content hash is that of one build over all
    images. Rows that no path leads to any more are left behind.

    Args:
        sources: sealed caches of one card.
        out: folder or URL of the new cache.
        progress: told of every shard.
        prefer: `first` takes the image of the first source where a path has several.

    Raises:
        TeacherCacheError: the cards differ, a path has different images, a source is damaged, or
            `out` is something else or cannot be written.
    """
    opened = [_Source.open(source) for source in sources]
    if len(opened) < 2:
        raise TeacherCacheError(f"merge takes at least two caches, got {len(opened)}")
    for source in opened[1:]:
        _check_cards(opened[0], source)
    wanted = _Wanted()
    for source in opened:
        wanted.take(source, source.paths())
    if wanted.conflicts and prefer is None:
        examples = ", ".join(sorted(wanted.conflicts)[:_SHOWN])
        raise TeacherCacheError(
            f"{len(wanted.conflicts)} paths have different images in these caches, for example "
            f"{examples}; --prefer first takes those of the first cache"
        )
    return _copy(opened, wanted, out, progress)


def subset(
    source: Path | str | Storage,
    paths: Iterable[str],
    out: Path | str | Storage,
    progress: Progress | None = None,
) -> CopyReport:
    """Copy the rows of `paths` from a sealed cache into a new one, and seal it.

    Killed at any moment, the same call goes on. Images that failed are carried as failures.

    Args:
        source: sealed cache.
        paths: manifest paths.
        out: folder or URL of the new cache.
        progress: told of every shard.

    Raises:
        TeacherCacheError: `source` does not know a path or is damaged, or `out` is something else
            or cannot be written.
    """
    opened = _Source.open(source)
    rows: dict[str, int | None] = {}
    unknown = []
    for path in paths:
        if (row := opened.index.path_row(path)) is not None:
            rows[path] = row
        elif path in opened.unreadable:
            rows[path] = None
        else:
            unknown.append(path)
    if unknown:
        raise TeacherCacheError(
            f"{opened.store} lacks {len(unknown)} of the images, for example "
            f"{', '.join(unknown[:_SHOWN])}; `medalign cache build` adds them"
        )
    wanted = _Wanted()
    wanted.take(opened, rows)
    return _copy([opened], wanted, out, progress)


@dataclass(frozen=True)
class _Source:
    """A sealed cache that rows are copied from."""

    store: Storage
    card: CacheCard
    seal: Seal
    index: StoredIndex
    reasons: Mapping[int, str]
    unreadable: Mapping[str, str]

    @classmethod
    def open(cls, store: Path | str | Storage) -> "_Source":
        store = open_storage(store)
        TeacherCache.open(store)  # refuses what is not sealed or lies
        attributes = load_attributes(store)
        assert attributes is not None
        assert attributes.seal is not None
        found = attributes.seal
        failures = found.failures
        return cls(
            store=store,
            card=attributes.card,
            seal=found,
            index=StoredIndex(store, found),
            reasons={each.row: each.reason for each in failures if each.row is not None},
            unreadable={
                each.path: each.reason for each in failures if each.path and each.row is None
            },
        )

    def paths(self) -> dict[str, int | None]:
        """Return the row of every path, None where its image could not be read at all."""
        rows = zip(self.index.paths(), self.index.path_rows().tolist(), strict=True)
        return {**dict.fromkeys(self.unreadable), **dict(rows)}

    def readers(self) -> dict[str, RowReader]:
        """Return a reader of each array."""
        files, rows_of = keep_open(self.store), self.seal.layout.rows_of
        return {array.name: RowReader(files, array, rows_of) for array in row_arrays(self.card)}


@dataclass
class _Wanted:
    """What a new cache shall hold, and where it is.

    Attributes:
        paths: manifest path -> content (SHA-256, hex).
        failures: path -> why its image could not be read.
        places: content -> source and row.
        conflicts: paths with another content in a later source.
        differing: contents with other numbers in a later source.
    """

    paths: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    places: dict[str, tuple[_Source, int]] = field(default_factory=dict)
    conflicts: set[str] = field(default_factory=set)
    differing: set[str] = field(default_factory=set)

    def take(self, source: _Source, rows: Mapping[str, int | None]) -> None:
        """Add paths of a source; what is there already stays."""
        for path, row in rows.items():
            if row is None:
                self.failures.setdefault(path, source.unreadable[path])
                continue
            content = source.index.content_of(row)
            if self.paths.setdefault(path, content) != content:
                self.conflicts.add(path)
                continue
            known, there = self.places.setdefault(content, (source, row))
            if known is not source:
                self._compare(content, (known, there), (source, row))

    def plan(self) -> Plan:
        """Return the plan of the new cache, its rows in the order of the sources' files."""
        order = {id(source): place for place, (source, _) in enumerate(self.places.values())}
        content = sorted(
            self.places, key=lambda each: (order[id(self.places[each][0])], self.places[each][1])
        )
        rows = {digest: row for row, digest in enumerate(content)}
        return Plan(
            content=tuple(content),
            paths={path: rows[digest] for path, digest in self.paths.items()},
            failures=tuple(
                Failure(path, why) for path, why in self.failures.items() if path not in self.paths
            ),
        )

    def _compare(
        self, content: str, first: tuple[_Source, int], later: tuple[_Source, int]
    ) -> None:
        failed = [row in source.reasons for source, row in (first, later)]
        digests = [source.index.row_digest(row) for source, row in (first, later)]
        if failed == [True, False]:  # a decoder was installed for the later one
            self.places[content] = later
        elif failed == [False, False] and digests[0] != digests[1]:
            self.differing.add(content)


def _check_cards(first: _Source, other: _Source) -> None:
    wanted, found = first.card.identity(), other.card.identity()
    differences = [
        f"{key} is {found[key]!r} there and {wanted[key]!r} here"
        for key in wanted
        if wanted[key] != found[key]
    ]
    if differences:
        raise TeacherCacheError(
            f"{other.store} cannot be merged with {first.store}: {'; '.join(differences)}"
        )


def _copy(
    sources: Sequence[_Source],
    wanted: _Wanted,
    out: Path | str | Storage,
    progress: Progress | None,
) -> CopyReport:
    out = open_storage(out)
    plan = wanted.plan()
    _check_out(out, sources, plan)
    writer = TeacherCacheWriter.begin(out, sources[0].card, plan)
    readers = {id(source): source.readers() for source in sources}
    local = all(isinstance(source.store, LocalStorage) for source in sources)
    flight, pending = InFlight(1 if local else _IN_FLIGHT), writer.pending()
    for done, shard in enumerate(pending, 1):
        places = [_place_of(writer, wanted, row) for row in writer.rows_of(shard)]
        copied = flight.each(lambda place: _row(*place, readers[id(place[0])]), places)
        chunks = {name: [row.chunks[name] for row in copied] for name in copied[0].chunks}
        digests = np.frombuffer(b"".join(row.digest for row in copied), np.uint8)
        rows = zip(writer.rows_of(shard), places, strict=True)
        failures = {
            row: source.reasons[there] for row, (source, there) in rows if there in source.reasons
        }
        writer.write_chunks(shard, chunks, digests.reshape(-1, ROW_DIGEST_BYTES), failures)
        if progress is not None:
            progress(done, len(pending))
    sealed = seal(out)
    return CopyReport(
        store=out,
        rows=sealed.rows,
        shards=sealed.shards,
        copied=len(pending),
        failures=sealed.failures,
        content_hash=sealed.content_hash,
        conflicts=len(wanted.conflicts),
        differing=len(wanted.differing),
    )


def _check_out(out: Storage, sources: Sequence[_Source], plan: Plan) -> None:
    """Refuse a place that would be grown instead of filled: a source, or another cache.

    Raises:
        TeacherCacheError: it is one of those.
    """
    if _place(out) in {_place(source.store) for source in sources}:
        raise TeacherCacheError(f"{out} is one of the caches to copy from; give another --out")
    if not has_plan(out):
        return
    _, chain = load_plans(out)
    first = chain.starting(1)
    adds = any(next_generation(each, plan) is not None for each in (first, chain))
    if adds or len(first.paths) != len(plan.paths):
        raise TeacherCacheError(
            f"{out} is a cache that was begun for other images than these; give another --out"
        )


def _place(store: Storage) -> Path | str:
    """Return what is the same for every spelling of a folder."""
    return store.folder.resolve() if isinstance(store, LocalStorage) else store.url


@dataclass(frozen=True, slots=True)
class _Row:
    """Bytes of a row in each array, with their checksums, and the digest of its values."""

    chunks: Mapping[str, bytes]
    digest: bytes


def _row(source: _Source, row: int, readers: Mapping[str, RowReader]) -> _Row:
    """Read a row as it lies, and hold its values against what was sealed."""
    chunks = {name: reader.raw_chunk(row) for name, reader in readers.items()}
    digest = source.index.row_digest(row)
    if row not in source.reasons:
        with within(f"row {row} of {source.store}"):
            values = {
                name: reader.decode(np.frombuffer(chunks[name], np.uint8))[None]
                for name, reader in readers.items()
            }
        if row_digests_of(values).tobytes() != digest:
            raise TeacherCacheError(
                f"row {row} of {source.store} does not match the digest that was sealed; "
                f"`medalign cache verify --mend {source.store}` lists all damage, and makes it "
                "pending for the next build"
            )
    return _Row(chunks, digest)


def _place_of(writer: TeacherCacheWriter, wanted: _Wanted, row: int) -> tuple[_Source, int]:
    content = writer.plan.content_of(row)
    if content not in wanted.places:
        raise TeacherCacheError(
            f"{writer.store} was begun for other images: row {row} is of one that these caches "
            "lack; give another --out, or the caches it was begun with"
        )
    return wanted.places[content]
