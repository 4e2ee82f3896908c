"""Build a teacher cache: plan, decode, encode and write, so that a killed run can be resumed."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..runtime.processes import Workers
from ..runtime.progress import NoProgress, Progress
from ..teacher_cache.audit import status
from ..teacher_cache.damage import Damage
from ..teacher_cache.gram.gram_error import GramErrors
from ..teacher_cache.origin import Origin, load_origin, save_origin
from ..teacher_cache.schema import Failure, Plan, TeacherCacheError
from ..teacher_cache.storage.local import Storage, open_storage
from ..teacher_cache.writer import TeacherCacheWriter, check_claimable
from .build_options import BuildOptions, make_card
from .decode import Source, Square, Unreadable, View, read_squares
from .encode import RowBatch, Shard, encode_batches, row_batches, row_form
from .experts import Expert
from .geometry import mean_colour
from .manifest import iter_records
from .pixels import PixelsError
from .planning import BuildError, ManifestImages, list_images, make_plan, refuse_empty, to_hash

_IMAGES_A_TASK = 4  # amortises the queue; few enough to keep all workers busy in a small batch

Item = TypeVar("Item")
Write = Callable[[TeacherCacheWriter, Shard], None]


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
    """Write what `expert` gives for every image of `manifest` into the cache at `store`.

    After a kill or an interruption at any moment, the same call resumes: whole shards stay, and
    images are not hashed again.

    Args:
        manifest: JSON Lines or LLaVA's JSON array.
        images: folder that its image paths are relative to.
        store: folder or URL of the cache; created, or resumed.
        expert: from `load_expert`.
        options: None for the defaults.
        origin: what the store remembers of how it is built, for those who finish or check it.
        progress: shows how far the build is; None shows nothing.

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
    named = list_images(manifest)
    with Workers(options.workers, preload="medalign.pipeline.decode") as workers:
        plan = _plan(store, images, named.paths, workers, options, progress)
        writer = TeacherCacheWriter.begin(store, make_card(expert, options), plan)
        if origin is not None and origin != load_origin(store):
            # A hint only: a build that has nothing to do works on a store that nobody may write.
            with contextlib.suppress(OSError, TeacherCacheError):
                save_origin(store, origin)
        missing = writer.pending()
        pending = [shard for shard in missing if _in_part(shard, options)]
        if complete := writer.shards - len(missing):
            progress.say(f"{complete} of {writer.shards} shards are there already and stay")
        begun = time.monotonic()
        tools = _Tools(writer, images, expert, options, workers, progress)
        encoded = _encode(tools, {shard: writer.rows_of(shard) for shard in pending}, _write)
        again = _decodable_now(tools) if options.retry else {}
        if again:
            encoded += _encode(tools, again, _write_again)
        seconds = time.monotonic() - begun
    return _report(writer, named, len(pending) + len(again), encoded, seconds)


def _in_part(shard: int, options: BuildOptions) -> bool:
    return shard % options.part.count == options.part.index - 1


def check_folders(manifest: Path, images: Path, store: Path | str | Storage) -> None:
    """Check before the expert is loaded, which takes long, what needs no expert.

    Raises:
        ManifestError: no manifest.
        BuildError: no image folder.
        TeacherCacheError: the store is something else.
    """
    if not manifest.is_file():
        next(iter(iter_records(manifest)), None)  # its error names what lies there instead
    if not images.is_dir():
        raise BuildError(f"{images}: no such image folder")
    check_claimable(open_storage(store))


def _plan(
    store: Storage,
    images: Path,
    paths: Sequence[str],
    workers: Workers,
    options: BuildOptions,
    progress: Progress,
) -> Plan:
    strict = options.on_error == "fail"
    known = TeacherCacheWriter.load_plan(store)
    if known is None:
        plan = make_plan(images, paths, workers, progress, strict=strict)
        refuse_empty(images, plan)
        return plan
    unknown = to_hash(store, known, paths, rehash=options.rehash)
    progress.say(
        f"{store} knows {sum(path in known.paths for path in paths)} of {len(paths)} images; "
        f"{len(unknown) or 'none'} to hash"
    )
    return make_plan(images, unknown, workers, progress, strict=strict, known=known.paths)


