"""What a writer takes for the rows of a shard, and what of that is stored."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import RowArray
from .gram_errors import GRAM_ERROR

Arrays = Mapping[str, npt.NDArray[Any]]
_ROUNDING = 1e-6


def check_values(
    layouts: Sequence[RowArray],
    most_error: float | None,
    shard: int,
    rows: Sequence[int],
    arrays: Arrays,
    failed: Mapping[int, str],
) -> None:
    """Refuse values of rows that no cache may hold.

    Args:
        layouts: the arrays of the cache.
        most_error: RMS error of the Gram that its card allows; None with codec `fp16`.
        shard: number of the shard, for messages.
        rows: numbers of the rows.
        arrays: their values by the name of the array.
        failed: row -> why its image could not be decoded; what is there is not looked at.

    Raises:
        ValueError: names the array, and the row where it is one.
    """
    if set(arrays) != (names := {array.name for array in layouts}):
        raise ValueError(f"shard {shard} takes {sorted(names)}, got {sorted(arrays)}")
    for array in layouts:
        given, shape = arrays[array.name], (len(rows), *array.row_shape)
        if given.shape != shape or given.dtype != np.dtype(array.dtype):
            raise ValueError(
                f"shard {shard} takes {array.name} of {array.dtype} {shape}, "
                f"got {given.dtype} {given.shape}"
            )
    if strangers := sorted(set(failed) - set(rows)):
        raise ValueError(f"shard {shard} holds {rows}, got failures of rows {strangers}")
    good = np.array([row not in failed for row in rows])
    for name, values in arrays.items():
        # row by row, so that what is computed on the way stays in the processor's cache
        infinite = np.array([not np.isfinite(row).all() for row in values])
        _refuse(rows, good & infinite, f"{name} holds NaN or infinite values")
    negative = (arrays["attention"] < 0).any(axis=1)
    _refuse(rows, good & negative, "attention holds negative values")
    flat = (arrays["source_size"] < 1).any(axis=1)
    _refuse(rows, good & flat, "source_size holds a side below 1 pixel")
    if most_error is not None:
        errors = arrays[GRAM_ERROR].astype(np.float64)
        _refuse(rows, good & (errors < 0).any(axis=1), f"{GRAM_ERROR} holds negative values")
        above = errors[:, 0] > most_error * (1 + _ROUNDING)
        _refuse(rows, good & above, f"{GRAM_ERROR} holds an RMS above the card's {most_error}")


def stored_values(
    layouts: Sequence[RowArray], rows: Sequence[int], arrays: Arrays, failed: Mapping[int, str]
) -> dict[str, npt.NDArray[Any]]:
    """Return what is stored of `rows`: fill values where the image failed."""
    lost = [place for place, row in enumerate(rows) if row in failed]
    return {array.name: _without(arrays[array.name], lost, array.fill) for array in layouts}


def _without(
    values: npt.NDArray[Any], lost: list[int], fill: float | int | bool | str
) -> npt.NDArray[Any]:
    if not lost:
        return values
    kept = values.copy()
    kept[lost] = fill
    return kept


def _refuse(rows: Sequence[int], wrong: npt.NDArray[np.bool_], reason: str) -> None:
    if wrong.any():
        raise ValueError(f"row {rows[int(np.argmax(wrong))]}: {reason}")
