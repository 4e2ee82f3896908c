"""Build a teacher cache: plan, decode, encode and write, so that a killed run can go on."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..teacher_cache.audit import info, status
from ..teacher_cache.origin import Origin, load_origin, save_origin
from ..teacher_cache.schema import Failure, Plan
from ..teacher_cache.storage import LocalStorage, Storage, is_leftover, open_storage
from ..teacher_cache.writer import TeacherCacheWriter
from .encode import RowBatch, Shard, encode_batches, row_batches
from .experts import Expert
from .geometry import mean_colour
from .manifest import iter_records
from .options import BuildOptions, make_card
from .pixels import PixelsError
from .planning import BuildError, ManifestImages, list_images, make_plan, stored_plan
from .progress import NoProgress, Progress
from .squares import Source, Square, Unreadable, View, read_squares
from .workers import Workers

__all__ = ["BuildError", "BuildOptions", "BuildReport", "build", "check_folders"]

_IMAGES_A_TASK = 4  # amortises the queue; few enough to keep all workers busy in a small batch

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build did and what is left.

    Attributes:
        store: where the cache lies.
        records: number of records in the manifest.
        text_only: how many of them have no image.
        images: distinct image paths.
        rows: distinct image contents.
        shards: number of shards of the whole cache.
        written: shards that this run wrote.
        pending: shards that are still to be written, by this part or another.
        failures: images without a row, of this and earlier runs.
        never_read: how many of them, the first ones, could not even be read as files.
        encoded: rows that this run computed, unreadable ones included.
        seconds: time that took.
        sealed: the cache is sealed.
        size_bytes: of all files of the store.
    """

    store: Storage
    records: int
    text_only: int
    images: int
    rows: int
    shards: int
    written: int
    pending: int
    failures: tuple[Failure, ...]
    never_read: int
    encoded: int
    seconds: float
    sealed: bool
    size_bytes: int


