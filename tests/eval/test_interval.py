import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.eval.metrics import interval
from medalign.eval.metrics.interval import bootstrap_interval

VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=60)


@given(VALUES, st.integers(1, 100))
def test_the_interval_holds_the_mean_and_stays_in_range(values: list[float], draws: int) -> None:
    low, high = bootstrap_interval(values, resamples=draws)
    assert low <= float(np.mean(values)) <= high
    slack = 1e-12
    assert min(values) - slack <= low
    assert high <= max(values) + slack


def test_an_interval_of_equal_values_has_no_width() -> None:
    assert bootstrap_interval([0.1] * 7) == pytest.approx((0.1, 0.1))


def test_the_width_is_that_of_the_normal_limit() -> None:
    # Standard error of a mean of n fair coins is 0.5 / sqrt(n); 95% of a normal lie in 1.96 of it.
    n = 4000
    low, high = bootstrap_interval([0.0, 1.0] * (n // 2))
    assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / math.sqrt(n), rel=0.1)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(3).random(50)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_a_higher_level_is_wider() -> None:
    values = np.random.default_rng(3).random(50)
    low, high = bootstrap_interval(values, level=0.99)
    inner_low, inner_high = bootstrap_interval(values, level=0.5)
    assert low < inner_low < inner_high < high


def test_blocks_draw_what_one_block_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).random(50)
    whole = bootstrap_interval(values)
    monkeypatch.setattr(interval, "_BLOCK", 50 * 7)
    assert bootstrap_interval(values) == whole


@pytest.mark.parametrize("values", [[], [[1.0]], [math.nan], [1.0, math.inf]])
def test_values_without_a_mean_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="an interval takes"):
        bootstrap_interval(values)
