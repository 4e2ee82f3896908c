"""What state a store is in, and whether its bytes are still those that were written."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .attributes import Seal, load_attributes
from .commits import (
    CommitLog,
    Progress,
    RecordSums,
    ShardState,
    content_hash,
    list_failures,
)
from .damage import (
    Damage,
    Remedy,
    description_damages,
    index_damages,
    metadata_damages,
    plan_damages,
    shard_damages,
)
from .generations import PlanChain
from .index import StoredIndex
from .origin import finishing, mend_command
from .plan_file import FOLDER, has_newer_plan, load_plans
from .schema import FORMAT, CacheCard, Failure, TeacherCacheError
from .storage.local import Storage, open_storage


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStatus:
    """How far a store is.

    Attributes:
        state: `growing` is sealed, with images added that the next seal will cover.
        generations: how many times images were added, the first build included.
        rows: distinct image contents that were planned.
        rows_written: rows of complete shards, failed ones included.
        rows_failed: rows of complete shards whose image could not be decoded.
        rows_left: failed rows that no path leads to any more.
        shards: number of shards.
        pending: shards without a record.
        damaged: shards whose record or file sizes do not fit; contents are not read.
        failures: images without a readable row so far.
        never_read: how many of them, the first ones, could not even be read as files; they have
            no row at all.
        damages: of a store that was sealed, what else is missing or has a wrong size: plans,
            index, metadata of arrays.
    """

    store: Storage
    state: Literal["building", "sealed", "growing"]
    generations: int
    rows: int
    rows_written: int
    rows_failed: int
    rows_left: int
    shards: int
    pending: tuple[int, ...]
    damaged: tuple[int, ...]
    failures: tuple[Failure, ...]
    never_read: int
    damages: tuple[Damage, ...]

    @property
    def complete(self) -> int:
        """Number of complete shards."""
        return self.shards - len(self.pending) - len(self.damaged)

    @property
    def commands(self) -> list[str]:
        """What finishes the store, in order; empty when nothing is left to do."""
        remedies = {damage.remedy for damage in self.damages}
        written = self.complete == self.shards and Remedy.BUILD not in remedies
        if Remedy.SEAL in remedies:
            finish = finishing(self.store, written=written, sealed=False)
            return [mend_command(self.store), *finish]
        return finishing(self.store, written=written, sealed=self.state == "sealed")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "store": str(self.store),
            "state": self.state,
            "generations": self.generations,
            "rows": self.rows,
            "rows_written": self.rows_written,
            "rows_failed": self.rows_failed,
            "rows_left": self.rows_left,
            "shards": self.shards,
            "complete": self.complete,
            "pending": list(self.pending),
            "damaged": list(self.damaged),
            "failures": [[failure.path, failure.reason] for failure in self.failures],
            "never_read": self.never_read,
            "damages": [
                {"where": damage.where, "reason": damage.reason} for damage in self.damages
            ],
        }


@dataclass(frozen=True, slots=True)
class _Inventory:
    """What a store holds: its seal if it has one, its plans unless the seal covers them all."""

    card: CacheCard
    log: CommitLog
    seal: Seal | None
    chain: PlanChain | None

    @property
    def state(self) -> Literal["building", "sealed", "growing"]:
        if self.seal is None:
            return "building"
        return "sealed" if self.chain is None else "growing"

    @property
    def never_read(self) -> int:
        if self.chain is not None:
            return len(self.chain.failures)
        return len(self.seal.unreadable) if self.seal else 0

    @property
    def pathless(self) -> int:
        """Failed rows of a sealed store that no path leads to."""
        return sum(fail.path is None for fail in self.seal.failures) if self.seal else 0

    def failures(self, reasons: Mapping[int, str]) -> tuple[Failure, ...]:
        if self.chain is not None:
            return tuple(list_failures(self.chain, reasons))
        return self.seal.listed_failures if self.seal else ()


def status(store: Path | str | Storage) -> CacheStatus:
    """Judge every shard by its record and the sizes of its files; cheap, reads no data.

    Raises:
        TeacherCacheError: missing, something else, or its card or plan is damaged.
    """
    return _status(_inventory(open_storage(store)))


def list_known_failures(store: Path | str | Storage) -> tuple[Failure, ...]:
    """List the images without a readable row so far; a sealed store's records are not read.

    Raises:
        TeacherCacheError: missing, something else, or its card or plan is damaged.
    """
    inventory = _inventory(open_storage(store))
    return inventory.failures(inventory.log.reasons() if inventory.chain else {})


def _status(inventory: _Inventory) -> CacheStatus:
    log, chain, sealed = inventory.log, inventory.chain, inventory.seal
    states: dict[int, ShardState] = {}
    reasons: dict[int, str] = {}
    for shard, state, failed in log.survey():
        states[shard] = state
        reasons |= failed
    by_state = {state: tuple(k for k in states if states[k] is state) for state in ShardState}
    pathless = len(reasons.keys() - set(chain.paths.values())) if chain else inventory.pathless
    return CacheStatus(
        store=log.store,
        state=inventory.state,
        generations=len(log.layout.counts),
        rows=log.layout.rows,
        rows_written=sum(len(log.layout.rows_of(shard)) for shard in by_state[ShardState.COMPLETE]),
        rows_failed=len(reasons),
        rows_left=pathless,
        shards=log.layout.shards,
        pending=by_state[ShardState.PENDING],
        damaged=by_state[ShardState.DAMAGED],
        failures=inventory.failures(reasons),
        never_read=inventory.never_read,
        damages=tuple(description_damages(log.store, inventory.card, sealed) if sealed else ()),
    )


def verify(store: Path | str | Storage, progress: Progress | None = None) -> list[Damage]:
    """Read every byte of a store and list what is not as written; an empty list is a sound store.

    Of shards that no seal covers, only committed ones are read.

    Raises:
        TeacherCacheError: missing, something else, or damaged in its root `zarr.json`.
    """
    store = open_storage(store)
    attributes = load_attributes(store)
    if attributes is not None and attributes.seal is not None:
        return _verify_sealed(store, attributes.card, attributes.seal, progress)
    try:
        card, chain = load_plans(store)
    except TeacherCacheError as error:
        return [Damage(FOLDER, str(error), Remedy.COPY)]
    log = CommitLog.of_chain(store, card, chain)
    metadata = metadata_damages(store, card, chain.layout)
    return [*metadata, *_shard_damages(log, 0, progress)]


def info(store: Path | str | Storage) -> dict[str, Any]:
    """Describe a store as JSON: card, counts, size in bytes, identity, failures.

    Raises:
        TeacherCacheError: missing, something else, or its card or plan is damaged.
    """
    store = open_storage(store)
    inventory = _inventory(store)
    card, sealed = inventory.card, inventory.seal
    return {
        **_status(inventory).to_json(),
        "format": FORMAT,
        "card": card.to_json(),
        "fingerprint": card.fingerprint(),
        "paths": sealed.paths if sealed else None,
        "content_hash": sealed.content_hash if sealed else None,
        "gram_error": dict(sealed.gram_error) if sealed and sealed.gram_error else None,
        "certificate": dict(sealed.certificate) if sealed and sealed.certificate else None,
        "size_bytes": sum(size for _, size in store.files()),
    }


def _inventory(store: Storage) -> _Inventory:
    attributes = load_attributes(store)
    seal = attributes.seal if attributes is not None else None
    if attributes is not None and seal is not None:
        log = CommitLog(store, attributes.card, seal.layout, seal.plans)
        if not has_newer_plan(store, seal.generations):
            return _Inventory(attributes.card, log, seal, None)
    card, chain = load_plans(store)
    return _Inventory(card, CommitLog.of_chain(store, card, chain), seal, chain)


def _verify_sealed(
    store: Storage, card: CacheCard, seal: Seal, progress: Progress | None
) -> list[Damage]:
    log = CommitLog(store, card, seal.layout, seal.plans)
    damages = [*plan_damages(store, seal), *metadata_damages(store, card, seal.layout)]
    if has_newer_plan(store, seal.generations) and not damages:
        try:
            _, chain = load_plans(store)  # plans after the seal are judged by their own digests
            log = CommitLog.of_chain(store, card, chain)
        except TeacherCacheError as error:
            damages.append(Damage(FOLDER, str(error), Remedy.COPY))
    damages += _shard_damages(log, seal.layout.shards, progress)
    index = StoredIndex(store, seal)
    damages += index_damages(index)
    if not damages:
        damages += _summary_damages(log, index, seal)
    return damages


def _shard_damages(log: CommitLog, sealed: int, progress: Progress | None) -> Iterator[Damage]:
    for shard in range(log.layout.shards):
        if shard < sealed or log.state(shard) is not ShardState.PENDING:
            yield from shard_damages(log, [shard])
        if progress is not None:
            progress(shard + 1, log.layout.shards)


def _summary_damages(log: CommitLog, index: StoredIndex, seal: Seal) -> Iterator[Damage]:
    """Compare what was summed up when it was sealed with sound files that are there now."""
    sums = RecordSums(seal.layout)
    for shard in range(seal.layout.shards):
        sums.add(log.record(shard))
    if sums.digest != seal.records:
        reason = "a commit record is valid but not the one that was sealed"
        yield Damage(FOLDER, reason, Remedy.SEAL)
    tables = {name: index.load(name) for name in ("content", "row_digest")}
    if content_hash(log.card, seal.layout, tables, seal.reasons) != seal.content_hash:
        yield Damage("zarr.json", "the content hash is not that of the index", Remedy.SEAL)
