"""How long the conversations of a manifest are, in tokens, before any of them is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ..pipeline.manifest import ManifestError, Record, resolve_image
from ..pipeline.pixels import PixelsError, read_image
from .conversation import ConversationEncoder, ConversationError
from .students.family import Sight, UnfitShapeError

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
