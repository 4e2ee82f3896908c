from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medalign.eval.metrics.bertscore import greedy_match

SEEDS = st.integers(0, 10_000)


def vectors(seed: int, tokens: int = 4) -> torch.Tensor:
    return torch.randn(tokens, 3, generator=torch.Generator().manual_seed(seed))


def test_matching_gives_the_golden_numbers(golden: Any) -> None:
    given_ = golden["bertscore"]["matching"]
    tensors = {k: torch.tensor(v, dtype=torch.float32) for k, v in given_.items()}
    found = greedy_match(
        tensors["hyp_emb"], tensors["ref_emb"], tensors["hyp_weight"], tensors["ref_weight"]
    )
    assert found == pytest.approx([given_["p"], given_["r"], given_["f"]], abs=5e-5)


@given(SEEDS, SEEDS)
def test_swapping_the_sides_swaps_precision_and_recall(one: int, two: int) -> None:
    a, b, ones = vectors(one), vectors(two), torch.ones(4)
    there, back = greedy_match(a, b, ones, ones), greedy_match(b, a, ones, ones)
    assert (there.precision, there.recall) == pytest.approx((back.recall, back.precision), abs=1e-6)
    assert there.f1 == pytest.approx(back.f1, abs=1e-5)


@given(SEEDS, st.floats(0.1, 10))
def test_equal_texts_are_perfect_whatever_the_length_of_their_vectors(
    seed: int, times: float
) -> None:
    a, ones = vectors(seed), torch.ones(4)
    assert greedy_match(a, times * a, ones, ones) == pytest.approx((1, 1, 1), abs=1e-5)


@given(SEEDS)
def test_tokens_without_weight_are_matched_but_not_averaged(seed: int) -> None:
    a, b = vectors(seed, 2), vectors(seed + 1, 3)
    outer = torch.tensor([1.0, 0.0])
    found = greedy_match(a, b, outer, torch.ones(3))
    cosines = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    assert found.precision == pytest.approx(float(cosines[0].max()), abs=1e-6)
    assert found.recall == pytest.approx(float(cosines.max(dim=0).values.mean()), abs=1e-6)


def test_an_empty_side_scores_nothing() -> None:
    a = vectors(0)
    assert greedy_match(a, a, torch.zeros(4), torch.ones(4)) == (0, 0, 0)
    assert greedy_match(a, a, torch.ones(4), torch.zeros(4)) == (0, 0, 0)
