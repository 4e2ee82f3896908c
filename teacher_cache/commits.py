"""The commit protocol: a shard without a record does not exist."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.files import sha256_bytes
from .format.arrays import Array, RowArray, row_arrays
from .generations import Layout, PlanChain, order_of
from .origin import finishing
from .plan_file import FOLDER, check_format
from .schema import FORMAT, CacheCard, Failure, TeacherCacheError
from .storage.local import Storage, read_json, sha256_of
from .storage.untrusted import (
    canonical_json,
    check_int,
    check_mapping,
    check_sha256,
    check_text,
    check_type,
    strict_fields,
    with_digest,
    within,
    without_digest,
)

Progress = Callable[[int, int], None]
"""Called with the shards done so far and the number of all of them."""
Reasons = Mapping[int, str]
"""Row -> why its image could not be decoded."""

ROW_DIGEST_BYTES = 16
_RECORD_BYTES = 2**26  # far above a record of MAX_SHARD_ROWS rows, and bounds what a liar costs
_FIELDS = (
    "format",
    "generation",
    "plan",
    "fingerprint",
    "shard",
    "rows",
    "files",
    "row_digests",
    "failures",
)


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
        row_digests: [R, 16] uint8, BLAKE2b of each row's values; zeros where it failed.
        failures: row -> why its image could not be decoded; such a row holds fill values.
        digest: SHA-256 (hex) of all of that.
    """

    shard: int
    files: Mapping[str, FileRecord]
    row_digests: npt.NDArray[np.uint8]
    failures: Mapping[int, str]
    digest: str


