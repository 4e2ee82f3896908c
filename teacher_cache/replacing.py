"""Replace rows of a shard that is there, whatever other processes do with it meanwhile."""

from collections.abc import Callable, Mapping, Sequence

from .commits import CommitLog
from .content import row_digests_of
from .durable import sha256_bytes
from .schema import TeacherCacheError
from .shard_record import ShardRecord
from .shard_values import Arrays


def replace_failed(
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
        if not (places := {row: i for i, row in enumerate(rows) if row in record.failures}):
            return
        try:
            files = _replaced(log, record, places, stored)
        except TeacherCacheError:
            if _is_current(log, record):
                raise
            continue
        if not _is_current(log, record):
            continue  # before unsealing: what was sealed since may hold these rows
        if unseal_over(shard) and not _is_current(log, record):
            continue
        digests = record.row_digests.copy()
        start, taken = log.rows_of(shard).start, list(places.values())
        digests[[row - start for row in places]] = row_digests_of(stored)[taken]
        reasons = {row: why for row, why in record.failures.items() if row not in places}
        reasons |= {row: why for row, why in failed.items() if row in places}
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
    found = _record(log, record.shard)
    return found is not None and found.digest == record.digest


def _replaced(
    log: CommitLog, record: ShardRecord, places: Mapping[int, int], stored: Arrays
) -> dict[str, bytes]:
    """Return the files of a shard with some rows replaced; `places` says where they lie."""
    files, rows = {}, log.rows_of(record.shard)
    for array in log.arrays:
        name = array.file_of(record.shard)
        try:
            data = log.store.read(name, record.files[name].size_bytes)
        except FileNotFoundError as error:
            raise TeacherCacheError(f"{log.store}/{name} is missing") from error
        if sha256_bytes(data) != record.files[name].sha256:
            raise TeacherCacheError(f"{log.store}/{name} does not match its record")
        chunks = array.split(data, len(rows))
        for row, place in places.items():
            chunks[row - rows.start] = array.chunk(stored[array.name][place])
        files[name] = array.assemble(chunks)
    return files
