"""What a build did, and what is left to do."""

from dataclasses import dataclass

from ..teacher_cache.audit import status
from ..teacher_cache.damage import Damage
from ..teacher_cache.gram_errors import GramErrors
from ..teacher_cache.schema import Failure
from ..teacher_cache.storage import Storage
from ..teacher_cache.writer import TeacherCacheWriter
from .planning import ManifestImages


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build did and what is left.

    Attributes:
        store: where the cache lies.
        records: number of records in the manifest.
        text_only: how many of them have no image.
        images: distinct image paths.
        distinct: distinct image contents among these, without those that could not be decoded.
        led_to: rows of the store that these images lead to, readable or not.
        rows: all rows of the store, those of earlier manifests and replaced images included.
        shards: number of shards of the whole cache.
        written: shards that this run wrote.
        pending: shards that are still to be written, by this part or another.
        failures: images without a row, of this and earlier runs.
        never_read: how many of them, the first ones, could not even be read as files.
        gram_error: errors of the similarities that are written; None with codec `fp16`.
        encoded: rows that this run computed, unreadable ones included.
        seconds: time that took.
        sealed: the cache is sealed.
        size_bytes: of all files of the store.
        damages: of a sealed store, what else than shards is missing or has a wrong size.
    """

    store: Storage
    records: int
    text_only: int
    images: int
    distinct: int
    led_to: int
    rows: int
    shards: int
    written: int
    pending: int
    failures: tuple[Failure, ...]
    never_read: int
    gram_error: GramErrors | None
    encoded: int
    seconds: float
    sealed: bool
    size_bytes: int
    damages: tuple[Damage, ...]


def report_build(
    writer: TeacherCacheWriter, asked: ManifestImages, written: int, encoded: int, seconds: float
) -> BuildReport:
    """Return what a build did and what its store lacks now.

    Args:
        writer: of the store.
        asked: images of the manifest.
        written: shards that this run wrote.
        encoded: rows that it computed.
        seconds: time that took.
    """
    now = status(writer.store)
    paths = writer.plan.paths
    led_to = {paths[path] for path in asked.paths if path in paths}
    lost = {paths.get(failure.path) for failure in now.failures}
    return BuildReport(
        store=writer.store,
        records=asked.records,
        text_only=asked.text_only,
        images=len(asked.paths),
        distinct=len(led_to - lost),
        led_to=len(led_to),
        rows=now.rows,
        shards=now.shards,
        written=written,
        pending=now.shards - now.complete,
        failures=now.failures,
        never_read=now.never_read,
        gram_error=writer.gram_errors(),
        encoded=encoded,
        seconds=seconds,
        sealed=writer.sealed,
        size_bytes=sum(size for _, size in writer.store.files()),
        damages=now.damages,
    )
