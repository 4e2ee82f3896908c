"""The commit protocol: a shard without a record does not exist."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .arrays import RowArray, row_arrays
from .durable import sha256_bytes
from .plan_file import FOLDER, check_format
from .schema import FORMAT, CacheCard, Failure, Plan, TeacherCacheError
from .storage import Storage, read_json, sha256_of
from .strict import (
    canonical_json,
    check_int,
    check_mapping,
    check_sha256,
    check_text,
    check_type,
    strict_fields,
    with_digest,
    without_digest,
)

_RECORD_BYTES = 2**26


class ShardState(Enum):
    """Pending: no record. Complete: record and file sizes fit. Damaged: they do not."""

    PENDING = "pending"
    COMPLETE = "complete"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and SHA-256 (hex) of one file of a shard."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """What was committed for one shard.

    Attributes:
        shard: number of the shard.
        files: path below the store -> size and digest, one per array.
        failures: row -> why its image could not be decoded; such a row holds fill values.
    """

    shard: int
    files: Mapping[str, FileRecord]
    failures: Mapping[int, str]

    def content(self) -> dict[str, Any]:
        """Return the part that decides what readers get; reasons may name places, so not."""
        files = {name: [file.size_bytes, file.sha256] for name, file in self.files.items()}
        return {"shard": self.shard, "files": files, "failed": sorted(self.failures)}


@dataclass(frozen=True, slots=True)
class CommitLog:
    """Commit records of the shards of one store."""

    store: Storage
    card: CacheCard
    rows: int

    @property
    def shards(self) -> int:
        """Number of shards, the last of which may be short."""
        return -(-self.rows // self.card.shard_rows)

    @property
    def arrays(self) -> tuple[RowArray, ...]:
        """Arrays that every shard has a file of."""
        return row_arrays(self.card)

    def rows_of(self, shard: int) -> range:
        """Return the rows that `shard` holds.

        Raises:
            IndexError: there is no such shard.
        """
        if not 0 <= shard < self.shards:
            raise IndexError(f"shard {shard} is outside 0..{self.shards - 1}")
        start = shard * self.card.shard_rows
        return range(start, min(start + self.card.shard_rows, self.rows))

    def name_of(self, shard: int) -> str:
        """Return the name of the commit record of `shard`."""
        return f"{FOLDER}/{shard}.json"

    def commit(self, shard: int, files: Mapping[str, bytes], failures: Mapping[int, str]) -> None:
        """Write `files` of `shard` and then its record, each on disk before the next step."""
        for name, data in files.items():
            self.store.write(name, data)
        records = {name: [len(data), sha256_bytes(data)] for name, data in files.items()}
        fields = {
            "format": FORMAT,
            "generation": 0,
            "fingerprint": self.card.fingerprint(),
            "shard": shard,
            "rows": [self.rows_of(shard).start, self.rows_of(shard).stop],
            "files": records,
            "failures": {str(row): reason for row, reason in sorted(failures.items())},
        }
        self.store.write(self.name_of(shard), canonical_json(with_digest(fields)))

    def record(self, shard: int) -> ShardRecord:
        """Read and check the record of `shard`; the files themselves are not looked at.

        Raises:
            TeacherCacheError: missing, damaged, or of another store.
        """
        name = self.name_of(shard)
        where = f"{self.store}/{name}"
        fields = without_digest(read_json(self.store, name, _RECORD_BYTES), where)
        check_format(fields, where)
        names = ("format", "generation", "fingerprint", "shard", "rows", "files", "failures")
        fields = strict_fields(fields, names, where)
        rows = self.rows_of(shard)
        wanted = (0, self.card.fingerprint(), shard, [rows.start, rows.stop])
        found = tuple(fields[name] for name in ("generation", "fingerprint", "shard", "rows"))
        if found != wanted:
            raise TeacherCacheError(f"{where} is not of this store: {found}, should be {wanted}")
        return ShardRecord(
            shard=shard,
            files=self._files(fields["files"], rows, where),
            failures=_failures(fields["failures"], rows, where),
        )

    def state(self, shard: int) -> ShardState:
        """Judge `shard` by its record and the sizes of its files, without reading them."""
        if self.store.size(self.name_of(shard)) is None:
            return ShardState.PENDING
        try:
            self.record(shard)
        except TeacherCacheError:
            return ShardState.DAMAGED
        # a record is only valid with the sizes that the card makes, so these are its sizes too
        return ShardState.DAMAGED if self.wrong_size(shard) else ShardState.COMPLETE

    def wrong_size(self, shard: int) -> tuple[str, str] | None:
        """Return array and reason if a file of `shard` is not as long as the card makes it."""
        rows = len(self.rows_of(shard))
        for array in self.arrays:
            file, wanted = array.file_of(shard), array.file_bytes(rows)
            if (size := self.store.size(file)) is None:
                return array.name, f"{file} is missing"
            if size != wanted:
                return array.name, f"{file} has {size} bytes and should have {wanted}"
        return None

    def failures(self, plan: Plan) -> list[Failure]:
        """List the images that failed so far, under every path they have."""
        reasons: dict[int, str] = {}
        for shard in range(self.shards):
            if self.state(shard) is ShardState.COMPLETE:
                reasons |= self.record(shard).failures
        decoded = (
            Failure(path, reasons[row]) for path, row in plan.paths.items() if row in reasons
        )
        return [*plan.failures, *decoded]

    def unsealed(self) -> str:
        """Say that the store is not sealed, how far it is, and the commands that finish it."""
        states = [self.state(shard) for shard in range(self.shards)]
        complete = states.count(ShardState.COMPLETE)
        build = f"`medalign cache build MANIFEST --images DIR --out {self.store}`"
        first = "" if complete == self.shards else f"finish it with {build}, then "
        return (
            f"{self.store} is still building: {complete} of {self.shards} shards are complete; "
            f"{first}run `medalign cache seal {self.store}`"
        )

    def damages(self, shard: int) -> Iterator[tuple[str, str]]:
        """Yield (file, reason) for what does not match the record of `shard`, byte by byte."""
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
            elif sha256_of(self.store, name) != file.sha256:
                yield name, f"does not match its digest; it holds {where}"

    def forget(self, shard: int) -> None:
        """Drop the record of `shard`, which makes it pending."""
        self.store.delete(self.name_of(shard))

    def _files(self, value: object, rows: range, where: str) -> dict[str, FileRecord]:
        wanted = {array.file_of(rows.start // self.card.shard_rows): array for array in self.arrays}
        fields = strict_fields(value, wanted, f"{where}: files")
        for name, entry in fields.items():
            check_type(entry, f"{where}: {name}", list)
            check_int(len(entry), f"{where}: {name}: number of fields", 2, 2)
            size = wanted[name].file_bytes(len(rows))
            check_int(entry[0], f"{where}: {name}: size", size, size)
            check_sha256(entry[1], f"{where}: {name}: digest")
        return {name: FileRecord(*fields[name]) for name in wanted}


def records_digest(records: list[ShardRecord]) -> str:
    """Return one SHA-256 (hex) over all records, reasons included, to tell any other record."""
    reasons = [sorted(record.failures.items()) for record in records]
    return sha256_bytes(canonical_json([[record.content() for record in records], reasons]))


def content_hash(card: CacheCard, plan: Plan, records: list[ShardRecord]) -> str:
    """Return the SHA-256 (hex) of what a cache holds.

    It depends on the numbers, the images and the layout; not on time, order, restarts, number
    of parts, paths or library versions.
    """
    sha = hashlib.sha256(card.fingerprint().encode("ascii"))
    sha.update(bytes.fromhex("".join(plan.content)))
    for record in records:
        sha.update(canonical_json(record.content()))
    return sha.hexdigest()


def _failures(value: object, rows: range, where: str) -> dict[int, str]:
    failures: dict[int, str] = {}
    for row, reason in check_mapping(value, f"{where}: failures").items():
        if not row.isdecimal() or len(row) > 10 or int(row) not in rows:
            raise TeacherCacheError(f"{where}: failures name row {row!r:.80}, outside {rows}")
        failures[int(row)] = check_text(reason, f"{where}: reason", empty=True)
    return failures
