"""Numbers made of sums over samples, so that any resample of the samples gives them anew."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Statistic:
    """A mean of ratios of sums: what a mean, a rate, a micro F1 and a macro F1 have in common.

    Every sample adds a part and a whole to each of L ratios; the value is the mean over L of
    (sum of parts) / (sum of wholes). A plain mean has L = 1 and wholes of 1.

    Attributes:
        samples: [n] number of the sample that each row belongs to.
        terms: [n, L, 2] parts and wholes.
        undefined: value of 0/0; NaN stands for no value.
    """

    samples: Int64
    terms: Float64
    undefined: float

    def value(self) -> float:
        """Return the number over all samples."""
        return float(self.of_sums(self.terms.sum(axis=0)))

    def of_sums(self, sums: Float64) -> Float64:
        """Return the number of sums [..., L, 2], as [...]."""
        part, whole = sums[..., 0], sums[..., 1]
        ratio = np.full(part.shape, self.undefined)
        np.divide(part, whole, out=ratio, where=whole != 0)
        return np.asarray(ratio.mean(axis=-1))

    def cluster_sums(self, clusters: Int64) -> Float64:
        """Return the sums of every cluster that holds a row, [C, L, 2], by number of cluster.

        Args:
            clusters: [samples] cluster of every sample, indexed by `samples`.
        """
        _, own = np.unique(clusters[self.samples], return_inverse=True)
        sums = np.zeros((int(own.max()) + 1, *self.terms.shape[1:]))
        np.add.at(sums, own, self.terms)
        return sums


@dataclass(slots=True)
class Tally:
    """Collects what samples add to one statistic.

    Attributes:
        undefined: value of 0/0.
    """

    undefined: float = math.nan
    _rows: list[tuple[int, Sequence[float], Sequence[float]]] = field(default_factory=list)

    def add(
        self, sample: int, part: float | Sequence[float], whole: float | Sequence[float] = 1.0
    ) -> None:
        """Add a sample: its number among all samples, and one part and whole per ratio."""
        parts = [part] if isinstance(part, int | float) else part
        wholes = [whole] if isinstance(whole, int | float) else whole
        self._rows.append((sample, parts, wholes))

    def statistic(self) -> Statistic:
        """Return what was collected; at least one sample must have been."""
        samples, parts, wholes = zip(*self._rows, strict=True)
        terms = np.stack([np.asarray(parts, float), np.asarray(wholes, float)], axis=-1)
        return Statistic(np.asarray(samples, np.int64), terms, self.undefined)


def mean_of(values: Sequence[float]) -> Statistic:
    """Return the plain mean of one value per sample."""
    tally = Tally()
    for sample, value in enumerate(values):
        tally.add(sample, value)
    return tally.statistic()