class RecordSums:
    """What a seal needs of all records together, gathered one by one.

    Attributes:
        row_digests: [extent, 16] uint8; zeros for failed rows and holes.
        reasons: row -> why its image could not be decoded.
    """

    def __init__(self, layout: Layout) -> None:
        self.row_digests = np.zeros((layout.extent, ROW_DIGEST_BYTES), np.uint8)
        self.reasons: dict[int, str] = {}
        self._layout = layout
        self._sha = hashlib.sha256()

    def add(self, record: ShardRecord) -> None:
        """Take the record of the next shard."""
        rows = self._layout.rows_of(record.shard)
        self.row_digests[rows.start : rows.stop] = record.row_digests
        self.reasons |= record.failures
        self._sha.update(bytes.fromhex(record.digest))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the digests of all records so far."""
        return self._sha.hexdigest()


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

    @cached_property
    def arrays(self) -> tuple[RowArray, ...]:
        """Arrays that every shard has a file of."""
        return row_arrays(self.card)

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
            written = {
                name: [len(data), sha256]
                for (name, data), sha256 in zip(files.items(), sums, strict=True)
            }
        failed = np.array([row in failures for row in self.layout.rows_of(shard)])[:, None]
        digests = np.where(failed, 0, row_digests).astype(np.uint8)
        fields = {
            **self._identity(shard),
            "files": written,
            "row_digests": digests.tobytes().hex(),
            "failures": {str(row): failures[row] for row in sorted(failures)},
        }
        self.store.write(self.name_of(shard), canonical_json(with_digest(fields)))

    def record(self, shard: int) -> ShardRecord:
        """Read and check the record of `shard`; the files themselves are not looked at.

        Raises:
            TeacherCacheError: missing, damaged, or of another store.
        """
        name = self.name_of(shard)
        raw = read_json(self.store, name, _RECORD_BYTES)
        fields = without_digest(raw, source := f"{self.store}/{name}")
        check_format(fields, source)
        with within(source):
            fields = strict_fields(fields, _FIELDS, "fields")
            identity = self._identity(shard)
            if (recorded := {key: fields[key] for key in identity}) != identity:
                raise TeacherCacheError(f"is not of this store: {recorded}, should be {identity}")
            rows = self.layout.rows_of(shard)
            failures = _failures(fields["failures"], rows)
            return ShardRecord(
                shard=shard,
                files=_files(fields["files"], self.arrays, rows),
                row_digests=_row_digests(fields["row_digests"], rows, failures),
                failures=failures,
                digest=raw["digest"],
            )

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
        for shard in range(self.layout.shards) if shards is None else shards:
            state, record = self._judge(shard, sizes.get)
            yield shard, state, record.failures if record else {}

    def states(self, shards: range | None = None) -> dict[int, ShardState]:
        """Judge many shards after listing the store once; all of them by default."""
        return {shard: state for shard, state, _ in self.survey(shards)}

    def reasons(self) -> dict[int, str]:
        """Return why images of complete shards could not be decoded, by row."""
        return {row: why for _, _, failed in self.survey() for row, why in failed.items()}

    def unsealed(self) -> str:
        """Say that the store is not sealed, how far it is, and the commands that finish it."""
        complete = list(self.states().values()).count(ShardState.COMPLETE)
        commands = finishing(self.store, written=complete == self.layout.shards, sealed=False)
        then = ", then ".join(f"`{command}`" for command in commands)
        return (
            f"{self.store} is not sealed: {complete} of {self.layout.shards} shards are complete; "
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
        rows = self.layout.rows_of(shard)
        for name, file in record.files.items():
            holds = f"rows {rows.start} to {rows.stop - 1}"
            if (size := self.store.size(name)) is None:
                yield name, f"is missing; {holds} are lost"
            elif size != file.size_bytes:
                yield name, f"has {size} bytes and should have {file.size_bytes}; it holds {holds}"
            elif contents and sha256_of(self.store, name) != file.sha256:
                yield name, f"does not match its digest; it holds {holds}"

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
        rows = self.layout.rows_of(shard)
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


def row_digests_of(arrays: Mapping[str, Array]) -> npt.NDArray[np.uint8]:
    """Return the 128-bit BLAKE2b of each row of stored values, all arrays in order, as [R, 16]."""
    stored = [
        np.ascontiguousarray(values, values.dtype.newbyteorder("<")) for values in arrays.values()
    ]
    digests = []
    for rows in zip(*stored, strict=True):
        sha = hashlib.blake2b(digest_size=ROW_DIGEST_BYTES)
        for row in rows:
            sha.update(row)
        digests.append(sha.digest())
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, ROW_DIGEST_BYTES)


def content_hash(
    card: CacheCard,
    layout: Layout,
    tables: Mapping[str, npt.NDArray[np.uint8]],
    failures: Collection[int],
) -> str:
    """Return the SHA-256 (hex) of what a cache holds.

    It depends on the images and their numbers only: not on order, shards, generations, parts,
    restarts, paths, time or library versions.

    Args:
        card: of the cache; its fingerprint counts.
        layout: which rows there are.
        tables: `content` [extent, 32], SHA-256 of each row's image file, and `row_digest`
            [extent, 16], of each row's values.
        failures: rows whose image could not be decoded.
    """
    rows = layout.numbers()
    content, decoded = tables["content"][rows], ~np.isin(rows, list(failures))[:, None]
    digests = np.where(decoded, tables["row_digest"][rows], 0).astype(np.uint8)
    records = np.concatenate((content, decoded.astype(np.uint8), digests), axis=1)
    ordered = records[order_of(content)].tobytes()
    return hashlib.sha256(card.fingerprint().encode("ascii") + ordered).hexdigest()


def _files(value: object, arrays: Sequence[RowArray], rows: range) -> dict[str, FileRecord]:
    arrays_by_file = {array.file_of(rows.start // array.shard_rows): array for array in arrays}
    fields = strict_fields(value, arrays_by_file, "files")
    for name, entry in fields.items():
        check_type(entry, name, list)
        check_int(len(entry), f"{name}: number of fields", 2, 2)
        most = arrays_by_file[name].file_bytes(len(rows))
        check_int(entry[0], f"{name}: size", 0, most)
        if not arrays_by_file[name].may_have(entry[0], len(rows)):
            raise TeacherCacheError(f"{name}: size takes {most}, got {entry[0]}")
        check_sha256(entry[1], f"{name}: digest")
    return {name: FileRecord(*fields[name]) for name in arrays_by_file}


def _failures(value: object, rows: range) -> dict[int, str]:
    failures: dict[int, str] = {}
    for row, reason in check_mapping(value, "failures").items():
        if not row.isdecimal() or len(row) > 10 or int(row) not in rows:
            raise TeacherCacheError(f"failures name row {row!r:.80}, outside {rows}")
        failures[int(row)] = check_text(reason, "reason", empty=True)
    return failures


def _row_digests(value: object, rows: range, failures: Mapping[int, str]) -> npt.NDArray[np.uint8]:
    check_type(value, "row_digests", str)
    try:
        flat = np.frombuffer(bytes.fromhex(str(value)), np.uint8)
        digests = flat.reshape(len(rows), ROW_DIGEST_BYTES)
    except ValueError as error:
        raise TeacherCacheError(f"row_digests: {error}") from error
    lost = np.zeros(len(rows), np.bool_)
    lost[[row - rows.start for row in failures]] = True
    if (digests.any(axis=1) == lost).any():
        raise TeacherCacheError("a row takes either a digest or a failure")
    return digests
