"""The commit protocol: a shard without a record does not exist."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import RowArray, row_arrays
from .chain import PlanChain
from .durable import sha256_bytes
from .finish import finishing
from .layout import Layout
from .plan_file import FOLDER
from .schema import FORMAT, CacheCard, Failure, TeacherCacheError
from .shard_record import FileRecord, ShardRecord, record_from_json, record_to_json
from .storage import Storage, read_json, sha256_of
from .strict import canonical_json

Reasons = Mapping[int, str]
"""Row -> why its image could not be decoded."""
_RECORD_BYTES = 2**26


class ShardState(Enum):
    """Pending: no record. Complete: record and file sizes fit. Damaged: they do not."""

    PENDING = "pending"
    COMPLETE = "complete"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class CommitLog:
    """Commit records of the shards of one store.

    Attributes:
        store: where it lies.
        card: of the store.
        layout: which rows its shards hold.
        plans: SHA-256 (hex) of the plan file of each generation.
    """

    store: Storage
    card: CacheCard
    layout: Layout
    plans: tuple[str, ...]

    @classmethod
    def of_chain(cls, store: Storage, card: CacheCard, chain: PlanChain) -> "CommitLog":
        """Return the log of all generations that are planned."""
        return cls(store, card, chain.layout, chain.digests)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return self.layout.shards

    @cached_property
    def arrays(self) -> tuple[RowArray, ...]:
        """Arrays that every shard has a file of."""
        return row_arrays(self.card)

    def rows_of(self, shard: int) -> range:
        """Return the rows that `shard` holds.

        Raises:
            IndexError: there is no such shard.
        """
        return self.layout.rows_of(shard)

    def name_of(self, shard: int) -> str:
        """Return the name of the commit record of `shard`."""
        return f"{FOLDER}/{shard}.json"

    def commit(
        self,
        shard: int,
        files: Mapping[str, bytes],
        row_digests: npt.NDArray[np.uint8],
        failures: Mapping[int, str],
    ) -> None:
        """Write `files` of `shard` and then its record, each on disk before the next step."""
        with ThreadPoolExecutor(1) as aside:  # hashing and waiting for the disk take turns
            sums = aside.map(sha256_bytes, files.values())
            for name, data in files.items():
                self.store.write(name, data)
        sizes = map(FileRecord, map(len, files.values()), sums)
        fields = record_to_json(
            self._identity(shard),
            self.rows_of(shard),
            dict(zip(files, sizes, strict=True)),
            row_digests,
            failures,
        )
        self.store.write(self.name_of(shard), canonical_json(fields))

    def record(self, shard: int) -> ShardRecord:
        """Read and check the record of `shard`; the files themselves are not looked at.

        Raises:
            TeacherCacheError: missing, damaged, or of another store.
        """
        name = self.name_of(shard)
        raw = read_json(self.store, name, _RECORD_BYTES)
        where, identity = f"{self.store}/{name}", self._identity(shard)
        return record_from_json(raw, where, shard, self.rows_of(shard), identity, self.arrays)

    def state(self, shard: int, sizes: Mapping[str, int] | None = None) -> ShardState:
        """Judge `shard` by its record and the sizes of its files, without reading them.

        Args:
            shard: which.
            sizes: of all files of the store, where they were listed before.
        """
        return self._judge(shard, self.store.size if sizes is None else sizes.get)[0]

    def survey(self, shards: range | None = None) -> Iterator[tuple[int, ShardState, Reasons]]:
        """Judge many shards, all by default, after listing the store once.

        Yields:
            Shard, state, and why images of its rows could not be decoded if it is complete.
        """
        sizes = dict(self.store.files())
        for shard in range(self.shards) if shards is None else shards:
            state, record = self._judge(shard, sizes.get)
            yield shard, state, record.failures if record else {}

    def states(self, shards: range | None = None) -> dict[int, ShardState]:
        """Judge many shards after listing the store once; all of them by default."""
        return {shard: state for shard, state, _ in self.survey(shards)}

    def failures(self, chain: PlanChain) -> list[Failure]:
        """List the images that failed so far, under every path that leads to them."""
        reasons: dict[int, str] = {}
        for _, _, failed in self.survey():
            reasons |= failed
        return list_failures(chain, reasons)

    def unsealed(self) -> str:
        """Say that the store is not sealed, how far it is, and the commands that finish it."""
        complete = list(self.states().values()).count(ShardState.COMPLETE)
        commands = finishing(self.store, written=complete == self.shards, sealed=False)
        then = ", then ".join(f"`{command}`" for command in commands)
        return (
            f"{self.store} is not sealed: {complete} of {self.shards} shards are complete; "
            f"run {then}"
        )

    def damages(self, shard: int, *, contents: bool = True) -> Iterator[tuple[str, str]]:
        """Yield (file, reason) for what does not match the record of `shard`, byte by byte.

        Without `contents` only sizes are looked at.
        """
        try:
            record = self.record(shard)
        except TeacherCacheError as error:
            yield self.name_of(shard), str(error)
            return
        rows = self.rows_of(shard)
        for name, file in record.files.items():
            where = f"rows {rows.start} to {rows.stop - 1}"
            if (size := self.store.size(name)) is None:
                yield name, f"is missing; {where} are lost"
            elif size != file.size_bytes:
                yield name, f"has {size} bytes and should have {file.size_bytes}; it holds {where}"
            elif contents and sha256_of(self.store, name) != file.sha256:
                yield name, f"does not match its digest; it holds {where}"

    def forget(self, shard: int) -> None:
        """Drop the record of `shard`, which makes it pending."""
        self.store.delete(self.name_of(shard))

    def _judge(
        self, shard: int, size_of: Callable[[str], int | None]
    ) -> tuple[ShardState, ShardRecord | None]:
        if size_of(self.name_of(shard)) is None:
            return ShardState.PENDING, None
        try:
            record = self.record(shard)
        except TeacherCacheError:
            return ShardState.DAMAGED, None
        if any(size_of(name) != file.size_bytes for name, file in record.files.items()):
            return ShardState.DAMAGED, None
        return ShardState.COMPLETE, record

    @cached_property
    def _fingerprint(self) -> str:
        return self.card.fingerprint()

    def _identity(self, shard: int) -> dict[str, Any]:
        """Return what binds a record to this store, to its plan and to its shard."""
        rows = self.rows_of(shard)
        generation = self.layout.generation_of(shard)
        return {
            "format": FORMAT,
            "generation": generation,
            "plan": self.plans[generation],
            "fingerprint": self._fingerprint,
            "shard": shard,
            "rows": [rows.start, rows.stop],
        }


def list_failures(chain: PlanChain, reasons: Mapping[int, str]) -> list[Failure]:
    """List images without a readable row: never readable ones, then those that failed later."""
    if not reasons:
        return list(chain.failures)
    decoded = (Failure(path, reasons[row]) for path, row in chain.paths.items() if row in reasons)
    return [*chain.failures, *decoded]
