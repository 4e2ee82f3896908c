import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.eval.metrics import paired
from medalign.eval.metrics.paired import compare_statistics
from medalign.eval.metrics.statistic import mean_of

PAIRS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30)
RIGHT = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30)


def of(a: list[float], b: list[float], clusters: list[int] | None = None) -> paired.Paired:
    numbers = np.arange(len(a)) if clusters is None else np.asarray(clusters)
    return compare_statistics(mean_of(a), mean_of(b), numbers, binary=True, resamples=200)


@given(PAIRS)
def test_answers_compared_with_themselves_do_not_differ(pairs: list[tuple[float, float]]) -> None:
    values = [a for a, _ in pairs]
    found = of(values, values)
    assert (found.difference, found.interval, found.p) == (0, (0, 0), 1)


@given(PAIRS)
def test_swapping_the_files_turns_the_sign_and_nothing_else(
    pairs: list[tuple[float, float]],
) -> None:
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    there, back = of(a, b), of(b, a)
    assert there.difference == pytest.approx(-back.difference, abs=1e-12)
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=1e-9)
    assert there.p == pytest.approx(back.p, abs=0.02)
    assert (there.a, there.b) == (back.b, back.a)


def test_few_clusters_are_swapped_in_every_way() -> None:
    # Five differences of the same sign: of the 2^5 ways to set signs, 2 give as large a sum.
    found = of([0.0] * 5, [0.1, 0.2, 0.3, 0.4, 0.5])
    assert found.exact
    assert found.p == pytest.approx(2 / 32)


def test_equal_samples_do_not_make_a_test_surer() -> None:
    few = of([0.0] * 5, [0.1, 0.2, 0.3, 0.4, 0.5])
    more = of([0.0] * 5 + [1.0] * 50, [0.1, 0.2, 0.3, 0.4, 0.5] + [1.0] * 50)
    assert more.exact
    assert more.p == few.p


def test_a_cluster_is_swapped_whole() -> None:
    # Two patients with three images each: four ways to swap, all or none as extreme as observed.
    found = of([0.0] * 6, [1.0] * 6, [0, 0, 0, 1, 1, 1])
    assert (found.clusters, found.p) == (2, 0.5)
    assert of([0.0] * 6, [1.0] * 6).p == pytest.approx(2 / 64)


def test_random_swaps_agree_with_the_normal_limit() -> None:
    # 400 differences of +1 or -1, 230 of them +1: z = 60 / sqrt(400) = 3, so p = 0.0027, with the
    # step of the sum (2) counted in: P(|Z| >= 59 / 20) = 0.0032.
    a, b = [0.0] * 230 + [1.0] * 170, [1.0] * 230 + [0.0] * 170
    found = of(a, b)
    assert not found.exact
    expected = math.erfc(59 / 20 / math.sqrt(2))
    assert found.p == pytest.approx(expected, abs=4 * math.sqrt(expected / paired.SWAPS))


def test_random_swaps_never_rule_chance_out() -> None:
    # All 40 differ the same way, which none of 10,000 swaps repeats; the observed split counts in.
    assert of([0.0] * 40, [1.0] * 40).p == pytest.approx(1 / (paired.SWAPS + 1))


def test_blocks_swap_what_one_block_swaps(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(40).tolist(), rng.random(40).tolist()
    whole = of(a, b)
    monkeypatch.setattr(paired, "_BLOCK", 40 * 7)
    # Draws are the same, so are the hits.
    assert of(a, b).p == whole.p


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1),
        (1, 1, 1),
        (0, 5, 2 / 32),  # 2 * C(5, 0) / 2^5
        (2, 8, 2 * (1 + 10 + 45) / 1024),  # 2 * (C(10,0) + C(10,1) + C(10,2)) / 2^10
    ],
)
def test_mcnemar_is_the_exact_binomial_test(only_a: int, only_b: int, p: float) -> None:
    a = [1.0] * only_a + [0.0] * only_b + [1.0, 0.0]
    b = [0.0] * only_a + [1.0] * only_b + [1.0, 0.0]
    found = of(a, b).mcnemar
    assert found is not None
    assert (found.only_a, found.only_b) == (only_a, only_b)
    assert found.p == pytest.approx(p)


def test_mcnemar_counts_thousands_without_overflow() -> None:
    found = of([1.0] * 3000 + [0.0] * 3200, [0.0] * 3000 + [1.0] * 3200).mcnemar
    assert found is not None
    # Normal limit with continuity: z = (200 - 1) / sqrt(6200).
    assert found.p == pytest.approx(math.erfc(199 / math.sqrt(6200) / math.sqrt(2)), rel=0.01)


@given(RIGHT)
def test_without_clusters_permutation_and_mcnemar_agree(pairs: list[tuple[bool, bool]]) -> None:
    # The sum of signs is binomial: both tests ask the same question when all swaps are made.
    a, b = [float(x) for x, _ in pairs], [float(y) for _, y in pairs]
    found = of(a, b)
    assert found.mcnemar is not None
    if found.exact:
        assert found.p == pytest.approx(found.mcnemar.p)


def test_clusters_widen_the_interval_of_a_difference() -> None:
    rng = np.random.default_rng(1)
    gain = np.repeat(rng.choice([0.0, 1.0], 50), 4)
    low, high = of([0.0] * 200, gain.tolist()).interval
    wide_low, wide_high = of(
        [0.0] * 200, gain.tolist(), np.repeat(np.arange(50), 4).tolist()
    ).interval
    assert wide_high - wide_low > 1.5 * (high - low)


def test_other_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="over the same samples"):
        of([1.0, 0.0], [1.0])
