"""What state a store is in, and whether its bytes are still those that were written."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .arrays import check_metadata, row_arrays
from .attributes import Attributes, Seal, State, load_attributes
from .commits import CommitLog, ShardState, records_digest
from .index import StoredIndex
from .plan_file import FOLDER, PLAN, load_plan, plan_digest
from .schema import FORMAT, Failure, TeacherCacheError
from .seal import Progress as Progress
from .seal import SealReport as SealReport
from .seal import reopen as reopen
from .seal import seal as seal
from .storage import Storage, open_storage


@dataclass(frozen=True, slots=True)
class Damage:
    """A file below the store that is not what was written, and how that shows."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStatus:
    """How far a store is.

    Attributes:
        rows: distinct image contents that were planned.
        rows_written: rows of complete shards, failed ones included.
        rows_failed: rows of complete shards whose image could not be decoded.
        shards: number of shards.
        pending: shards without a record.
        damaged: shards whose record or file sizes do not fit; contents are not read.
        failures: images without a readable row so far.
        never_read: how many of them, the first ones, could not even be read as files; they have
            no row at all.
    """

    store: Storage
    state: State
    rows: int
    rows_written: int
    rows_failed: int
    shards: int
    pending: tuple[int, ...]
    damaged: tuple[int, ...]
    failures: tuple[Failure, ...]
    never_read: int

    @property
    def complete(self) -> int:
        """Number of complete shards."""
        return self.shards - len(self.pending) - len(self.damaged)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "store": str(self.store),
            "state": self.state,
            "rows": self.rows,
            "rows_written": self.rows_written,
            "rows_failed": self.rows_failed,
            "shards": self.shards,
            "complete": self.complete,
            "pending": list(self.pending),
            "damaged": list(self.damaged),
            "failures": [[failure.path, failure.reason] for failure in self.failures],
            "never_read": self.never_read,
        }


def status(store: Path | str | Storage) -> CacheStatus:
    """Judge every shard by its record and the sizes of its files; cheap, reads no data.

    Raises:
        TeacherCacheError: missing, something else, or its card or plan is damaged.
    """
    store = open_storage(store)
    attributes = load_attributes(store)
    if attributes is not None and attributes.seal is not None:
        log = CommitLog(store, attributes.card, attributes.rows)
        failures = [failure for failure, _ in attributes.seal.failures]
        never_read = sum(row is None for _, row in attributes.seal.failures)
    else:
        card, plan = load_plan(store)
        log = CommitLog(store, card, len(plan.content))
        failures = log.failures(plan)
        never_read = len(plan.failures)
    states = [log.state(shard) for shard in range(log.shards)]
    complete = [shard for shard, state in enumerate(states) if state is ShardState.COMPLETE]
    return CacheStatus(
        store=store,
        state=attributes.state if attributes is not None else "building",
        rows=log.rows,
        rows_written=sum(len(log.rows_of(shard)) for shard in complete),
        rows_failed=sum(len(log.record(shard).failures) for shard in complete),
        shards=log.shards,
        pending=tuple(k for k, state in enumerate(states) if state is ShardState.PENDING),
        damaged=tuple(k for k, state in enumerate(states) if state is ShardState.DAMAGED),
        failures=tuple(failures),
        never_read=never_read,
    )


def verify(store: Path | str | Storage, progress: Progress | None = None) -> list[Damage]:
    """Read every byte of a store and list what is not as written; an empty list is a sound store.

    Of a store that is still building, only committed shards are read.

    Raises:
        TeacherCacheError: missing, something else, or damaged in its root `zarr.json`.
    """
    store = open_storage(store)
    attributes = load_attributes(store)
    if attributes is None:
        card, plan = load_plan(store)
        attributes = Attributes(card=card, rows=len(plan.content))
    log = CommitLog(store, attributes.card, attributes.rows)
    damages = [*_plan_damages(store, attributes.seal), *_metadata_damages(store, attributes)]
    for shard in range(log.shards):
        if attributes.seal is not None or log.state(shard) is not ShardState.PENDING:
            damages += [Damage(file, reason) for file, reason in log.damages(shard)]
        if progress is not None:
            progress(shard + 1, log.shards)
    if attributes.seal is not None:
        damages += _index_damages(StoredIndex(store, attributes.rows, attributes.seal))
        damages += _record_damages(log, attributes.seal.records, known=bool(damages))
    return damages


def info(store: Path | str | Storage) -> dict[str, Any]:
    """Describe a store as JSON: card, counts, size in bytes, identity, failures.

    Raises:
        TeacherCacheError: missing, something else, or its card or plan is damaged.
    """
    store = open_storage(store)
    attributes = load_attributes(store)
    now = status(store)
    card = attributes.card if attributes is not None else load_plan(store)[0]
    found = attributes.seal if attributes is not None else None
    return {
        **now.to_json(),
        "format": FORMAT,
        "card": card.to_json(),
        "fingerprint": card.fingerprint(),
        "paths": found.paths if found else None,
        "content_hash": found.content_hash if found else None,
        "certificate": dict(found.certificate) if found and found.certificate else None,
        "size_bytes": sum(size for _, size in store.files()),
    }


def _plan_damages(store: Storage, seal: Seal | None) -> Iterator[Damage]:
    try:
        if seal is None:
            load_plan(store)
        elif plan_digest(store) != seal.plan:
            yield Damage(PLAN, "does not match the seal; no reader needs it, a new build does")
    except (TeacherCacheError, OSError) as error:
        yield Damage(PLAN, str(error))


def _metadata_damages(store: Storage, attributes: Attributes) -> Iterator[Damage]:
    for array in row_arrays(attributes.card):
        where = f"{array.name}/zarr.json"
        try:
            check_metadata(store, where, array.metadata(attributes.rows))
        except TeacherCacheError as error:
            yield Damage(where, str(error))


def _index_damages(index: StoredIndex) -> Iterator[Damage]:
    try:
        index.check()
    except TeacherCacheError as error:
        yield Damage("index", str(error))
        return
    for name in sorted(index.seal.tables):
        try:
            index.load(name)
        except TeacherCacheError as error:
            yield Damage(name, str(error))


def _record_damages(log: CommitLog, sealed: str, *, known: bool) -> Iterator[Damage]:
    # each record was judged by itself already; this notices one swapped for another valid one
    if not known and records_digest([log.record(k) for k in range(log.shards)]) != sealed:
        yield Damage(FOLDER, "a commit record is valid but not the one that was sealed")
