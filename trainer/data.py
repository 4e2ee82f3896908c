"""From a manifest and a sealed cache to micro-batches, in an order that only the seed decides."""

import multiprocessing
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..pipeline.geometry import GeometryName
from ..pipeline.manifest import ManifestError, Record, resolve_image
from ..pipeline.pixels import Alpha, PixelsError, read_image
from ..teacher_cache.reader import TeacherCache, TeacherRow
from ..teacher_cache.schema import PatchGrid, TeacherCacheError
from .batch import Batch, Float32, Sample, collate
from .conversation import ConversationError, images_of_prompt
from .resample import ResampledRow, resample_row
from .students.family import UnfitShapeError
from .students.spec import StudentSpec

OnMissing = Literal["drop", "fail", "lm_only"]


class MissingTeacherError(ValueError):
    """Images of the manifest are not in the cache, and the recipe says that this is an error."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records are trained on, and why others are not.

    Attributes:
        records: kept, in the manifest's order.
        text_only: of those, records without an image; they train the language model alone.
        without_teacher: of those, records with an image that the cache lacks (`lm_only`).
        dropped: records left out because the cache lacks an image of theirs.
        reasons: how often each reason occurs among images that the cache lacks.
    """

    records: tuple[Record, ...]
    text_only: int
    without_teacher: int
    dropped: int
    reasons: Counter[str]


def select(
    records: Sequence[Record], cache: TeacherCache | None, on_missing: OnMissing
) -> Selection:
    """Compare a manifest with a cache before anything is trained.

    Raises:
        MissingTeacherError: `on_missing` is `fail` and an image is not in the cache, or nothing
            is left to train on.
    """
    failed = {} if cache is None else {item.path: item.reason for item in cache.failures}
    kept, lacking, reasons = [], 0, Counter[str]()
    for record in records:
        absent = [] if cache is None else [p for p in record.images if not _has(cache, p, failed)]
        reasons.update(failed.get(path, "not in the cache") for path in absent)
        if absent and on_missing == "fail":
            raise MissingTeacherError(
                f"record {record.id!r}: image {absent[0]!r}: "
                f"{failed.get(absent[0], 'not in the cache')}; build the cache from this manifest, "
                "or set data.on_missing to drop or lm_only"
            )
        lacking += bool(absent)
        if not absent or on_missing == "lm_only":
            kept.append(record)
    if not kept:
        raise MissingTeacherError(
            f"none of {len(records)} records has its images in the cache; "
            "was it built from another manifest or --images folder?"
        )
    return Selection(
        records=tuple(kept),
        text_only=sum(not record.images for record in kept),
        without_teacher=lacking if on_missing == "lm_only" else 0,
        dropped=0 if on_missing == "lm_only" else lacking,
        reasons=reasons,
    )


def _has(cache: TeacherCache, path: str, failed: dict[str, str]) -> bool:
    return path in cache and path not in failed