@dataclass(frozen=True, slots=True)
class _Tools:
    """What encoding takes, whichever rows it is for."""

    writer: TeacherCacheWriter
    images: Path
    expert: Expert
    options: BuildOptions
    workers: Workers
    progress: Progress

    def read(self, rows: Iterable[int], paths: Mapping[int, str]) -> Iterator[Square | Unreadable]:
        """Decode the images of `rows` in the worker processes, in order."""
        options = self.options
        view = View(
            root=self.images,
            geometry=options.expert_geometry,
            size=self.expert.card.image_size,
            fill=mean_colour(),
            alpha=options.alpha,
            grid=options.grid,
        )
        plan = self.writer.plan
        sources = (Source(paths.get(row, ""), plan.content_of(row)) for row in rows)
        # Two batches of decoded images wait at most, and what the workers have in hand.
        ahead = 2 * options.batch_size // _IMAGES_A_TASK + 2 * self.workers.count
        tasks = _chunks(sources, _IMAGES_A_TASK)
        squares = self.workers.map(partial(read_squares, view), tasks, ahead)
        return itertools.chain.from_iterable(squares)


def _encode(tools: _Tools, rows_of_shards: Mapping[int, Sequence[int]], write: Write) -> int:
    """Encode rows by shard and write them; return how many they are."""
    options, plan = tools.options, tools.writer.plan
    form = row_form(tools.writer.card, tools.workers)
    strict = options.on_error == "fail"
    paths = plan.path_of_rows()
    batches = [
        batch
        for shard, rows in rows_of_shards.items()
        for batch in row_batches(shard, rows, paths, options.batch_size)
    ]
    rows = sum(len(batch.paths) for batch in batches)
    squares = tools.read((row for batch in batches for row in batch.rows), paths)
    if strict:
        squares = _refuse_unreadable(squares, batches)
    whole = plan.layout.rows if options.part.count == 1 else rows
    stage = tools.progress.stage("encoding", total=whole, done=whole - rows)
    with stage, _writing(partial(write, tools.writer)) as hand_over:
        for batch, shard in encode_batches(tools.expert, form, batches, squares, strict=strict):
            if shard is not None:
                hand_over(shard)
            tools.progress.advance(len(batch.paths))
    return rows


def _decodable_now(tools: _Tools) -> dict[int, list[int]]:
    """Return the rows of complete shards that failed and need not fail any more, by shard."""
    writer = tools.writer
    paths = writer.plan.path_of_rows()
    failed = {
        shard: [row for row in rows if row in paths]
        for shard, rows in writer.failed_rows().items()
        if _in_part(shard, tools.options)
    }
    squares = tools.read(itertools.chain.from_iterable(failed.values()), paths)
    readable = {
        shard: [row for row in rows if isinstance(next(squares), Square)]
        for shard, rows in failed.items()
    }
    count, tried = sum(map(len, readable.values())), sum(map(len, failed.values()))
    tools.progress.say(f"{count} of {tried} images that could not be decoded can be decoded now")
    return {shard: rows for shard, rows in readable.items() if rows}


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
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
def _writing(write: Callable[[Shard], None]) -> Iterator[Callable[[Shard], None]]:
    """Write shards in a thread while the next is computed; one is written, none waits.

    However the block ends, a shard that was handed over is written to its end.
    """
    last: Future[None] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="shard-writer") as thread:

        def hand_over(shard: Shard) -> None:
            nonlocal last
            if last is not None:
                last.result()  # bounds the memory, and raises when the disk is full
            last = thread.submit(write, shard)

        yield hand_over
        if last is not None:
            last.result()


def _write(writer: TeacherCacheWriter, shard: Shard) -> None:
    writer.write(shard.index, **shard.arrays(), failures=shard.failures)


def _write_again(writer: TeacherCacheWriter, shard: Shard) -> None:
    writer.write_again(shard.index, shard.rows, **shard.arrays(), failures=shard.failures)


def _report(
    writer: TeacherCacheWriter, named: ManifestImages, written: int, encoded: int, seconds: float
) -> BuildReport:
    """Return what a build did and what its store lacks now.

    Args:
        writer: of the store.
        named: images of the manifest.
        written: shards that this run wrote.
        encoded: rows that it computed.
        seconds: time that took.
    """
    now = status(writer.store)
    paths = writer.plan.paths
    led_to = {paths[path] for path in named.paths if path in paths}
    lost = {paths.get(failure.path) for failure in now.failures}
    return BuildReport(
        store=writer.store,
        records=named.records,
        text_only=named.text_only,
        images=len(named.paths),
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
