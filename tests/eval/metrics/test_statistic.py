import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.eval.metrics.statistic import Tally, mean_of

VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@given(VALUES)
def test_a_mean_is_the_mean(values: list[float]) -> None:
    assert mean_of(values).value() == pytest.approx(sum(values) / len(values))


@given(st.permutations(list(enumerate([0.0, 0.2, 0.5, 1.0, 0.3]))))
def test_the_order_of_samples_does_not_matter(rows: list[tuple[int, float]]) -> None:
    tally = Tally()
    for place, value in rows:
        tally.add(place, value)
    assert tally.statistic().value() == pytest.approx(0.4)


def test_a_rate_divides_sums_and_does_not_average_rates() -> None:
    tally = Tally()
    tally.add(0, 1, 1)
    tally.add(1, 1, 9)
    assert tally.statistic().value() == pytest.approx(2 / 10)


def test_a_mean_of_ratios_averages_after_dividing() -> None:
    tally = Tally(undefined=0.0)
    tally.add(0, [1, 0, 0], [2, 1, 0])
    tally.add(1, [1, 1, 0], [2, 1, 0])
    assert tally.statistic().value() == pytest.approx((2 / 4 + 1 / 2 + 0) / 3)


def test_nothing_to_count_has_no_value_unless_it_is_said_what_it_counts_as() -> None:
    for undefined in (math.nan, 0.0):
        tally = Tally(undefined=undefined)
        tally.add(0, 0, 0)
        assert tally.statistic().value() == pytest.approx(undefined, nan_ok=True)


def test_sums_are_taken_over_clusters_that_hold_a_sample() -> None:
    tally = Tally()
    for place, value in ((1, 1.0), (4, 3.0), (3, 5.0)):
        tally.add(place, value)
    clusters = np.array([7, 2, 7, 9, 2])
    sums = tally.statistic().cluster_sums(clusters)
    assert sums[:, 0].tolist() == [[4.0, 2.0], [5.0, 1.0]]
