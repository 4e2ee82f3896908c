"""How far the similarities that codec `gram` stores are from those that the expert gave."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..commits import CommitLog, ShardState
from ..format.arrays import RowArray
from ..storage.untrusted import TeacherCacheError, strict_fields

GRAM_ERROR = "gram_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class GramErrors:
    """Errors of the cosine Gram, over pairs of image patches.

    L_vis is a mean of squared differences of two Grams, so an error that has nothing to do with
    the student's adds its own mean square to it: `l_vis`. Whatever the errors are, L_vis as it
    would be, v, moves by at most 2 sqrt(v) `rms` + `l_vis`.

    Attributes:
        rows: images measured.
        rms: root of the mean square over all of them.
        largest_rms: of the worst image.
        largest: of the worst pair of patches.
    """

    rows: int
    rms: float
    largest_rms: float
    largest: float

    @property
    def l_vis(self) -> float:
        """What the errors add to L_vis (Eq. 4) on average."""
        return self.rms**2

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, with `l_vis` for people."""
        return {**asdict(self), "l_vis": self.l_vis}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read the JSON form.

        Raises:
            TeacherCacheError: a key is missing or unknown, or a value cannot be.
        """
        fields = strict_fields(value, (*cls.__slots__, "l_vis"), GRAM_ERROR)
        for name, number in fields.items():
            if not isinstance(number, int | float) or not 0 <= number < np.inf:
                raise TeacherCacheError(f"{GRAM_ERROR}: {name} takes a number, got {number!r:.80}")
        del fields["l_vis"]
        return cls(**fields)


def read_errors(value: Mapping[str, Any] | None) -> GramErrors | None:
    """Read what a seal holds; None with codec `fp16`."""
    return None if value is None else GramErrors.from_json(value)


def measured_errors(log: CommitLog) -> GramErrors | None:
    """Gather the errors of all rows that are written; None with codec `fp16`.

    Raises:
        TeacherCacheError: a file of them is missing; a DamagedError if it fails its checksum.
    """
    array = next((array for array in log.arrays if array.name == GRAM_ERROR), None)
    if array is None:
        return None
    states = log.states().items()
    complete = [shard for shard, state in states if state is ShardState.COMPLETE]
    shards = [_of_shard(log, array, shard) for shard in complete]
    errors = np.concatenate([np.zeros((0, 2), np.float32), *shards]).astype(np.float64)
    errors = errors[np.isfinite(errors).all(axis=1)]  # a failed row holds fill values
    if not len(errors):
        return GramErrors(rows=0, rms=0.0, largest_rms=0.0, largest=0.0)
    return GramErrors(
        rows=len(errors),
        rms=float(np.sqrt(np.square(errors[:, 0]).mean())),
        largest_rms=float(errors[:, 0].max()),
        largest=float(errors[:, 1].max()),
    )


def _of_shard(log: CommitLog, array: RowArray, shard: int) -> npt.NDArray[np.float32]:
    rows = len(log.layout.rows_of(shard))
    data = log.store.read(array.file_of(shard), array.file_bytes(rows))
    chunks = array.split(data, rows)
    values = b"".join(chunk[: array.row_bytes] for chunk in chunks)
    return np.frombuffer(values, "<f4").reshape(rows, 2)
