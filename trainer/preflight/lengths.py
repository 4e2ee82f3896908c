"""How long are the conversations, and what does `data.max_length` do to them?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ...pipeline.hygiene.finding import Check, Status, first
from ...pipeline.manifest import ManifestError, Record, resolve_image
from ...pipeline.pixels import PixelsError, read_image
from ..data.conversation import ConversationEncoder, ConversationError
from ..machine import counted
from ..students.family import Sight, UnfitShapeError

Int64 = npt.NDArray[np.int64]

_NO_LIMIT: Final = 2**31
_BARS: Final = 8
_WIDTH: Final = 30
SCANNED: Final = 10_000
"""Conversations tokenised at most, unless all are asked for: about half a minute."""
READ: Final = 500
"""The same where every image must be read to know its tokens."""


@dataclass(frozen=True, eq=False, slots=True)
class Lengths:
    """Lengths of conversations, and which of them cannot be used.

    Attributes:
        numbers: [S] record numbers that were tokenised and can be used, ascending.
        tokens: [S] their tokens, image tokens counted, before anything is cut.
        cut: of those, how many are longer than `data.max_length`, so that an answer is cut.
        too_long: (record id, reason): images and the start of an answer do not fit.
        unusable: (record id, reason): not a conversation that can be learnt from.
        of: records of the manifest.
    """

    numbers: Int64
    tokens: Int64
    cut: int
    too_long: tuple[tuple[str, str], ...]
    unusable: tuple[tuple[str, str], ...]
    of: int

    @property
    def scanned(self) -> int:
        """Records that were looked at."""
        return len(self.numbers) + len(self.too_long) + len(self.unusable)

    def longest(self, count: int) -> list[int]:
        """Record numbers of the longest conversations, the longest first."""
        order = np.argsort(-self.tokens, kind="stable")
        return [int(number) for number in self.numbers[order[:count]]]


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
    numbers, tokens = [], []
    too_long, unusable = [], []
    if visual.read and limit is not None:
        limit = min(limit, READ)
    for number in _chosen(records, limit):
        record = records[number]
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
        numbers.append(number)
        tokens.append(length)
    counts = np.asarray(tokens, dtype=np.int64)
    return Lengths(
        numbers=np.asarray(numbers, dtype=np.int64),
        tokens=counts,
        cut=int((counts > max_length).sum()),
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
    by_size = sorted(range(len(records)), key=sizes.__getitem__, reverse=True)
    even = np.linspace(0, len(records) - 1, limit - limit // 4).astype(int).tolist()
    return sorted({*by_size[: limit // 4], *even})


def check_lengths(lengths: Lengths, max_length: int) -> Check:
    """Say what `data.max_length` does to the conversations."""
    scanned, tokens = counted(lengths.scanned, "conversation"), np.sort(lengths.tokens)
    text = f"none of {scanned} can be used"
    if len(tokens):
        middle = tokens[len(tokens) // 2]
        text = f"{scanned} of {tokens[0]:,} to {tokens[-1]:,} tokens, median {middle:,}"
    if lengths.scanned < lengths.of:
        text += f" (of {lengths.of:,})"
    text += f"; data.max_length {max_length:,} cuts {lengths.cut:,}"
    bars = histogram(lengths, max_length)
    if lengths.too_long or lengths.unusable:
        unusable = [
            f"{record!r}: {reason}" for record, reason in (*lengths.too_long, *lengths.unusable)
        ]
        text += f"; {len(lengths.too_long):,} do not fit at all, {len(lengths.unusable):,} unusable"
        advice = (
            "raise data.max_length: image tokens are never cut"
            if lengths.too_long
            else "mend them, or they are skipped"
        )
        status: Status = "warning" if len(tokens) else "failed"
        return Check("lengths", status, text, advice, (*bars, *first(unusable)))
    if lengths.cut:
        advice = "raise data.max_length, or accept shortened answers"
        return Check("lengths", "warning", text, advice, bars)
    return Check("lengths", "ok", text, details=bars)


def histogram(lengths: Lengths, max_length: int) -> tuple[str, ...]:
    """Text bars of lengths, `data.max_length` marked."""
    if not len(lengths.tokens):
        return ()
    low, high = int(lengths.tokens.min()), int(lengths.tokens.max())
    step = max(1, -(-(high - low + 1) // _BARS))
    counts = np.bincount((lengths.tokens - low) // step)
    bars = []
    for edge, count in zip(range(low, high + 1, step), counts.tolist(), strict=True):
        last = min(edge + step - 1, high)
        bar = "█" * max(bool(count), round(_WIDTH * count / int(counts.max())))
        mark = "  <- data.max_length" if edge <= max_length < edge + step else ""
        bars.append(f"{edge:>6,} to {last:>6,}  {bar:<{_WIDTH}}  {count:,}{mark}")
    return tuple(bars)
