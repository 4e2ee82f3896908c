"""State how sure a mean is: bootstrap intervals."""

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0

_BLOCK = 4_000_000


def bootstrap_interval(
    values: ArrayLike, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = SEED
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over samples.

    The interval always holds the mean itself: rounding, or very few samples, could otherwise
    put it just outside.

    Args:
        values: one value per sample, [n], finite.
        resamples: how often n samples are drawn with replacement.
        level: share of the resampled means inside the interval.
        seed: seed of the draws; the same seed and values give the same interval.

    Raises:
        ValueError: there are no values, they are not one-dimensional, or one is not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError(f"an interval takes values of shape (n,) with n >= 1, got {sample.shape}")
    if not np.isfinite(sample).all():
        raise ValueError("an interval takes finite values, got NaN or infinity")
    means = _resampled_means(sample, resamples, np.random.default_rng(seed))
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    mean = float(sample.mean())
    return min(float(low), mean), max(float(high), mean)


def _resampled_means(
    sample: np.ndarray[tuple[int], np.dtype[np.float64]], resamples: int, rng: np.random.Generator
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    means = np.empty(resamples)
    # Blocks bound memory: all draws at once would be [resamples, n] indices, 0.8 GB at n = 100,000.
    rows = max(1, _BLOCK // sample.size)
    for start in range(0, resamples, rows):
        block = min(rows, resamples - start)
        draws = rng.integers(0, sample.size, size=(block, sample.size))
        means[start : start + block] = sample[draws].mean(axis=1)
    return means
