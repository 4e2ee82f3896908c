"""Merge caches and cut subsets out of them: rows are copied as they lie, after being checked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from .attributes import Seal
from .commits import ROW_DIGEST_BYTES, Progress, row_digests_of
from .format.arrays import row_arrays
from .format.shard_file import RowReader
from .generations import next_generation
from .index import StoredIndex
from .plan_file import has_plan, load_plans
from .reader import InFlight, TeacherCache
from .schema import CacheCard, Failure, Plan, TeacherCacheError
from .seal import seal
from .storage.local import LocalStorage, Storage, keep_open, open_storage
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

    After a kill at any moment, the same call continues. The content hash is that of one build
    over all images. Rows that no path leads to any more are left behind.

    Args:
        sources: sealed caches of one card.
        out: folder or URL of the new cache.
        progress: called after every shard.
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
    selection = _Selection()
    for source in opened:
        selection.add(source, source.paths())
    if selection.conflicts and prefer is None:
        examples = ", ".join(sorted(selection.conflicts)[:_SHOWN])
        raise TeacherCacheError(
            f"{len(selection.conflicts)} paths have different images in these caches, for example "
            f"{examples}; --prefer first takes those of the first cache"
        )
    return _copy(opened, selection, out, progress)


def subset(
    source: Path | str | Storage,
    paths: Iterable[str],
    out: Path | str | Storage,
    progress: Progress | None = None,
) -> CopyReport:
    """Copy the rows of `paths` from a sealed cache into a new one, and seal it.

    After a kill at any moment, the same call continues. Images that failed are carried as failures.

    Args:
        source: sealed cache.
        paths: manifest paths.
        out: folder or URL of the new cache.
        progress: called after every shard.

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
    selection = _Selection()
    selection.add(opened, rows)
    return _copy([opened], selection, out, progress)


@dataclass(frozen=True)
class _Source:
    """A sealed cache that rows are copied from."""

    store: Storage
    card: CacheCard
    seal: Seal
    index: StoredIndex

    @classmethod
    def open(cls, store: Path | str | Storage) -> "_Source":
        store = open_storage(store)
        cache = TeacherCache.open(store)  # refuses what is not sealed or lies
        assert cache.seal is not None
        return cls(store, cache.card, cache.seal, StoredIndex(store, cache.seal))

    @cached_property
    def reasons(self) -> Mapping[int, str]:
        """Row -> why its image could not be decoded."""
        return self.seal.reasons

    @cached_property
    def unreadable(self) -> Mapping[str, str]:
        """Path -> why its image could not be read at all."""
        return self.seal.unreadable

    def paths(self) -> dict[str, int | None]:
        """Return the row of every path, None where its image could not be read at all."""
        rows = zip(self.index.paths, self.index.path_rows().tolist(), strict=True)
        return {**dict.fromkeys(self.unreadable), **dict(rows)}

    def readers(self) -> dict[str, RowReader]:
        """Return a reader of each array."""
        files, rows_of = keep_open(self.store), self.seal.layout.rows_of
        return {array.name: RowReader(files, array, rows_of) for array in row_arrays(self.card)}


@dataclass
class _Selection:
    """What a new cache is to hold, and which source has it.

    Attributes:
        paths: manifest path -> content (SHA-256, hex).
        failures: path -> why its image could not be read.
        origins: content -> source and row.
        conflicts: paths with another content in a later source.
        differing: contents with other numbers in a later source.
    """

    paths: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    origins: dict[str, tuple[_Source, int]] = field(default_factory=dict)
    conflicts: set[str] = field(default_factory=set)
    differing: set[str] = field(default_factory=set)

    def add(self, source: _Source, rows: Mapping[str, int | None]) -> None:
        """Add paths of a source; those of earlier sources stay."""
        for path, row in rows.items():
            if row is None:
                self.failures.setdefault(path, source.unreadable[path])
                continue
            content = source.index.content_of(row)
            if self.paths.setdefault(path, content) != content:
                self.conflicts.add(path)
                continue
            first = self.origins.setdefault(content, (source, row))
            if first[0] is not source:
                self._compare(content, first, (source, row))

    def plan(self) -> Plan:
        """Return the plan of the new cache, its rows in the order of the sources' files."""
        order = {id(source): number for number, (source, _) in enumerate(self.origins.values())}

        def file_order(content: str) -> tuple[int, int]:
            source, row = self.origins[content]
            return order[id(source)], row

        content = sorted(self.origins, key=file_order)
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
            self.origins[content] = later
        elif failed == [False, False] and digests[0] != digests[1]:
            self.differing.add(content)


def _check_cards(first: _Source, other: _Source) -> None:
    here, there = first.card.identity(), other.card.identity()
    differences = [
        f"{key} is {there[key]!r} there and {here[key]!r} here"
        for key in here
        if here[key] != there[key]
    ]
    if differences:
        raise TeacherCacheError(
            f"{other.store} cannot be merged with {first.store}: {'; '.join(differences)}"
        )


def _copy(
    sources: Sequence[_Source],
    selection: _Selection,
    out: Path | str | Storage,
    progress: Progress | None,
) -> CopyReport:
    out = open_storage(out)
    plan = selection.plan()
    _check_out(out, sources, plan)
    writer = TeacherCacheWriter.begin(out, sources[0].card, plan)
    readers = {id(source): source.readers() for source in sources}
    local = all(isinstance(source.store, LocalStorage) for source in sources)
    flight, pending = InFlight(1 if local else _IN_FLIGHT), writer.pending()
    for done, shard in enumerate(pending, 1):
        rows = writer.rows_of(shard)
        origins = [_origin_of(writer, selection, row) for row in rows]
        copied = flight.map(lambda origin: _row(*origin, readers[id(origin[0])]), origins)
        chunks = {name: [row.chunks[name] for row in copied] for name in copied[0].chunks}
        digests = np.frombuffer(b"".join(row.digest for row in copied), np.uint8)
        failures = {
            row: source.reasons[old]
            for row, (source, old) in zip(rows, origins, strict=True)
            if old in source.reasons
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
        conflicts=len(selection.conflicts),
        differing=len(selection.differing),
    )


def _check_out(out: Storage, sources: Sequence[_Source], plan: Plan) -> None:
    """Refuse a place that would be grown instead of filled: a source, or another cache.

    Raises:
        TeacherCacheError: it is one of those.
    """
    if _location(out) in {_location(source.store) for source in sources}:
        raise TeacherCacheError(f"{out} is one of the caches to copy from; give another --out")
    if not has_plan(out):
        return
    _, chain = load_plans(out)
    first = chain.starting(1)
    adds = any(next_generation(plans, plan) is not None for plans in (first, chain))
    if adds or len(first.paths) != len(plan.paths):
        raise TeacherCacheError(
            f"{out} is a cache that was begun for other images than these; give another --out"
        )


def _location(store: Storage) -> Path | str:
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


def _origin_of(writer: TeacherCacheWriter, selection: _Selection, row: int) -> tuple[_Source, int]:
    content = writer.plan.content_of(row)
    if content not in selection.origins:
        raise TeacherCacheError(
            f"{writer.store} was begun for other images: these caches lack the image of row "
            f"{row}; give another --out, or the caches it was begun with"
        )
    return selection.origins[content]
