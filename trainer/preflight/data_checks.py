"""Are manifest, images and cache in order, and is the cache one of these very images?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...pipeline.manifest import (
    ManifestError,
    Record,
    checked_records,
    even,
    find_images,
    image_paths,
    resolve_image,
)
from ...pipeline.pixels import PixelsError, read_image, sha256_file
from ...teacher_cache.certificate import read_certificate
from ...teacher_cache.reader import TeacherCache
from ...teacher_cache.schema import TeacherCacheError
from ..data.conversation import ConversationEncoder, ConversationError
from ..machine import counted
from ..students.family import Sight, UnfitShapeError
from .finding import Check, Status, first

_DEEP: Final = ("I", "F")  # Pillow's modes of more than 8 bits start with these


def read_records(path: Path) -> tuple[list[Record], Check]:
    """Read the records that are in order, and name the lines that are not."""
    records: list[Record] = []
    try:
        for record in checked_records(path):
            records.append(record)  # noqa: PERF402 - kept when the end raises
    except ManifestError as error:
        details = first(error.problems, error.total)
        text = f"{path}: {counted(error.total, 'problem')}, {len(records):,} records are in order"
        return records, Check("manifest", "failed", text, "mend these lines", details)
    text_only = sum(not record.images for record in records)
    more = f", {text_only:,} text only" if text_only else ""
    images = counted(len(image_paths(records)), "image")
    text = f"{path}: {counted(len(records), 'record')} over {images}{more}"
    return records, Check("manifest", "ok", text)


def present(records: Sequence[Record], images: Path) -> tuple[list[str], Check]:
    """Find every image file; returns those that are there."""
    if not images.is_dir():
        return [], Check("image files", "failed", f"{images} is no folder", "give --images DIR")
    there, absent = find_images(images, image_paths(records))
    if absent:
        lost = [str(each) for each in absent.values()]
        text = f"{len(lost):,} of {len(there) + len(lost):,} are not in {images}"
        return there, Check("image files", "failed", text, "is --images right?", first(lost))
    return there, Check("image files", "ok", f"all {len(there):,} are in {images}")


def decoded(paths: Sequence[str], images: Path, sample: int | None) -> Check:
    """Decode images that are there as training does, evenly spread ones or all."""
    chosen = even(paths, sample)
    broken, kinds = [], Counter[str]()
    for path in chosen:
        file = resolve_image(images, path)
        try:
            read_image(file)
        except PixelsError as error:
            broken.append(str(error))
        else:
            kinds[_kind(file)] += 1
    what = f"{len(chosen):,} of {counted(len(paths), 'image')}"
    notes = "".join(f", {n:,} {kind}" for kind, n in sorted(kinds.items()) if kind)
    if broken:
        advice = "mend or remove them; conversations with such an image are skipped"
        text = f"{len(broken):,} of {len(chosen):,} cannot be decoded"
        return Check("decoding", "failed", text, advice, first(broken))
    return Check("decoding", "ok", f"{what} decoded{notes}")


def opened(store: str) -> tuple[TeacherCache | None, Check]:
    """Open a cache as training would."""
    try:
        cache = TeacherCache.open(store)
    except TeacherCacheError as error:
        return None, Check("cache", "failed", str(error), "training takes sealed caches only")
    card = cache.card
    text = (
        f"{cache.store}: sealed, {counted(len(cache), 'row')} of {card.expert.name}, "
        f"{card.grid}, geometry {card.geometry}, mode {card.mode}"
    )
    return cache, Check("cache", "ok", text)


def certificate(cache: TeacherCache) -> Check:
    """Say how a cache was compared with its expert when it was sealed."""
    found = read_certificate(cache.certificate)
    if found is None:
        advice = "medalign cache seal recomputes rows with the expert"
        return Check("certificate", "warning", "no rows were recomputed", advice)
    return Check("certificate", "ok", found.summary())


def covered(records: Sequence[Record], cache: TeacherCache) -> Check:
    """Count the images that have no row in the cache."""
    paths = image_paths(records)
    failed = {item.path: item.reason for item in cache.failures}
    lacking = [path for path in paths if path not in cache]
    if not lacking:
        return Check("cache rows", "ok", f"every one of {len(paths):,} images has a row")
    absent = set(lacking)
    dropped = sum(not absent.isdisjoint(record.images) for record in records)
    text = (
        f"{len(lacking):,} of {len(paths):,} images have no row, in "
        f"{counted(dropped, 'conversation')} of {len(records):,}"
    )
    advice = "run `medalign cache build` on this manifest, or see data.on_missing"
    details = [f"{path}: {failed.get(path, 'not in the cache')}" for path in lacking]
    status: Status = "failed" if dropped == len(records) else "warning"
    return Check("cache rows", status, text, advice, first(details))


def unchanged(paths: Sequence[str], images: Path, cache: TeacherCache, sample: int | None) -> Check:
    """Compare bytes of images that are there with those that the cache was built from."""
    chosen = even([path for path in paths if path in cache], sample)
    changed = []
    for path in chosen:
        try:
            found = sha256_file(resolve_image(images, path))
        except PixelsError as error:
            changed.append(str(error))
            continue
        if found != cache.sha256_of(cache.row_of(path)):
            changed.append(path)
    if changed:
        text = f"{len(changed):,} of {len(chosen):,} images changed since the cache was built"
        advice = "restore them, or build the cache again; training stops at such an image"
        return Check("image bytes", "failed", text, advice, first(changed))
    return Check("image bytes", "ok", f"{counted(len(chosen), 'image')} as the cache saw them")


def _kind(file: Path) -> str:
    """What is worth a note about an image that can be decoded; an empty string if nothing."""
    with file.open("rb") as opened:
        head = opened.read(132)
    if head[128:] == b"DICM" or file.suffix.lower() in (".dcm", ".dicom"):
        return "DICOM"
    with Image.open(file) as image:
        return "of more than 8 bits (stretched)" if image.mode.startswith(_DEEP) else ""


Int64 = npt.NDArray[np.int64]

_NO_LIMIT: Final = 2**31
SCANNED: Final = 10_000
"""Conversations tokenised at most, unless all are asked for: about half a minute."""
READ: Final = 500
"""The same where every image must be read to know its tokens."""


@dataclass(frozen=True, eq=False, slots=True)
class Lengths:
    """Lengths of conversations, and which of them cannot be used.

    Attributes:
        places: [S] record numbers that were tokenised and can be used, ascending.
        tokens: [S] their tokens, image tokens counted, before anything is cut.
        cut: of those, how many are longer than `data.max_length`, so that an answer is cut.
        too_long: (record id, reason): images and the start of an answer do not fit.
        unusable: (record id, reason): not a conversation that can be learnt from.
        of: records of the manifest.
    """

    places: Int64
    tokens: Int64
    cut: int
    too_long: tuple[tuple[str, str], ...]
    unusable: tuple[tuple[str, str], ...]
    of: int

    @property
    def scanned(self) -> int:
        """Records that were looked at."""
        return len(self.places) + len(self.too_long) + len(self.unusable)

    def longest(self, count: int) -> list[int]:
        """Record numbers of the longest conversations, the longest first."""
        order = np.argsort(-self.tokens, kind="stable")
        return [int(place) for place in self.places[order[:count]]]


class VisualTokens:
    """How many tokens the images of a record take.

    Args:
        sight: of the student.
        images: folder of the images; only read where the tokens depend on an image's shape.
    """

    def __init__(self, sight: Sight, images: Path | None) -> None:
        self._sight = sight
        self._images = images
        self._known: dict[str, int] = {}

    @property
    def read(self) -> bool:
        """Whether images must be read to know."""
        return self._sight.fixed_grid is None

    def of(self, record: Record) -> list[int] | None:
        """Visual tokens of each image; None where all images have the same number.

        Raises:
            ValueError: an image cannot be read.
        """
        if not self.read or self._images is None:
            return None
        return [self._of_image(self._images, path) for path in record.images]

    def _of_image(self, images: Path, path: str) -> int:
        if path not in self._known:
            rgb = read_image(resolve_image(images, path)).rgb
            self._known[path] = self._sight.see(rgb)[1].size
        return self._known[path]


def measure_lengths(
    records: Sequence[Record],
    encoder: ConversationEncoder,
    max_length: int,
    visual: VisualTokens,
    limit: int | None = SCANNED,
) -> Lengths:
    """Tokenise conversations as training would.

    Args:
        records: of the manifest.
        encoder: of the student.
        max_length: `data.max_length`.
        visual: tokens of the images.
        limit: tokenise about that many at most: those with the longest text and an even share of
            the others; None tokenises all.
    """
    places, tokens = [], []
    too_long, unusable = [], []
    if visual.read and limit is not None:
        limit = min(limit, READ)
    for place in _chosen(records, limit):
        record = records[place]
        try:
            sizes = visual.of(record)
            length = len(encoder.training(record, _NO_LIMIT, sizes).input_ids)
        except (ConversationError, ManifestError, PixelsError, UnfitShapeError) as error:
            unusable.append((record.id, str(error)))
            continue
        if length > max_length:
            try:
                encoder.training(record, max_length, sizes)
            except ConversationError as error:
                too_long.append((record.id, str(error)))
                continue
        places.append(place)
        tokens.append(length)
    found = np.asarray(tokens, dtype=np.int64)
    return Lengths(
        places=np.asarray(places, dtype=np.int64),
        tokens=found,
        cut=int((found > max_length).sum()),
        too_long=tuple(too_long),
        unusable=tuple(unusable),
        of=len(records),
    )


def _chosen(records: Sequence[Record], limit: int | None) -> list[int]:
    if limit is None or len(records) <= limit:
        return list(range(len(records)))
    # An image costs hundreds of tokens, so it goes before any text.
    sizes = [
        (len(record.images), sum(len(turn.text) for turn in record.conversations))
        for record in records
    ]
    by_size = sorted(range(len(records)), key=lambda place: sizes[place], reverse=True)
    even = np.linspace(0, len(records) - 1, limit - limit // 4).astype(int).tolist()
    return sorted({*by_size[: limit // 4], *even})
