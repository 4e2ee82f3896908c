import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.eval.metrics import interval
from medalign.eval.metrics.interval import bootstrap_interval, number_clusters
from medalign.eval.metrics.statistic import Int64, Tally, mean_of

VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=60)


def alone(values: list[float]) -> Int64:
    return np.arange(len(values))


@given(VALUES, st.integers(1, 100))
def test_the_interval_holds_the_mean_and_stays_in_range(values: list[float], draws: int) -> None:
    low, high = bootstrap_interval(mean_of(values), alone(values), resamples=draws)
    slack = 1e-12
    assert min(values) - slack <= low <= float(np.mean(values)) + slack
    assert float(np.mean(values)) - slack <= high <= max(values) + slack


def test_an_interval_of_equal_values_has_no_width() -> None:
    assert bootstrap_interval(mean_of([0.1] * 7), np.arange(7)) == pytest.approx((0.1, 0.1))


def test_the_width_is_that_of_the_normal_limit() -> None:
    # Standard error of a mean of n fair coins is 0.5 / sqrt(n); 95% of a normal lie in 1.96 of it.
    n = 4000
    low, high = bootstrap_interval(mean_of([0.0, 1.0] * (n // 2)), np.arange(n))
    assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / math.sqrt(n), rel=0.1)


def test_copies_of_a_sample_in_its_cluster_tell_nothing_new() -> None:
    # Four equal answers about each of n images are worth n answers, not 4n.
    coins = [0.0, 1.0] * 200
    low, high = bootstrap_interval(mean_of(coins), np.arange(400))
    copied = mean_of([coin for coin in coins for _ in range(4)])
    clustered = bootstrap_interval(copied, np.repeat(np.arange(400), 4))
    assert clustered == pytest.approx((low, high))
    apart_low, apart_high = bootstrap_interval(copied, np.arange(1600))
    assert high - low == pytest.approx(2 * (apart_high - apart_low), rel=0.15)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4)), min_size=2, max_size=40))
def test_what_a_cluster_is_called_does_not_matter(rows: list[tuple[float, int]]) -> None:
    statistic = mean_of([value for value, _ in rows])
    # Renamed in order, so that clusters are drawn in the same order.
    names = np.asarray([name for _, name in rows])
    renamed = 10 * names + 3
    assert bootstrap_interval(statistic, names, resamples=20) == bootstrap_interval(
        statistic, renamed, resamples=20
    )


def test_clusters_are_numbered_by_first_appearance() -> None:
    assert number_clusters(["b", "a", "b", ("c",)]).tolist() == [0, 1, 0, 2]


def test_the_same_seed_gives_the_same_interval() -> None:
    statistic, clusters = mean_of(np.random.default_rng(3).random(50).tolist()), np.arange(50)
    first = bootstrap_interval(statistic, clusters, seed=1)
    assert first == bootstrap_interval(statistic, clusters, seed=1)
    assert first != bootstrap_interval(statistic, clusters, seed=2)


def test_a_higher_level_is_wider() -> None:
    statistic, clusters = mean_of(np.random.default_rng(3).random(50).tolist()), np.arange(50)
    low, high = bootstrap_interval(statistic, clusters, level=0.99)
    inner_low, inner_high = bootstrap_interval(statistic, clusters, level=0.5)
    assert low < inner_low < inner_high < high


def test_draws_with_nothing_to_count_are_left_out() -> None:
    """A rate of one finding in one of two reports: draws of the other report alone have none."""
    tally = Tally()
    tally.add(0, 1, 1)
    tally.add(1, 0, 0)
    assert bootstrap_interval(tally.statistic(), np.arange(2)) == (1, 1)


def test_blocks_draw_what_one_block_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    statistic, clusters = mean_of(np.random.default_rng(3).random(50).tolist()), np.arange(50)
    whole = bootstrap_interval(statistic, clusters)
    monkeypatch.setattr(interval, "_BLOCK", 50 * 7)
    assert bootstrap_interval(statistic, clusters) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("values", [[math.nan], [1.0, math.inf]])
def test_values_without_a_mean_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="an interval takes"):
        bootstrap_interval(mean_of(values), alone(values))
