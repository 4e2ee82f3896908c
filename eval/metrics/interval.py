"""State how sure a number is: bootstrap intervals over clusters of samples."""

from collections.abc import Iterator, Sequence

import numpy as np

from .statistic import Float64, Int64, Statistic

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0

Interval = tuple[float, float] | None
"""Low and high end; None where all samples are of one cluster, which shows no variation."""

_BLOCK = 4_000_000


def bootstrap_interval(
    statistic: Statistic,
    clusters: Int64,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic.

    Questions about one image, and images of one patient, are right or wrong together; drawing
    them one by one would make the interval too narrow. So whole clusters are drawn.

    The interval always holds the value itself: rounding, or very few clusters, could otherwise
    put it just outside.

    Args:
        statistic: the number, defined over all its samples.
        clusters: [samples] number of the cluster of every sample.
        resamples: how often as many clusters as there are are drawn with replacement.
        level: share of the resampled values inside the interval.
        seed: seed of the draws; the same seed and samples give the same interval.

    Raises:
        ValueError: a part or whole is not finite.
    """
    if not np.isfinite(statistic.terms).all():
        raise ValueError("an interval takes finite values, got NaN or infinity")
    sums = statistic.cluster_sums(clusters)
    drawn = [statistic.of_sums(block) for block in resampled_sums(sums, resamples, seed)]
    return spread(np.concatenate(drawn), level, statistic.value())


def resampled_sums(sums: Float64, resamples: int, seed: int) -> Iterator[Float64]:
    """Draw clusters with replacement; yield sums of the draws in blocks, [block, ...].

    Args:
        sums: [C, ...] sums of every cluster.
        resamples: how often C clusters are drawn.
        seed: seed of the draws.
    """
    rng = np.random.default_rng(seed)
    count = len(sums)
    flat = sums.reshape(count, -1)
    # Blocks bound memory: all draws at once would be [resamples, C] counts.
    rows = max(1, _BLOCK // count)
    for start in range(0, resamples, rows):
        block = min(rows, resamples - start)
        draws = rng.integers(0, count, size=(block, count))
        offsets = draws + count * np.arange(block)[:, None]
        times = np.bincount(offsets.ravel(), minlength=block * count).reshape(block, count)
        yield (times.astype(np.float64) @ flat).reshape(block, *sums.shape[1:])


def spread(drawn: Float64, level: float, value: float) -> tuple[float, float]:
    """Return the middle `level` of resampled values, widened to hold the value itself.

    A resample in which the number is undefined (a rate with nothing to count) is left out.
    """
    tail = (1 - level) / 2
    defined = drawn[~np.isnan(drawn)]
    low, high = np.quantile(defined, [tail, 1 - tail]) if defined.size else (value, value)
    return min(float(low), value), max(float(high), value)


def number_clusters(names: Sequence[object]) -> Int64:
    """Return a number for every name, equal for equal names, in order of first appearance."""
    numbers: dict[object, int] = {}
    return np.asarray([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
