"""Write a teacher cache one shard at a time, in any order, by any number of processes."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from .arrays import ensure_metadata
from .attributes import Attributes, Seal, load_attributes, save_attributes
from .begin import check_claimable, ensure_root, extended
from .chain import PlanChain
from .commits import CommitLog, ShardState
from .content import row_digests_of
from .gram_errors import GramErrors, measured_errors
from .plan import Plan
from .plan_file import has_plan, load_plans
from .replacing import replace_failed
from .schema import CacheCard, TeacherCacheError
from .shard_values import check_values, stored_values
from .storage import Storage, explaining_disk_errors, open_storage


class TeacherCacheWriter:
    """Begins a cache or goes on with one; make it with `begin`.

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
    def begin(cls, store: Path | str | Storage, card: CacheCard, wanted: Plan) -> Self:
        """Create the cache at `store`, or go on with the one that is there.

        Images of `wanted` that the store does not know yet become a new generation of rows;
        images of the store that `wanted` lacks stay. Rows that are there are never moved, and
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
            begun, plan = extended(store, card, wanted)
            ensure_metadata(store, begun, plan.layout.extent)
            writer = cls(store, begun, plan, ensure_root(store, begun, plan))
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
        return self._log.shards

    def rows_of(self, shard: int) -> range:
        """Return the rows that `shard` holds.

        Raises:
            IndexError: there is no such shard.
        """
        return self._log.rows_of(shard)

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
            replace_failed(self._log, shard, rows, stored, failed, self._unseal_over)

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
        """Unseal if a seal, another process's included, covers `shard`; say whether it did."""
        found = load_attributes(self.store)
        self._seal = found.seal if found else None
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