class Conversations(Dataset[Sample]):
    """Samples by number; picklable, so that each worker process may hold its own.

    A conversation that cannot be read is returned as a skipped sample: a long run never dies of
    one image. An image that changed since the cache was built is returned as refused, and so is a
    damaged row: training on it would pair an image with another image's teacher.
    """

    def __init__(
        self,
        records: Sequence[Record],
        images: Path,
        student: StudentSpec,
        max_length: int,
        cache: TeacherCache | None,
        *,
        ask: bool = False,
        alpha: Alpha = "black",
    ) -> None:
        self.records = records
        self.images = images
        self.student = student
        self.max_length = max_length
        self.cache = cache
        self.ask = ask
        # As the expert saw it: the cache decides, and `alpha` where there is none.
        self.alpha: Alpha = alpha if cache is None else cast(Alpha, cache.card.alpha)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        try:
            encoder = self.student.encoder
            shown = images_of_prompt(record) if self.ask else None
            seen = [self._image(path) for path in record.images[:shown]]
            sizes = [grid.size for _, grid, _ in seen]
            if self.ask:
                encoded = encoder.prompt(record, sizes)
            else:
                encoded = encoder.training(record, self.max_length, sizes)
        except (ConversationError, ManifestError, PixelsError) as error:
            return Sample(record.id, skipped=str(error))
        except TeacherCacheError as error:
            return Sample(record.id, refused=f"record {record.id!r}: {error}")
        return Sample(
            record.id,
            encoded,
            pixels=tuple(pixels for pixels, _, _ in seen),
            teachers=tuple(teacher for _, _, teacher in seen),
            grids=tuple(grid for _, grid, _ in seen),
        )

    def _image(self, path: str) -> tuple[Float32, PatchGrid, TeacherRow | ResampledRow | None]:
        sight = self.student.sight
        image = read_image(resolve_image(self.images, path), alpha=self.alpha)
        try:
            pixels, grid = sight.see(image.rgb)
        except UnfitShapeError as error:
            raise PixelsError(path, str(error)) from error
        if self.cache is None or path not in self.cache:
            return pixels, grid, None
        row = self.cache.row_of(path)
        try:
            self.cache.check_content(row, image.sha256)
        except TeacherCacheError as error:
            raise TeacherCacheError(f"image {path}: {error}") from error
        if sight.fixed_grid is not None:
            return pixels, grid, self.cache[row]
        card = self.cache.card
        geometry = cast(GeometryName, card.geometry)
        return pixels, grid, resample_row(self.cache[row], geometry, card.grid, grid)


@lru_cache(maxsize=2)
def _epoch_order(length: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(length)


def sample_at(position: int, length: int, seed: int) -> int:
    """Which sample stands at a position of the endless stream of shuffled epochs.

    Every epoch visits each sample once. A step's samples follow from its number alone, whatever
    the number of workers, ranks or micro-batches, so a resumed run has nothing to catch up on.
    """
    epoch, place = divmod(position, length)
    return int(_epoch_order(length, seed, epoch)[place])


@dataclass(frozen=True, slots=True)
class StepOrder(Sampler[list[int]]):
    """Sample numbers of one rank's micro-batches, step after step.

    Attributes:
        length: samples in the set.
        seed: of the shuffle.
        batch_size, accumulation: samples of a micro-step on one rank, micro-steps of a step.
        rank, world: which part of every micro-step is this rank's.
        start, stop: steps to give, `start` included, `stop` not.
    """

    length: int
    seed: int
    batch_size: int
    accumulation: int
    rank: int
    world: int
    start: int
    stop: int

    def __iter__(self) -> Iterator[list[int]]:
        for micro in range(self.start * self.accumulation, self.stop * self.accumulation):
            begin = (micro * self.world + self.rank) * self.batch_size
            yield [sample_at(begin + k, self.length, self.seed) for k in range(self.batch_size)]

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulation


def micro_batches(
    samples: Dataset[Sample],
    order: Sampler[list[int]],
    pad_id: int,
    workers: int,
    accumulation: int = 1,
) -> Iterator[Batch]:
    """Read micro-batches ahead in worker processes, two steps' worth at most.

    Args:
        samples: read by number.
        order: numbers of each micro-batch.
        pad_id: token for the padding.
        workers: processes; 0 reads in this one.
        accumulation: micro-batches of a step.
    """
    # Forked children never touch CUDA. Other start methods would pickle all records for each.
    fork = workers and "fork" in multiprocessing.get_all_start_methods()
    loader: Any = DataLoader(
        samples,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=partial(collate, pad_id=pad_id),
        multiprocessing_context="fork" if fork else None,
        worker_init_fn=_leave_signals_to_the_parent,
        # A step's batches are all wanted before its first forward.
        prefetch_factor=max(2, -(-2 * accumulation // workers)) if workers else None,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: the default draws from the one that a resumed run restores.
        generator=torch.Generator(),
    )
    yield from loader


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Schedulers signal the whole process group; a worker that died of it would end the run."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
