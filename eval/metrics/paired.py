"""Test whether two sets of answers to the same questions differ."""

from dataclasses import dataclass

import numpy as np

from .interval import LEVEL, RESAMPLES, SEED, resampled_sums, spread
from .statistic import Float64, Int64, Statistic

SWAPS = 10_000
"""How many random swaps a permutation test makes when there are more than that."""

_BLOCK = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """Exact McNemar test of a metric that counts every sample as one or not at all.

    Attributes:
        only_a: samples that count in the first file only (right there, or hallucinated there).
        only_b: samples that count in the second file only.
        p: two-sided, from the binomial distribution. It takes samples as independent.
    """

    only_a: int
    only_b: int
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """How two values of one metric differ.

    Attributes:
        a: value of the first file.
        b: value of the second.
        difference: b - a.
        interval: bootstrap interval of the difference; both files draw the same clusters.
        p: two-sided permutation test that swaps the two files' answers by whole clusters.
        exact: whether all swaps were made, or `SWAPS` random ones.
        clusters: how many there are.
        mcnemar: for a metric that counts every sample as one or not at all.
    """

    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    p: float
    exact: bool
    clusters: int
    mcnemar: McNemar | None


def compare_statistics(
    a: Statistic,
    b: Statistic,
    clusters: Int64,
    *,
    binary: bool,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> Paired:
    """Compare one metric of two files of answers, sample by sample.

    Args:
        a: the metric over the first file.
        b: the same metric over the second.
        clusters: [samples] number of the cluster of every sample.
        binary: whether every sample counts as one or not at all.
        resamples: draws of the bootstrap.
        level: of the interval.
        seed: of bootstrap and random swaps.

    Raises:
        ValueError: the two are not over the same samples.
    """
    if not np.array_equal(a.samples, b.samples):
        raise ValueError("a paired test takes two statistics over the same samples")
    sums_a, sums_b = a.cluster_sums(clusters), b.cluster_sums(clusters)
    difference = b.value() - a.value()
    drawn = [
        b.of_sums(block[:, 1]) - a.of_sums(block[:, 0])
        for block in resampled_sums(np.stack([sums_a, sums_b], axis=1), resamples, seed)
    ]
    p, exact = _permutation(a, sums_a, sums_b, seed)
    return Paired(
        a=a.value(),
        b=b.value(),
        difference=difference,
        interval=spread(np.concatenate(drawn), level, difference),
        p=p,
        exact=exact,
        clusters=len(sums_a),
        mcnemar=_mcnemar(a, b) if binary else None,
    )


def _permutation(
    statistic: Statistic, sums_a: Float64, sums_b: Float64, seed: int
) -> tuple[float, bool]:
    """Return the share of swaps with a difference at least as large, and whether all were made."""
    gap = sums_b - sums_a
    # Swapping equal clusters changes nothing.
    gap = gap[(gap != 0).reshape(len(gap), -1).any(axis=1)]
    total_a, both = sums_a.sum(axis=0), sums_a.sum(axis=0) + sums_b.sum(axis=0)
    observed = _distance(statistic, total_a, both)
    exact = 2 ** len(gap) <= SWAPS
    count = 2 ** len(gap) if exact else SWAPS
    rng = np.random.default_rng(seed)
    hits = 0
    rows = max(1, _BLOCK // max(1, len(gap)))
    for start in range(0, count, rows):
        numbers = np.arange(start, min(start + rows, count))
        if exact:
            swapped = numbers[:, None] >> np.arange(len(gap)) & 1
        else:
            swapped = rng.integers(0, 2, size=(len(numbers), len(gap)))
        moved = np.tensordot(swapped.astype(np.float64), gap, axes=1)
        # Rounding must not make the observed split rarer than itself. An undefined value is no
        # evidence of a difference, and NaN would compare as none in silence.
        distances = _distance(statistic, total_a + moved, both)
        hits += int((~(distances < observed - 1e-12)).sum())
    return (hits / count, True) if exact else ((hits + 1) / (count + 1), False)


def _distance(statistic: Statistic, sums_a: Float64, both: Float64) -> Float64:
    return np.abs(statistic.of_sums(both - sums_a) - statistic.of_sums(sums_a))


def _mcnemar(a: Statistic, b: Statistic) -> McNemar:
    right_a, right_b = a.terms[:, 0, 0] == 1, b.terms[:, 0, 0] == 1
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    discordant = only_a + only_b
    # Whole numbers until the end: 2 ** -discordant alone would be 0 from 1075 on.
    ways = tail = 1
    for k in range(min(only_a, only_b)):
        ways = ways * (discordant - k) // (k + 1)
        tail += ways
    p = min(1.0, 2 * tail / 2**discordant)
    return McNemar(only_a=only_a, only_b=only_b, p=p)
