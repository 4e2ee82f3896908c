"""The values of a shard before they are encoded: what no cache may hold, and what is stored."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..gram.gram_error import GRAM_ERROR
from .arrays import Array, RowArray

Arrays = Mapping[str, Array]
_ROUNDING = 1e-6  # an RMS that was measured in float64 is handed over in float32


def check_values(
    layouts: Sequence[RowArray],
    max_gram_error: float | None,
    shard: int,
    rows: Sequence[int],
    arrays: Arrays,
    failed: Collection[int],
) -> None:
    """Refuse values of rows that no cache may hold.

    Args:
        layouts: the arrays of the cache.
        max_gram_error: RMS error of the Gram that its card allows; None with codec `fp16`.
        shard: number of the shard, for messages.
        rows: numbers of the rows.
        arrays: their values by the name of the array.
        failed: rows whose image could not be decoded; their values are not looked at.

    Raises:
        ValueError: names the array, and the row where it is one.
    """
    _check_shapes(layouts, shard, len(rows), arrays)
    if strangers := sorted(set(failed) - set(rows)):
        raise ValueError(f"shard {shard} holds {rows}, got failures of rows {strangers}")
    decoded = np.array([row not in failed for row in rows])

    def refuse(wrong: npt.ArrayLike, reason: str) -> None:
        if (stored := np.logical_and(wrong, decoded)).any():
            raise ValueError(f"row {rows[int(np.argmax(stored))]}: {reason}")

    for name, values in arrays.items():
        # row by row, so that what is computed on the way stays in the processor's cache
        infinite = np.array([not np.isfinite(row).all() for row in values])
        refuse(infinite, f"{name} holds NaN or infinite values")
    refuse((arrays["attention"] < 0).any(axis=1), "attention holds negative values")
    refuse((arrays["source_size"] < 1).any(axis=1), "source_size holds a side below 1 pixel")
    if max_gram_error is not None:
        errors = arrays[GRAM_ERROR].astype(np.float64)
        refuse((errors < 0).any(axis=1), f"{GRAM_ERROR} holds negative values")
        above = errors[:, 0] > max_gram_error * (1 + _ROUNDING)
        refuse(above, f"{GRAM_ERROR} holds an RMS above the card's {max_gram_error}")


def stored_values(
    layouts: Sequence[RowArray], rows: Sequence[int], arrays: Arrays, failed: Collection[int]
) -> dict[str, Array]:
    """Return what is stored of `rows`: fill values where the image failed."""
    lost = [position for position, row in enumerate(rows) if row in failed]
    stored = {layout.name: arrays[layout.name] for layout in layouts}
    if lost:
        for layout in layouts:
            stored[layout.name] = stored[layout.name].copy()
            stored[layout.name][lost] = layout.fill
    return stored


def _check_shapes(layouts: Sequence[RowArray], shard: int, rows: int, arrays: Arrays) -> None:
    if set(arrays) != (names := {layout.name for layout in layouts}):
        raise ValueError(f"shard {shard} takes {sorted(names)}, got {sorted(arrays)}")
    for layout in layouts:
        values, shape = arrays[layout.name], (rows, *layout.row_shape)
        if values.shape != shape or values.dtype != np.dtype(layout.dtype):
            raise ValueError(
                f"shard {shard} takes {layout.name} of {layout.dtype} {shape}, "
                f"got {values.dtype} {values.shape}"
            )
