"""Write a teacher cache one shard at a time, in any order, by any number of processes."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..runtime.files import sha256_bytes
from .attributes import ROOT, Attributes, Seal, load_attributes
from .commits import CommitLog, ShardRecord, ShardState, row_digests_of
from .format.shard_values import Arrays, check_values, stored_values
from .generations import PlanChain, first_generation, next_generation
from .gram.gram_error import GramErrors, measured_errors
from .metadata import ensure_metadata, save_attributes
from .plan_file import FOLDER, has_plan, load_plans, plan_name, publish_generation
from .schema import CacheCard, Plan, TeacherCacheError
from .storage.local import LocalStorage, Storage, explaining_disk_errors, is_leftover, open_storage


def check_claimable(store: Storage) -> None:
    """Refuse a folder or URL that is neither empty nor a cache that a build can continue.

    Raises:
        TeacherCacheError: names what is there.
    """
    if has_plan(store):
        return
    if isinstance(store, LocalStorage) and store.folder.is_file():
        raise TeacherCacheError(f"{store} is a file; a cache takes a folder of its own")
    if store.size(ROOT) is not None and next(store.files(FOLDER), None):
        raise TeacherCacheError(
            f"{store}/{plan_name(0)} is missing: a sealed cache can be read without it, but not "
            "built on; restore it, or choose another folder"
        )
    # a build killed before its plan leaves nothing but temporary files
    stranger = next((name for name, _ in store.files() if not is_leftover(name)), None)
    if stranger and not has_plan(store):  # another process may have begun just now
        raise TeacherCacheError(
            f"{store} exists and is not a teacher cache (it holds {stranger!r}); choose another "
            "folder for the cache"
        )


def check_begun(store: Storage, begun: CacheCard, card: CacheCard) -> None:
    """Refuse to continue a store that was begun with another card.

    Raises:
        TeacherCacheError: names every difference, and the option that makes it.
    """
    if differences := begun.differences(card):
        raise TeacherCacheError(
            f"{store} was begun differently: {'; '.join(differences)}; "
            "choose another folder, or build with what the store was begun with"
        )


def _extended(store: Storage, card: CacheCard, plan: Plan) -> tuple[CacheCard, PlanChain]:
    """Return card and plans of `store` after it was made to hold `plan`."""
    if not has_plan(store) and publish_generation(store, card, None, first_generation(plan)):
        return load_plans(store)
    while True:
        begun, chain = load_plans(store)
        check_begun(store, begun, card)
        added = next_generation(chain, plan)
        if added is None:
            return begun, chain
        if publish_generation(store, card, chain, added):
            return load_plans(store)
        # another process was faster: plan what is still missing after its generation


def _ensure_root(store: Storage, card: CacheCard, plan: PlanChain) -> Seal | None:
    """Write the root of a new store; return the seal of one that was sealed."""
    save_attributes(store, Attributes(card=card), replace=False)
    attributes = load_attributes(store)
    seal = attributes.seal if attributes else None
    fits = attributes is not None and not card.differences(attributes.card)
    if not fits or (seal and not seal.layout.begins(plan.layout)):
        raise TeacherCacheError(
            f"{store}: zarr.json does not fit the plan; is it of another cache?"
        )
    return seal


def _replace_failed(
    log: CommitLog,
    shard: int,
    rows: Sequence[int],
    stored: Arrays,
    failed: Mapping[int, str],
    unseal_over: Callable[[int], bool],
) -> None:
    """Replace those of `rows` that failed up to now; the others keep their bytes.

    Args:
        log: of the store.
        shard: number of a complete shard.
        rows: numbers of the rows to replace, ascending.
        stored: what is stored of them.
        failed: row -> why its image still could not be decoded.
        unseal_over: unseals the store if a seal covers a shard, and says whether it did.

    Raises:
        TeacherCacheError: the shard is not as it was written.
    """
    # each turn but the last, another process has changed the record meanwhile
    while record := _record(log, shard):
        positions = {row: i for i, row in enumerate(rows) if row in record.failures}
        if not positions:
            return
        try:
            files = _replaced(log, record, positions, stored)
        except TeacherCacheError:
            if _is_current(log, record):
                raise
            continue
        if not _is_current(log, record):
            continue  # before unsealing: what was sealed since may hold these rows
        if unseal_over(shard) and not _is_current(log, record):
            continue
        digests = record.row_digests.copy()
        start = log.layout.rows_of(shard).start
        digests[[row - start for row in positions]] = row_digests_of(stored)[[*positions.values()]]
        reasons = {row: why for row, why in record.failures.items() if row not in positions}
        reasons |= {row: why for row, why in failed.items() if row in positions}
        log.forget(shard)  # files that are half replaced must not count
        log.commit(shard, files, digests, reasons)
        unseal_over(shard)  # a seal that was being written covers the old record
        return


def _record(log: CommitLog, shard: int) -> ShardRecord | None:
    """Return the record of `shard`; None where there is none."""
    try:
        return log.record(shard)
    except TeacherCacheError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _is_current(log: CommitLog, record: ShardRecord) -> bool:
    current = _record(log, record.shard)
    return current is not None and current.digest == record.digest


def _replaced(
    log: CommitLog, record: ShardRecord, positions: Mapping[int, int], stored: Arrays
) -> dict[str, bytes]:
    """Return the files of a shard with rows replaced by those at `positions` of `stored`."""
    files, rows = {}, log.layout.rows_of(record.shard)
    for array in log.arrays:
        name = array.file_of(record.shard)
        try:
            data = log.store.read(name, record.files[name].size_bytes)
        except FileNotFoundError as error:
            raise TeacherCacheError(f"{log.store}/{name} is missing") from error
        if sha256_bytes(data) != record.files[name].sha256:
            raise TeacherCacheError(f"{log.store}/{name} does not match its record")
        chunks = array.split(data, len(rows))
        for row, position in positions.items():
            chunks[row - rows.start] = array.chunk(stored[array.name][position])
        files[name] = array.assemble(chunks)
    return files


class TeacherCacheWriter:
    """Begins a cache or continues one; make it with `begin`.

    A shard counts once its commit record is on disk, which is written last. A killed writer
    leaves its shard pending, and writers of different shards never touch the same file.

    Attributes:
        store: where the cache lies.
        card: what the cache holds, as its first builder wrote it.
        plan: which image becomes which row, over all generations.
    """

    def __init__(self, store: Storage, card: CacheCard, plan: PlanChain, seal: Seal | None) -> None:
        self.store = store
        self.card = card
        self.plan = plan
        self._seal = seal
        self._log = CommitLog.of_chain(store, card, plan)

    @classmethod
    def begin(cls, store: Path | str | Storage, card: CacheCard, plan: Plan) -> Self:
        """Create the cache at `store`, or continue the one that is there.

        Images of `plan` that the store does not know yet become a new generation of rows; images
        of the store that `plan` lacks stay. Rows that are there are never moved, and
        what was sealed stays readable until the next `seal`. Only where a sealed shard is missing
        or has the wrong size, the store goes back to building, and that shard is pending.

        Nothing is written where there is nothing to do.

        Raises:
            TeacherCacheError: `store` is something else, was begun with another card, or cannot
                be written.
        """
        store = open_storage(store)
        with explaining_disk_errors(store, "beginning"):
            check_claimable(store)
            begun, chain = _extended(store, card, plan)
            ensure_metadata(store, begun, chain.layout.extent)
            writer = cls(store, begun, chain, _ensure_root(store, begun, chain))
            if writer._incomplete(range(writer._sealed_shards)):
                writer._unseal()
            return writer

    @staticmethod
    def load_plan(store: Path | str | Storage) -> PlanChain | None:
        """Return what earlier builds planned, so that a new one need not hash their images.

        Raises:
            TeacherCacheError: there is something, and it is damaged.
        """
        store = open_storage(store)
        return load_plans(store)[1] if has_plan(store) else None

    @staticmethod
    def load_card(store: Path | str | Storage) -> CacheCard | None:
        """Return the card that an earlier build began with, None where there is none.

        Raises:
            TeacherCacheError: there is one, and it is damaged.
        """
        store = open_storage(store)
        if not has_plan(store):
            return None
        attributes = load_attributes(store)  # much quicker to read than the plans
        return attributes.card if attributes is not None else load_plans(store)[0]

    @property
    def sealed(self) -> bool:
        """Whether the last seal covers every image that is planned: nothing is left to do."""
        return self._seal is not None and self._seal.layout == self.plan.layout

    @property
    def shards(self) -> int:
        """Number of shards; the last one of each generation may be short."""
        return self._log.layout.shards

    def rows_of(self, shard: int) -> range:
        """Return the rows that `shard` holds.

        Raises:
            IndexError: there is no such shard.
        """
        return self._log.layout.rows_of(shard)

    def pending(self, part: int = 1, parts: int = 1) -> list[int]:
        """List the shards of `part` that are still to be written, damaged ones included.

        Which rows a shard holds does not depend on `parts`, so a failed part may be finished
        under another number of parts.

        Args:
            part: which part, from 1 to `parts`.
            parts: how many processes share the work; each takes every `parts`-th shard.

        Raises:
            ValueError: `part` is not within 1..`parts`.
        """
        if not 1 <= part <= parts:
            raise ValueError(f"part takes 1 to {parts}, got {part}")
        return self._incomplete(range(part - 1, self.shards, parts))

    def failed_rows(self) -> dict[int, list[int]]:
        """Return the rows whose image could not be decoded, by complete shard."""
        return {shard: sorted(failed) for shard, _, failed in self._log.survey() if failed}

    def write(
        self,
        shard: int,
        *,
        failures: Mapping[int, str] | None = None,
        **arrays: npt.NDArray[Any],
    ) -> None:
        """Write one shard; it is on disk and committed when this returns.

        A shard that is complete already, because another process was faster, stays as it is.

        Args:
            shard: index in 0..`shards` - 1.
            failures: row -> why its image could not be decoded; what the arrays hold there is
                not stored.
            arrays: the card's arrays by name, R the rows of this shard: `features` float16
                [R, N, b], or `codes` uint8 [R, C] and `gram_error` float32 [R, 2] (RMS, largest)
                for codec `gram`; `attention` float32 [R, N], not negative; `valid` bool [R, N],
                which patches are image rather than padding; `source_size` int32 [R, 2], height
                and width of the image in pixels.

        Raises:
            ValueError: a shape or dtype does not fit the card, or a value is not finite or
                negative; nothing was written.
            TeacherCacheError: sealed, or the disk is full or fails.
        """
        failed = dict(failures or {})
        check_values(
            self._log.arrays, self.card.max_gram_error, shard, self.rows_of(shard), arrays, failed
        )
        with explaining_disk_errors(self.store, f"writing shard {shard} of"):
            if self._done(shard):
                return
            stored = stored_values(self._log.arrays, self.rows_of(shard), arrays, failed)
            with ThreadPoolExecutor(1) as aside:  # hashing lets other threads run
                digests = aside.submit(row_digests_of, stored)
                files = {
                    array.file_of(shard): array.encode(stored[array.name])
                    for array in self._log.arrays
                }
            if not self._done(shard):  # encoding took a while, others may have been faster
                self._log.commit(shard, files, digests.result(), failed)

    def write_again(
        self,
        shard: int,
        rows: Sequence[int],
        *,
        failures: Mapping[int, str] | None = None,
        **arrays: npt.NDArray[Any],
    ) -> None:
        """Replace rows of a complete shard that failed; the others keep their bytes.

        A sealed store goes back to building. Killed on the way, the whole shard is pending.
        Rows that another process has filled by now stay, and nothing is done to a shard that
        another process is replacing at the moment.

        Args:
            shard: index of a complete shard.
            rows: numbers of the rows to replace, ascending.
            failures: row -> why its image still could not be decoded.
            arrays: as `write` takes them, R the number of those rows.

        Raises:
            ValueError: as `write`.
            TeacherCacheError: the shard is not as it was written.
        """
        failed = dict(failures or {})
        check_values(self._log.arrays, self.card.max_gram_error, shard, rows, arrays, failed)
        stored = stored_values(self._log.arrays, rows, arrays, failed)
        with explaining_disk_errors(self.store, f"writing shard {shard} of"):
            _replace_failed(self._log, shard, rows, stored, failed, self._unseal_over)

    def write_chunks(
        self,
        shard: int,
        chunks: Mapping[str, Sequence[bytes]],
        row_digests: npt.NDArray[np.uint8],
        failures: Mapping[int, str],
    ) -> None:
        """Write one shard from rows as they lie in another cache of the same card.

        Args:
            shard: index in 0..`shards` - 1.
            chunks: array -> the bytes of each row, with their checksums.
            row_digests: [R, 16], of the values of those rows.
            failures: row -> why its image could not be decoded.

        Raises:
            TeacherCacheError: sealed, or the disk is full or fails.
        """
        with explaining_disk_errors(self.store, f"writing shard {shard} of"):
            if not self._done(shard):
                files = {
                    array.file_of(shard): array.assemble(chunks[array.name])
                    for array in self._log.arrays
                }
                self._log.commit(shard, files, row_digests, failures)

    def gram_errors(self) -> GramErrors | None:
        """Return the errors of all rows that are written; None with codec `fp16`."""
        return measured_errors(self._log)

    @property
    def _sealed_shards(self) -> int:
        return self._seal.layout.shards if self._seal else 0

    def _unseal(self) -> None:
        save_attributes(self.store, Attributes(card=self.card), replace=True)
        self._seal = None

    def _unseal_over(self, shard: int) -> bool:
        """Unseal if a seal, another process's included, covers `shard`; return whether it did."""
        attributes = load_attributes(self.store)
        self._seal = attributes.seal if attributes else None
        if shard >= self._sealed_shards:
            return False
        self._unseal()
        return True

    def _incomplete(self, shards: range) -> list[int]:
        states = self._log.states(shards)
        return [shard for shard, state in states.items() if state is not ShardState.COMPLETE]

    def _done(self, shard: int) -> bool:
        if self._log.state(shard) is ShardState.COMPLETE:
            return True
        if shard < self._sealed_shards:
            raise TeacherCacheError(f"{self.store} is sealed; shard {shard} cannot be written")
        return False
