"""From squares to shards: the expert runs batch by batch, shard by shard, in row order.

How an image is stored is the codec's matter; each codec has a form of rows here.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..runtime.processes import Workers, result_of
from ..teacher_cache.format.arrays import row_arrays
from ..teacher_cache.gram.codec import encode
from ..teacher_cache.schema import CacheCard, ExpertCard, PatchGrid, TeacherCacheError
from .decode import Square, Unreadable
from .experts import Expert
from .resample import ExpertOutput, to_grid
from .weights import ExpertError, listed

Stored = Mapping[str, NDArray[Any]]

Finish = Callable[[], None]
"""Waits for what was begun with an image and stores it."""


class RowForm(Protocol):
    """One way to store what an expert gives for images."""

    @property
    def card(self) -> CacheCard:
        """The card of the cache."""

    def of(self, output: ExpertOutput) -> tuple[Tensor, Tensor]:
        """Return, still on the device, what `put` takes of each image, and attention [B, N]."""

    def put(
        self, stored: Stored, at: int, patches: NDArray[Any], valid: NDArray[np.bool_]
    ) -> Finish | None:
        """Store an image as row `at`: at once, or when what this returns is called."""


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows that go through the expert together.

    A batch never crosses a shard, so the expert sees the same batches, and gives the same
    bits, whether a build was interrupted or not.

    Attributes:
        shard: the shard that the rows belong to.
        shard_rows: all rows of that shard that are encoded.
        first: place of the batch's first row among them.
        paths: one manifest path per row; empty where none leads to it.
    """

    shard: int
    shard_rows: Sequence[int]
    first: int
    paths: Sequence[str]

    @property
    def rows(self) -> Sequence[int]:
        """The rows of this batch."""
        return self.shard_rows[self.first : self.first + len(self.paths)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Rows of one shard, as the writer takes them.

    Attributes:
        index: which shard.
        rows: their numbers; all of the shard, unless only some are written again.
        form: how the codec stores an image.
        stored: the card's arrays by name, [R, ...].
        failures: row -> why its image gives nothing.
        begun: place -> path, and what stores its image once worker processes are done with it.
        strict: an image that the codec cannot store is an error, not a failure.
    """

    index: int
    rows: Sequence[int]
    form: RowForm
    stored: dict[str, NDArray[Any]]
    failures: dict[int, str] = field(default_factory=dict)
    begun: dict[int, tuple[str, Finish]] = field(default_factory=dict)
    strict: bool = False

    @classmethod
    def empty(cls, index: int, rows: Sequence[int], form: RowForm, *, strict: bool) -> Self:
        """Return a shard to be filled with `rows`."""
        stored = {
            array.name: np.zeros((len(rows), *array.row_shape), array.dtype)
            for array in row_arrays(form.card)
        }
        return cls(index=index, rows=rows, form=form, stored=stored, strict=strict)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by the names they are stored under, when all of them are filled.

        Raises:
            TeacherCacheError: with `strict`, an image that the codec cannot store; names it.
            WorkerDiedError: a worker process ended by itself.
        """
        while self.begun:  # emptied, so that a second call does not wait for them again
            at, (path, finish) = self.begun.popitem()
            try:
                finish()
            except TeacherCacheError as error:
                if self.strict:
                    raise TeacherCacheError(f"{path}: {error}") from error
                self.failures[self.rows[at]] = str(error)
        return self.stored


@dataclass(frozen=True, slots=True)
class _Launched:
    """A batch whose results may still be under way on the device.

    `patches` [B, ...], whatever the codec stores, and `attention` [B, N] are those of the readable
    images.
    """

    batch: RowBatch
    squares: Sequence[Square | Unreadable]
    patches: Tensor
    attention: Tensor


def row_batches(
    shard: int, rows: Sequence[int], paths: Mapping[int, str], size: int
) -> Iterator[RowBatch]:
    """Cut rows of a shard into batches of at most `size`; `paths` are those of rows by number."""
    for first in range(0, len(rows), size):
        named = [paths.get(row, "") for row in rows[first : first + size]]
        yield RowBatch(shard, rows, first, named)


def encode_batches(
    expert: Expert,
    form: RowForm,
    batches: Iterable[RowBatch],
    squares: Iterator[Square | Unreadable],
    *,
    strict: bool = False,
) -> Iterator[tuple[RowBatch, Shard | None]]:
    """Run the expert over batches; yield each when done, the last of a shard with that shard.

    Args:
        expert: the frozen tower.
        form: how the codec stores an image.
        batches: in row order.
        squares: the images of those rows, in the same order.
        strict: an image that the codec cannot store is an error, not a failure.

    Raises:
        ExpertError: the expert gave NaN or infinity; names the images.
    """
    shard: Shard | None = None
    for done in _one_behind(_launch(expert, form, batch, squares) for batch in batches):
        rows = done.batch.shard_rows
        if shard is None:
            shard = Shard.empty(done.batch.shard, rows, form, strict=strict)
        _fill(shard, done)
        whole = done.batch.first + len(done.batch.paths) == len(rows)
        yield done.batch, shard if whole else None
        shard = None if whole else shard


def _one_behind(launched: Iterable[_Launched]) -> Iterator[_Launched]:
    """Yield each batch after the next was launched: a GPU works on while results are fetched."""
    waiting: _Launched | None = None
    for batch in launched:
        if waiting is not None:
            yield waiting
        waiting = batch
    if waiting is not None:
        yield waiting


@torch.no_grad()
def look(expert: Expert, squares: Sequence[NDArray[np.uint8]]) -> ExpertOutput:
    """Run the expert over images [S, S, 3]; on a GPU the result may still be under way."""
    rgb = torch.from_numpy(np.stack(squares))
    if expert.device.type == "cuda":
        rgb = rgb.pin_memory()  # so that the copy does not wait for the batch before
    return expert.encode(expert.normalise(rgb))


def _launch(
    expert: Expert, form: RowForm, batch: RowBatch, squares: Iterator[Square | Unreadable]
) -> _Launched:
    images = list(itertools.islice(squares, len(batch.paths)))
    readable = [square.rgb for square in images if isinstance(square, Square)]
    if not readable:
        return _Launched(batch, images, torch.zeros(0, 1, 1), torch.zeros(0, 1))
    return _Launched(batch, images, *form.of(look(expert, readable)))


def _fill(shard: Shard, done: _Launched) -> None:
    """Fetch the results of a batch and put them into its shard."""
    # Waits for the device, which has the next batch to compute meanwhile.
    patches, attention = done.patches.cpu().numpy(), done.attention.cpu().numpy()
    finite = np.isfinite(patches).all(axis=(1, 2)) & np.isfinite(attention).all(axis=1)
    results = zip(patches, attention, finite, strict=True)
    broken = []
    images = zip(done.batch.rows, done.batch.paths, done.squares, strict=True)
    for at, (row, path, square) in enumerate(images, done.batch.first):
        if isinstance(square, Unreadable):
            shard.failures[row] = square.reason
            continue
        features, probabilities, good = next(results)
        if not good:
            broken.append(path)
            continue
        finish = shard.form.put(shard.stored, at, features, square.valid)
        if finish is not None:
            shard.begun[at] = path, finish
        shard.stored["attention"][at] = probabilities
        shard.stored["valid"][at] = square.valid
        shard.stored["source_size"][at] = square.source_size
    if broken:
        raise ExpertError(
            f"the expert gave NaN or infinity for {listed(broken)}; its weights are broken, or "
            "the dtype is too narrow for them: try --dtype fp32"
        )


def row_form(card: CacheCard, workers: Workers) -> RowForm:
    """Return the form of a cache's codec; heavy work goes to `workers`."""
    return GramForm(card, workers) if card.codec == "gram" else FeatureForm(card)


@dataclass(frozen=True)
class FeatureForm:
    """Codec `fp16`: patches on the student's grid, as unit vectors."""

    card: CacheCard

    def of(self, output: ExpertOutput) -> tuple[Tensor, Tensor]:
        """Return float16 patches [B, N, b] and attention [B, N]."""
        patches, attention = on_grid(output, self.card)
        return patches.half(), attention

    def put(self, stored: Stored, at: int, patches: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        """Store an image as row `at`; padding patches are stored as they are."""
        del valid
        stored["features"][at] = patches


@dataclass(frozen=True, slots=True)
class Patches:
    """What is coded of an image.

    Attributes:
        patches: [M, b] float32 on the expert's grid, as they enter the interpolation.
        valid: [N] bool, which patches of the student's grid are image.
        native: the expert's grid.
        student: the student's grid.
        max_error: RMS error of the cosine Gram that the code may make.
    """

    patches: NDArray[np.float32]
    valid: NDArray[np.bool_]
    native: PatchGrid
    student: PatchGrid
    max_error: float


@dataclass(frozen=True, slots=True)
class ImageCode:
    """A code, and the RMS and largest error of the Gram it stands for."""

    blob: bytes
    rms: float
    largest: float


def code_image(image: Patches) -> ImageCode:
    """Code the Gram of one image.

    Raises:
        TeacherCacheError: no code keeps the error below the limit.
    """
    blob, error = encode(image.patches, image.native, image.student, image.valid, image.max_error)
    return ImageCode(blob, error.rms, error.max)


@dataclass(frozen=True)
class GramForm:
    """Codec `gram`: similarities of the patches in compact form, coded in worker processes."""

    card: CacheCard
    workers: Workers

    def of(self, output: ExpertOutput) -> tuple[Tensor, Tensor]:
        """Return float32 patches [B, M, b] as they enter the interpolation, and attention."""
        _, attention = on_grid(output, self.card)
        return native_patches(output, self.card.expert), attention

    def put(
        self, stored: Stored, at: int, patches: NDArray[Any], valid: NDArray[np.bool_]
    ) -> Finish:
        """Begin to code an image; what this returns stores its code, or raises why it has none."""
        card = self.card
        error = card.max_gram_error
        assert error is not None, "a card of codec gram has one"
        task = Patches(patches, valid, card.expert.grid, card.grid, error)
        return partial(_store_code, stored, at, self.workers.submit(code_image, task))


def _store_code(stored: Stored, at: int, begun: "Future[ImageCode]") -> None:
    code = result_of(begun)
    stored["codes"][at, : len(code.blob)] = np.frombuffer(code.blob, np.uint8)
    stored["gram_error"][at] = code.rms, code.largest


def native_patches(output: ExpertOutput, expert: ExpertCard) -> Tensor:
    """Return patches [B, M, b] float32 on the expert's grid, as they enter the interpolation."""
    patches = output.patches.float()
    return F.normalize(patches, dim=-1) if expert.normalise_before_interpolation else patches


def on_grid(output: ExpertOutput, card: CacheCard) -> tuple[Tensor, Tensor]:
    """Return unit patches [B, N, b] and attention [B, N] on the student's grid, float32."""
    return to_grid(
        output,
        card.expert.grid,
        card.grid,
        normalise_before=card.expert.normalise_before_interpolation,
    )
