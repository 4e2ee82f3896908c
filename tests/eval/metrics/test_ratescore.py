from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medalign.eval.metrics.ratescore import TYPES, Entities, Matrix, rate_score

KINDS = st.lists(st.sampled_from(TYPES), min_size=1, max_size=5)


def entities(kinds: list[str], seed: int) -> Entities:
    generator = torch.Generator().manual_seed(seed)
    return Entities(tuple(kinds), torch.rand(len(kinds), 4, generator=generator))


@pytest.mark.parametrize("matrix", get_args(Matrix))
def test_matching_gives_the_golden_numbers(golden: Any, matrix: Matrix) -> None:
    given_ = golden["ratescore"]
    said = Entities(tuple(given_["hyp_types"]), torch.tensor(given_["hyp_emb"]))
    gold = Entities(tuple(given_["ref_types"]), torch.tensor(given_["ref_emb"]))
    expected = given_["scores"][matrix]["score"]
    assert rate_score(said, gold, matrix) == pytest.approx(expected, abs=5e-5)


@given(KINDS, KINDS, st.integers(0, 1000))
def test_the_sides_may_be_swapped(one: list[str], two: list[str], seed: int) -> None:
    a, b = entities(one, seed), entities(two, seed + 1)
    assert rate_score(a, b) == pytest.approx(rate_score(b, a), abs=1e-6)


@given(KINDS, st.integers(0, 1000))
def test_equal_entities_are_perfect(kinds: list[str], seed: int) -> None:
    a = entities(kinds, seed)
    assert rate_score(a, a) == pytest.approx(1, abs=1e-5)


def test_a_negated_finding_is_no_match() -> None:
    vector = torch.ones(1, 2)
    there, absent = Entities(("DISEASE",), vector), Entities(("NON-DISEASE",), vector)
    # One entity a side: its cosine 1 times the factor for a contradiction.
    assert rate_score(there, absent) == pytest.approx(0.871655)
    assert rate_score(there, absent, "short") == pytest.approx(0.361158)
    anatomy = Entities(("ANATOMY",), vector)
    assert rate_score(anatomy, absent) == pytest.approx(1)


def test_a_side_without_entities_scores_one_half() -> None:
    none, one = Entities((), torch.zeros(0, 0)), entities(["ANATOMY"], 0)
    assert {rate_score(none, one), rate_score(one, none), rate_score(none, none)} == {0.5}
