"""Turn a finished build into a sealed cache, and a damaged one back into a build."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .attributes import Attributes, Seal, SealedFailure, load_attributes
from .commits import (
    CommitLog,
    Progress,
    RecordSums,
    ShardState,
    content_hash,
    list_failures,
)
from .damage import Damage, DamageFoundError, description_damages, incomplete_damages, plan_damages
from .generations import PlanChain
from .gram.gram_error import measured_errors
from .index import drop_tables, tables_of, values_digest
from .metadata import ensure_metadata, save_attributes, save_tables
from .plan_file import has_newer_plan, load_plans
from .reader import TeacherCache
from .schema import Failure, TeacherCacheError
from .storage.local import Storage, explaining_disk_errors, open_storage

Certify = Callable[[TeacherCache], Mapping[str, Any]]
"""Given the complete cache, sealed or not; what it returns becomes the certificate."""
_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SealReport:
    """What sealing found.

    Attributes:
        generations: how many the seal covers.
        already: the store was sealed before; its files were looked at, not read whole.
        swept: temporary files of killed writers that were deleted.
        certificate: what recomputing rows with the expert showed; None if that was not done.
    """

    store: Storage
    rows: int
    shards: int
    generations: int
    failures: tuple[Failure, ...]
    content_hash: str
    already: bool
    swept: int = 0
    certificate: Mapping[str, Any] | None = None


def seal(
    store: Path | str | Storage,
    progress: Progress | None = None,
    *,
    certify: Certify | None = None,
) -> SealReport:
    """Check every byte of every shard against its record, write the index, and seal the store.

    Shards that an earlier seal covers are checked by their records and sizes only. A shard that
    does not match loses its record, so that the next build writes it again.

    A store that is sealed already is looked over: index, metadata, and that every file is there
    with its size. If it has no certificate, `certify` gives it one. Without `certify`, an earlier
    certificate stays as long as the content is the same.

    Args:
        store: folder or URL of the cache.
        progress: called after every shard.
        certify: called last; what it returns is kept as the certificate. If it raises, nothing
            is sealed.

    Raises:
        TeacherCacheError: shards are pending, named with the way out; or another process wrote
            some meanwhile.
        DamageFoundError: something is damaged; names the files and the commands that mend them.
    """
    store = open_storage(store)
    attributes = load_attributes(store)
    before = attributes.seal if attributes is not None else None
    if attributes is not None and before is not None:
        if not has_newer_plan(store, before.generations):
            return _seal_again(store, attributes, before, certify)
        _refuse_damage(store, description_damages(store, attributes.card, before))
    card, chain = load_plans(store)
    if attributes is not None and attributes.card != card:
        raise TeacherCacheError(f"{store}: zarr.json does not fit the plan; delete it and build")
    log = CommitLog.of_chain(store, card, chain)
    sums = _checked_records(log, before, progress)
    whole = TeacherCache(store, card, chain, log)
    certificate = certify(whole) if certify else None
    errors = measured_errors(log)
    with explaining_disk_errors(store, "sealing"):
        ensure_metadata(store, card, chain.layout.extent)
        swept = store.sweep()
        tables = tables_of(chain, sums.row_digests)
        save_tables(store, len(chain.generations), tables)
    content = content_hash(card, chain.layout, tables, sums.reasons)
    if certificate is None and before is not None and before.content_hash == content:
        certificate = before.certificate  # no row was added, only paths
    sealed = Seal(
        layout=chain.layout,
        paths=len(chain.paths),
        text_bytes=len(tables["path_text"]),
        failures=_failures(chain, sums.reasons),
        content_hash=content,
        plans=chain.digests,
        records=sums.digest,
        tables={name: values_digest(values) for name, values in tables.items()},
        certificate=certificate,
        gram_error=None if errors is None else errors.to_json(),
    )
    _refuse_changed(log, sums.digest)
    with explaining_disk_errors(store, "sealing"):
        save_attributes(store, Attributes(card=card, seal=sealed), replace=True)
        # a running reader may still be at the tables of the seal before
        drop_tables(store, {sealed.generations, before.generations if before else 0})
    return _report(store, sealed, already=False, swept=swept)


def reopen(store: Path | str | Storage, progress: Progress | None = None) -> list[int]:
    """Put a store back to building, its damaged shards pending, so that a build mends it.

    Returns:
        The shards that have to be written again; the index is always written anew by `seal`.

    Raises:
        TeacherCacheError: not a store, or its plan is damaged.
    """
    store = open_storage(store)
    attributes = load_attributes(store)
    card, chain = load_plans(store)
    sealed = attributes.seal if attributes is not None else None
    if sealed and chain.digests[: sealed.generations] != sealed.plans:
        # by these plans every sound shard would be damaged
        raise DamageFoundError.of(store, list(plan_damages(store, sealed)))
    log = CommitLog.of_chain(store, card, chain)
    save_attributes(store, Attributes(card=card), replace=True)
    for shard in _damaged(log, range(log.layout.shards), progress):
        log.forget(shard)
    return [shard for shard, state in log.states().items() if state is not ShardState.COMPLETE]


def _seal_again(
    store: Storage, attributes: Attributes, before: Seal, certify: Certify | None
) -> SealReport:
    card = attributes.card
    _refuse_damage(
        store,
        description_damages(store, card, before, contents=True),
        incomplete_damages(CommitLog(store, card, before.layout, before.plans)),
    )
    if certify is None or before.certificate is not None:
        return _report(store, before, already=True)
    sealed = replace(before, certificate=certify(TeacherCache.open(store)))
    if load_attributes(store) != attributes:  # that may have taken minutes
        raise TeacherCacheError(f"{store} changed while it was sealed; run the same command again")
    with explaining_disk_errors(store, "sealing"):
        save_attributes(store, replace(attributes, seal=sealed), replace=True)
    return _report(store, sealed, already=True)


def _refuse_damage(store: Storage, *damages: Iterable[Damage]) -> None:
    if damage := list(itertools.chain.from_iterable(damages)):
        raise DamageFoundError.of(store, damage)


def _checked_records(log: CommitLog, before: Seal | None, progress: Progress | None) -> RecordSums:
    """Return the sums of all records after reading the shards that no earlier seal covers.

    Raises:
        TeacherCacheError: shards are pending; a DamageFoundError where some are damaged.
    """
    states = log.states()
    missing = [shard for shard, state in states.items() if state is not ShardState.COMPLETE]
    if missing:
        error = DamageFoundError if ShardState.DAMAGED in states.values() else TeacherCacheError
        raise error(f"{log.unsealed()} (not complete: {_some(missing)})")
    sums, trusted = RecordSums(log.layout), 0
    for shard in range(log.layout.shards):
        sums.add(log.record(shard))
        if before is not None and shard + 1 == before.layout.shards:
            # the earlier seal read these bytes; equal records say that they were not replaced
            trusted = before.layout.shards if sums.digest == before.records else 0
    if damaged := _damaged(log, range(trusted, log.layout.shards), progress):
        for shard in damaged:
            log.forget(shard)
        raise DamageFoundError(
            f"{log.store}: {_some(damaged)} did not match their records and are pending again; "
            f"{log.unsealed()}"
        )
    return sums


def _refuse_changed(log: CommitLog, digest: str) -> None:
    """Refuse records that are not those of `digest` any more: `certify` may have taken minutes."""
    sums, changed = RecordSums(log.layout), f"{log.store} changed while it was sealed"
    try:
        for shard in range(log.layout.shards):
            sums.add(log.record(shard))
    except TeacherCacheError as error:
        raise TeacherCacheError(f"{changed} ({error}); run the same command again") from error
    if sums.digest != digest:
        raise TeacherCacheError(f"{changed}; run the same command again")


def _damaged(log: CommitLog, shards: range, progress: Progress | None) -> list[int]:
    damaged = []
    for done, shard in enumerate(shards, 1):
        if log.state(shard) is not ShardState.PENDING and any(log.damages(shard)):
            damaged.append(shard)
        if progress is not None:
            progress(done, len(shards))
    return damaged


def _failures(chain: PlanChain, reasons: Mapping[int, str]) -> tuple[SealedFailure, ...]:
    failed = [
        SealedFailure(failure.path, failure.reason, chain.paths.get(failure.path))
        for failure in list_failures(chain, reasons)
    ]
    listed = {failure.row for failure in failed}
    pathless = (SealedFailure(None, why, row) for row, why in reasons.items() if row not in listed)
    return (*failed, *pathless)


def _some(shards: list[int]) -> str:
    more = f" and {len(shards) - _SHOWN} more" if len(shards) > _SHOWN else ""
    return f"shards {', '.join(map(str, shards[:_SHOWN]))}{more}"


def _report(store: Storage, sealed: Seal, *, already: bool, swept: int = 0) -> SealReport:
    return SealReport(
        store=store,
        rows=sealed.layout.rows,
        shards=sealed.layout.shards,
        generations=sealed.generations,
        failures=sealed.listed_failures,
        content_hash=sealed.content_hash,
        already=already,
        swept=swept,
        certificate=sealed.certificate,
    )