def build(
    manifest: Path,
    images: Path,
    store: Path | str | Storage,
    expert: Expert,
    options: BuildOptions | None = None,
    *,
    origin: Origin | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Write what `expert` says of every image of `manifest` into the cache at `store`.

    Killed or interrupted at any moment, the same call goes on where the last one was: whole
    shards are kept, and images are not hashed again.

    Args:
        manifest: JSON Lines or LLaVA's JSON array.
        images: folder that its image paths are relative to.
        store: folder or URL of the cache; created, or gone on with.
        expert: from `load_expert`.
        options: None for the defaults.
        origin: what the store remembers of how it is built, for those who finish or check it.
        progress: told how far it is; None tells nobody.

    Raises:
        ManifestError: the manifest is broken or names no image.
        BuildError: the folders or options cannot be used.
        TeacherCacheError: the store is something else or begun differently, or the disk is full.
        PixelsError: with `on_error="fail"`, the first unreadable image.
        ExpertError: the expert gave NaN.
        WorkerDiedError: a worker process was killed.
    """
    options, progress = options or BuildOptions(), progress or NoProgress()
    store = open_storage(store)
    check_folders(manifest, images, store)
    asked = list_images(manifest)
    with Workers(options.workers) as workers:
        plan = stored_plan(store, asked.paths)
        if plan is not None:
            progress.say(f"{store} was begun before: its images are not hashed again")
        else:
            strict = options.on_error == "fail"
            plan = make_plan(images, asked.paths, workers, progress, strict=strict)
        writer = TeacherCacheWriter.begin(store, make_card(expert, options), plan)
        if origin is not None and origin != load_origin(store):
            save_origin(store, origin)
        pending = writer.pending(options.part.index, options.part.count)
        if there := writer.shards - len(writer.pending()):
            progress.say(f"{there} of {writer.shards} shards are there already and stay")
        begun = time.monotonic()
        encoded = _encode(writer, pending, images, expert, options, workers, progress)
        seconds = time.monotonic() - begun
    return _report(writer, asked, len(pending), encoded, seconds)


def check_folders(manifest: Path, images: Path, store: Path | str | Storage) -> None:
    """Find at once what would otherwise be found after the expert is loaded.

    Raises:
        ManifestError: no manifest.
        BuildError: no image folder, or the store is something else.
    """
    if not manifest.is_file():
        next(iter(iter_records(manifest)), None)  # says what is there instead
    if not images.is_dir():
        raise BuildError(f"{images}: no such image folder")
    _refuse_stranger(open_storage(store))


def _refuse_stranger(store: Storage) -> None:
    """Refuse a folder of something else now, not after hours of hashing."""
    if isinstance(store, LocalStorage) and store.folder.is_file():
        raise BuildError(f"{store} is a file; --out takes a folder of its own")
    if TeacherCacheWriter.load_plan(store) is None:
        names = (name for name, _ in store.files() if not is_leftover(name))
        stranger = next((name for name in names if not name.startswith("_commit/")), None)
        if stranger:
            raise BuildError(
                f"{store} exists and is not a teacher cache (it holds {stranger}); give another "
                "--out"
            )


def _encode(
    writer: TeacherCacheWriter,
    pending: Sequence[int],
    images: Path,
    expert: Expert,
    options: BuildOptions,
    workers: Workers,
    progress: Progress,
) -> int:
    """Write the pending shards; return how many rows they have."""
    paths = _path_of_row(writer.plan)
    view = View(
        root=images,
        geometry=options.expert_geometry,
        size=expert.card.image_size,
        fill=mean_colour(),
        alpha=options.alpha,
        grid=options.grid,
    )
    batches = [
        batch
        for shard in pending
        for batch in row_batches(shard, writer.rows_of(shard), paths, options.batch_size)
    ]
    rows = sum(len(batch.rows) for batch in batches)
    sources = (Source(paths[row], writer.plan.content[row]) for b in batches for row in b.rows)
    # Two batches of decoded images wait at most, and what the workers have in hand.
    ahead = 2 * options.batch_size // _IMAGES_A_TASK + 2 * workers.count
    tasks = _chunks(sources, _IMAGES_A_TASK)
    found = workers.map(partial(read_squares, view), tasks, ahead)
    squares: Iterator[Square | Unreadable] = itertools.chain.from_iterable(found)
    if options.on_error == "fail":
        squares = _refuse_unreadable(squares, batches)
    whole = len(writer.plan.content) if options.part.count == 1 else rows
    with progress.stage("encoding", total=whole, done=whole - rows), _writing(writer) as write:
        for batch, shard in encode_batches(expert, options.grid, batches, squares):
            if shard is not None:
                write(shard)
            progress.advance(len(batch.rows))
    return rows


def _path_of_row(plan: Plan) -> list[str]:
    """Return one manifest path for each row: the first that holds its content."""
    paths = [""] * len(plan.content)
    for path, row in plan.paths.items():
        paths[row] = paths[row] or path
    return paths


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while chunk := list(itertools.islice(rest, size)):
        yield chunk


def _refuse_unreadable(
    squares: Iterator[Square | Unreadable], batches: Sequence[RowBatch]
) -> Iterator[Square | Unreadable]:
    paths = (path for batch in batches for path in batch.paths)
    for path, square in zip(paths, squares, strict=True):
        if isinstance(square, Unreadable):
            raise PixelsError(path, square.reason)
        yield square


@contextmanager
def _writing(writer: TeacherCacheWriter) -> Iterator[Callable[[Shard], None]]:
    """Write shards in a thread while the next is computed; one is written, none waits.

    However the block ends, a shard that was handed over is written to its end.
    """
    last: Future[None] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="shard-writer") as thread:

        def write(shard: Shard) -> None:
            nonlocal last
            if last is not None:
                last.result()  # bounds the memory, and tells of a full disk
            last = thread.submit(
                writer.write,
                shard.index,
                features=shard.features,
                attention=shard.attention,
                valid=shard.valid,
                source_size=shard.source_size,
                failures=shard.failures,
            )

        yield write
        if last is not None:
            last.result()


def _report(
    writer: TeacherCacheWriter, asked: ManifestImages, written: int, encoded: int, seconds: float
) -> BuildReport:
    now = status(writer.store)
    return BuildReport(
        store=writer.store,
        records=asked.records,
        text_only=asked.text_only,
        images=len(asked.paths),
        rows=now.rows,
        shards=now.shards,
        written=written,
        pending=now.shards - now.complete,
        failures=now.failures,
        never_read=now.never_read,
        encoded=encoded,
        seconds=seconds,
        sealed=writer.sealed,
        size_bytes=info(writer.store)["size_bytes"],
    )
