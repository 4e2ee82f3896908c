"""Turn a finished build into a sealed cache, and a damaged one back into a build."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .attributes import Attributes, Seal, load_attributes, save_attributes
from .commits import CommitLog, ShardRecord, ShardState, content_hash, records_digest
from .index import save_tables, tables_of, values_digest
from .plan_file import load_plan, plan_digest
from .reader import TeacherCache
from .schema import Failure, Plan, TeacherCacheError
from .storage import Storage, explaining_disk_errors, open_storage

Progress = Callable[[int, int], None]
"""Called with the shards done so far and all of them."""
Certify = Callable[[TeacherCache], Mapping[str, Any]]
"""Given the complete cache before it is sealed; returns its certificate, or raises."""
_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SealReport:
    """What sealing found.

    Attributes:
        already: the store was sealed before; nothing was checked or written.
        swept: temporary files of killed writers that were deleted.
    """

    store: Storage
    rows: int
    shards: int
    failures: tuple[Failure, ...]
    content_hash: str
    already: bool
    swept: int = 0


def seal(
    store: Path | str | Storage,
    progress: Progress | None = None,
    *,
    certify: Certify | None = None,
) -> SealReport:
    """Check every byte of every shard against its record, write the index, and seal the store.

    A shard that does not match loses its record, so that the next build writes it again.

    Args:
        store: folder or URL of the cache.
        progress: told of every shard.
        certify: makes the certificate that the seal carries; if it raises, nothing is sealed.

    Raises:
        TeacherCacheError: shards are pending or damaged, named with the way out.
    """
    store = open_storage(store)
    attributes = load_attributes(store)
    if attributes is not None and attributes.seal is not None:
        return _report(store, attributes, attributes.seal, already=True)
    card, plan = load_plan(store)
    if attributes is not None and (attributes.rows, attributes.card) != (len(plan.content), card):
        raise TeacherCacheError(f"{store}: zarr.json does not fit the plan; delete it and build")
    log = CommitLog(store, card, len(plan.content))
    records = _checked_records(log, progress)
    whole = TeacherCache.open(store, allow_building=True)
    certificate = None if certify is None else certify(whole)
    tables = tables_of(plan)
    with explaining_disk_errors(store, "sealing"):
        swept = store.sweep()
        save_tables(store, tables)
    sealed = Seal(
        paths=len(plan.paths),
        text_bytes=len(tables["index/path_text"]),
        failures=_failures(plan, records),
        content_hash=content_hash(card, plan, records),
        plan=plan_digest(store),
        records=records_digest(records),
        tables={name: values_digest(values) for name, values in tables.items()},
        certificate=certificate,
    )
    attributes = Attributes(card=card, rows=log.rows, seal=sealed)
    with explaining_disk_errors(store, "sealing"):
        save_attributes(store, attributes, replace=True)
    return _report(store, attributes, sealed, already=False, swept=swept)


def reopen(store: Path | str | Storage, progress: Progress | None = None) -> list[int]:
    """Put a store back to building, its damaged shards pending, so that a build mends it.

    Returns:
        The shards that have to be written again; the index is always written anew by `seal`.

    Raises:
        TeacherCacheError: not a store, or its plan is damaged.
    """
    store = open_storage(store)
    load_attributes(store)
    card, plan = load_plan(store)
    log = CommitLog(store, card, len(plan.content))
    save_attributes(store, Attributes(card=card, rows=log.rows), replace=True)
    for shard in _damaged(log, progress):
        log.forget(shard)
    return [shard for shard in range(log.shards) if log.state(shard) is not ShardState.COMPLETE]


def _checked_records(log: CommitLog, progress: Progress | None) -> list[ShardRecord]:
    states = [log.state(shard) for shard in range(log.shards)]
    missing = [shard for shard, state in enumerate(states) if state is not ShardState.COMPLETE]
    if missing:
        raise TeacherCacheError(f"{log.unsealed()} (not complete: {_some(missing)})")
    if damaged := _damaged(log, progress):
        for shard in damaged:
            log.forget(shard)
        raise TeacherCacheError(
            f"{log.store}: {_some(damaged)} did not match their records and are pending again; "
            f"{log.unsealed()}"
        )
    return [log.record(shard) for shard in range(log.shards)]


def _damaged(log: CommitLog, progress: Progress | None) -> list[int]:
    damaged = []
    for shard in range(log.shards):
        if log.state(shard) is not ShardState.PENDING and any(log.damages(shard)):
            damaged.append(shard)
        if progress is not None:
            progress(shard + 1, log.shards)
    return damaged


def _failures(plan: Plan, records: list[ShardRecord]) -> tuple[tuple[Failure, int | None], ...]:
    reasons = {row: reason for record in records for row, reason in record.failures.items()}
    decoded = [
        (Failure(path, reasons[row]), row) for path, row in plan.paths.items() if row in reasons
    ]
    return (*((failure, None) for failure in plan.failures), *decoded)


def _some(shards: list[int]) -> str:
    more = f" and {len(shards) - _SHOWN} more" if len(shards) > _SHOWN else ""
    return f"shards {', '.join(map(str, shards[:_SHOWN]))}{more}"


def _report(store: Storage, attributes: Attributes, sealed: Seal, **fields: Any) -> SealReport:
    return SealReport(
        store=store,
        rows=attributes.rows,
        shards=attributes.shards,
        failures=tuple(failure for failure, _ in sealed.failures),
        content_hash=sealed.content_hash,
        **fields,
    )
