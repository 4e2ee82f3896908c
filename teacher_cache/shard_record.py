"""The commit record of a shard: which files it has, and what its rows are."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import RowArray
from .layout import Layout
from .plan_file import check_format
from .schema import TeacherCacheError
from .strict import (
    check_int,
    check_mapping,
    check_sha256,
    check_text,
    check_type,
    strict_fields,
    with_digest,
    without_digest,
)

ROW_DIGEST_BYTES = 16
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


def record_to_json(
    identity: Mapping[str, Any],
    rows: range,
    files: Mapping[str, FileRecord],
    row_digests: npt.NDArray[np.uint8],
    failures: Mapping[int, str],
) -> dict[str, Any]:
    """Return the JSON form of a record; `identity` binds it to its store, plan and shard."""
    lost = np.array([row in failures for row in rows])
    return with_digest(
        {
            **identity,
            "files": {name: [file.size_bytes, file.sha256] for name, file in files.items()},
            "row_digests": np.where(lost[:, None], 0, row_digests).astype(np.uint8).tobytes().hex(),
            "failures": {str(row): reason for row, reason in sorted(failures.items())},
        }
    )


def record_from_json(
    raw: Any,
    where: str,
    shard: int,
    rows: range,
    identity: Mapping[str, Any],
    arrays: Sequence[RowArray],
) -> ShardRecord:
    """Read the JSON form of the record of `shard`.

    Raises:
        TeacherCacheError: damaged, of another store, plan or shard, or no record.
    """
    fields = without_digest(raw, where)
    check_format(fields, where)
    fields = strict_fields(fields, _FIELDS, where)
    found = {key: fields[key] for key in identity}
    if found != identity:
        raise TeacherCacheError(f"{where} is not of this store: {found}, should be {identity}")
    failures = _failures(fields["failures"], rows, where)
    return ShardRecord(
        shard=shard,
        files=_files(fields["files"], arrays, rows, where),
        row_digests=_row_digests(fields["row_digests"], rows, failures, where),
        failures=failures,
        digest=raw["digest"],
    )


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


def _files(
    value: object, arrays: Sequence[RowArray], rows: range, where: str
) -> dict[str, FileRecord]:
    wanted = {array.file_of(rows.start // array.shard_rows): array for array in arrays}
    fields = strict_fields(value, wanted, f"{where}: files")
    for name, entry in fields.items():
        check_type(entry, f"{where}: {name}", list)
        check_int(len(entry), f"{where}: {name}: number of fields", 2, 2)
        most = wanted[name].file_bytes(len(rows))
        check_int(entry[0], f"{where}: {name}: size", 0, most)
        if not wanted[name].may_have(entry[0], len(rows)):
            raise TeacherCacheError(f"{where}: {name}: size takes {most}, got {entry[0]}")
        check_sha256(entry[1], f"{where}: {name}: digest")
    return {name: FileRecord(*fields[name]) for name in wanted}


def _failures(value: object, rows: range, where: str) -> dict[int, str]:
    failures: dict[int, str] = {}
    for row, reason in check_mapping(value, f"{where}: failures").items():
        if not row.isdecimal() or len(row) > 10 or int(row) not in rows:
            raise TeacherCacheError(f"{where}: failures name row {row!r:.80}, outside {rows}")
        failures[int(row)] = check_text(reason, f"{where}: reason", empty=True)
    return failures


def _row_digests(
    value: object, rows: range, failures: Mapping[int, str], where: str
) -> npt.NDArray[np.uint8]:
    check_type(value, f"{where}: row_digests", str)
    try:
        flat = np.frombuffer(bytes.fromhex(str(value)), np.uint8)
        digests = flat.reshape(len(rows), ROW_DIGEST_BYTES)
    except ValueError as error:
        raise TeacherCacheError(f"{where}: row_digests: {error}") from error
    lost = np.zeros(len(rows), np.bool_)
    lost[[row - rows.start for row in failures]] = True
    if (digests.any(axis=1) == lost).any():
        raise TeacherCacheError(f"{where}: a row takes either a digest or a failure")
    return digests
