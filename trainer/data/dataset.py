"""From a manifest and a sealed cache to samples, read by number."""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, cast, overload

import numpy as np
from torch.utils.data import Dataset

from ...pipeline.geometry import GeometryName
from ...pipeline.manifest import ManifestError, Record, Turn, resolve_image
from ...pipeline.pixels import Alpha, PixelsError, read_image
from ...teacher_cache.reader import TeacherCache, TeacherRow
from ...teacher_cache.schema import PatchGrid, TeacherCacheError
from ..students.family import UnfitShapeError
from ..students.spec import StudentSpec
from .batch import Float32, Sample
from .conversation import IGNORED, ConversationError, images_of_prompt
from .teacher import ResampledRow, resample_row

OnMissing = Literal["drop", "fail", "lm_only"]
_ABSENT: Final = "not in the cache"


class PackedRecords(Sequence[Record]):
    """Records as JSON, one after the other, made into objects when they are read.

    As objects, records take five to ten times the manifest's size, and a forked worker copies
    them all bit by bit, because counting a reference writes beside the object. Packed they take
    the manifest's size, forked workers share it, and a spawned one receives it as one block.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        text, ends = bytearray(), array("q", [0])
        for record in records:
            text += _packed(record)
            ends.append(len(text))
        self._text = bytes(text)
        self._ends = np.frombuffer(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[Record]:
        return (self._at(index) for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self._at(k) for k in range(*index.indices(len(self)))]
        return self._at(range(len(self))[index])

    @property
    def nbytes(self) -> int:
        """Memory that the records take."""
        return len(self._text) + self._ends.nbytes

    def _at(self, index: int) -> Record:
        begin, end = self._ends[index : index + 2].tolist()
        identity, images, turns, answer_type, fields, line = json.loads(self._text[begin:end])
        return Record(
            id=identity,
            images=tuple(images),
            # A manifest's turns alternate, a human begins.
            conversations=tuple(
                Turn("gpt" if k % 2 else "human", text) for k, text in enumerate(turns)
            ),
            answer_type=answer_type,
            fields=fields,
            line=line,
        )


def _packed(record: Record) -> bytes:
    turns = [turn.text for turn in record.conversations]
    parts: list[Any] = [record.id, record.images, turns, record.answer_type]
    text = json.dumps([*parts, dict(record.fields), record.line], ensure_ascii=False)
    # Other fields of a record may hold half a character.
    return text.encode("utf-8", "surrogatepass")


class MissingTeacherError(ValueError):
    """Images of the manifest are not in the cache, which the recipe makes an error."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records are trained on, and why others are not.

    Attributes:
        records: those to train on, in the manifest's order and in compact form.
        text_only: of those, records without an image; they train the language model alone.
        without_teacher: of those, records with an image that the cache lacks (`lm_only`).
        dropped: records left out because the cache lacks an image of theirs.
        reasons: how often each reason occurs among images that the cache lacks.
    """

    records: Sequence[Record]
    text_only: int
    without_teacher: int
    dropped: int
    reasons: Counter[str]

    def digest(self) -> str:
        """SHA-256 over ids, image names and words of the conversations, in order."""
        digest = hashlib.sha256()
        for record in self.records:
            turns = [(turn.role, turn.text) for turn in record.conversations]
            digest.update(json.dumps([record.id, record.images, turns]).encode())
        return digest.hexdigest()


def select(
    records: Iterable[Record], cache: TeacherCache | None, on_missing: OnMissing
) -> Selection:
    """Compare a manifest with a cache before anything is trained.

    Args:
        records: read once, so that a manifest may be streamed.
        cache: None keeps every record.
        on_missing: what to do with records of which the cache lacks an image.

    Raises:
        MissingTeacherError: `on_missing` is `fail` and an image is not in the cache, or nothing
            is left to train on.
    """
    failed = {} if cache is None else {item.path: item.reason for item in cache.failures}
    total = text_only = lacking = 0
    reasons = Counter[str]()

    def lacks(cache: TeacherCache, path: str) -> bool:
        return path not in cache or path in failed

    def usable() -> Iterator[Record]:
        nonlocal total, text_only, lacking
        for record in records:
            total += 1
            absent = [] if cache is None else [p for p in record.images if lacks(cache, p)]
            reasons.update(failed.get(path, _ABSENT) for path in absent)
            if absent and on_missing == "fail":
                raise MissingTeacherError(
                    f"record {record.id!r}: image {absent[0]!r}: {failed.get(absent[0], _ABSENT)}; "
                    "build the cache from this manifest, or set data.on_missing to drop or lm_only"
                )
            lacking += bool(absent)
            if not absent or on_missing == "lm_only":
                text_only += not record.images
                yield record

    packed = PackedRecords(usable())
    if not packed:
        raise MissingTeacherError(
            f"none of {total} records has its images in the cache; "
            "was it built from another manifest or --images folder?"
        )
    return Selection(
        records=packed,
        text_only=text_only,
        without_teacher=lacking if on_missing == "lm_only" else 0,
        dropped=0 if on_missing == "lm_only" else lacking,
        reasons=reasons,
    )


@dataclass(eq=False)
class Conversations(Dataset[Sample]):
    """Samples by number; picklable, so that each worker process may hold its own.

    A conversation that cannot be read is returned as a skipped sample: a long run never dies of
    one image. An image that changed since the cache was built is returned as refused, and so is a
    damaged row: training on it would pair an image with another image's teacher.

    Attributes:
        records: to read.
        images: folder that their paths start from.
        student: how text and pixels are read.
        max_length: most tokens of a conversation.
        cache: teacher of the images, or None.
        ask: read first questions, for the student to answer, instead of whole conversations.
        alpha: colour behind transparent pixels; where there is a cache, it decides.
    """

    records: Sequence[Record]
    images: Path
    student: StudentSpec
    max_length: int
    cache: TeacherCache | None
    _: KW_ONLY
    ask: bool = False
    alpha: Alpha = "black"

    def __post_init__(self) -> None:
        if self.cache is not None:  # pixels as the expert saw them
            self.alpha = cast(Alpha, self.cache.card.alpha)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        try:
            encoder = self.student.encoder
            asked_about = images_of_prompt(record) if self.ask else None
            images = [self._image(path) for path in record.images[:asked_about]]
            sizes = [grid.size for _, grid, _ in images]
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
            pixels=tuple(pixels for pixels, _, _ in images),
            teachers=tuple(teacher for _, _, teacher in images),
            grids=tuple(grid for _, grid, _ in images),
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


class Padded(Dataset[Sample]):
    """Conversations, then copies of the first one without any weight, however many are read."""

    def __init__(self, samples: Conversations) -> None:
        self._samples = samples

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index] if index < len(self._samples) else _weightless(self._samples[0])


def _weightless(sample: Sample) -> Sample:
    """The same work for the model, with nothing to sum."""
    encoded = sample.encoded
    if encoded is not None:
        encoded = replace(encoded, labels=np.full_like(encoded.labels, IGNORED), cut=0)
    teachers = (None,) * len(sample.teachers)
    return replace(sample, encoded=encoded, teachers=teachers, skipped="", refused="")
