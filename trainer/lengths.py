"""How long the conversations of a manifest are, in tokens, before any of them is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ..pipeline.manifest import Record
from .conversation import ConversationEncoder, ConversationError

Int64 = npt.NDArray[np.int64]

_NO_LIMIT: Final = 2**31
SCANNED: Final = 10_000
"""Conversations tokenised at most, unless all are asked for: about half a minute."""


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


def measure_lengths(
    records: Sequence[Record],
    encoder: ConversationEncoder,
    max_length: int,
    limit: int | None = SCANNED,
) -> Lengths:
    """Tokenise conversations as training would.

    Args:
        records: of the manifest.
        encoder: of the student.
        max_length: `data.max_length`.
        limit: tokenise about that many at most: those with the longest text and an even share of
            the others; None tokenises all.
    """
    places, tokens = [], []
    too_long, unusable = [], []
    for place in _chosen(records, limit):
        record = records[place]
        try:
            length = len(encoder.training(record, _NO_LIMIT).input_ids)
        except ConversationError as error:
            unusable.append((record.id, str(error)))
            continue
        if length > max_length:
            try:
                encoder.training(record, max_length)
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
