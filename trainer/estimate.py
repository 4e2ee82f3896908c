"""How long conversations are, near enough to sort them by it, without a tokenizer."""

from collections.abc import Iterable
from typing import Final

import numpy as np

from ..pipeline.manifest import Record
from .order import Lengths

_BYTES_PER_TOKEN: Final = 4
_UNSEEN: Final = 1000
"""Tokens of an image that must be read to know them: one of 900 x 900 pixels has as many."""


def estimated_lengths(
    records: Iterable[Record], tokens_per_image: int | None, max_length: int
) -> Lengths:
    """Estimate the tokens of each record: four bytes of its text make one, an image makes N.

    An estimate because it is only sorted by: a million records take seconds on every start of
    every rank, where tokenising them takes many minutes. It depends on the text alone, so all
    ranks find the same.

    Args:
        records: of a training set.
        tokens_per_image: N; None where it depends on the image, all of which then count alike.
        max_length: where longer ones are cut.

    Returns:
        int32, one number a record.
    """
    image = _UNSEEN if tokens_per_image is None else tokens_per_image
    found = (
        image * len(record.images)
        + sum(len(turn.text.encode()) for turn in record.conversations) // _BYTES_PER_TOKEN
        for record in records
    )
    return np.minimum(np.fromiter(found, np.int64), max_length).astype(np.int32)
