"""Golden values come from plain float64 numpy written from the equations, or from hand work."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medalign.trainer.losses import (
    AttentionNorm,
    attention_alignment,
    attention_alignment_terms,
    cosine_gram,
    spatial_alignment,
    spatial_alignment_terms,
)

Array = npt.NDArray[np.float64]
seeds = st.integers(0, 2**32 - 1)


def rng_tokens(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def numpy_gram(x: Array) -> Array:
    unit = x / np.sqrt((x * x).sum(-1, keepdims=True))
    gram: Array = unit @ unit.T
    return gram


def numpy_spatial(student: Array, teacher: Array, valid: npt.NDArray[np.bool_]) -> float:
    """Eq. 4, pair by pair."""
    s, t = numpy_gram(student), numpy_gram(teacher)
    pairs = [(i, j) for i in np.flatnonzero(valid) for j in np.flatnonzero(valid)]
    return float(np.mean([(s[i, j] - t[i, j]) ** 2 for i, j in pairs]))


def numpy_kl(student: Array, teacher: Array, valid: npt.NDArray[np.bool_], norm: str) -> float:
    """Eq. 5 with each of the three normalisations."""
    s, t = student[valid], teacher[valid]
    if norm == "sum":
        p, q = t / t.sum(), s / s.sum()
    elif norm == "softmax":
        p, q = np.exp(t) / np.exp(t).sum(), np.exp(s) / np.exp(s).sum()
    else:
        p, q = t / np.sqrt((t * t).sum()), s / np.sqrt((s * s).sum())
    total = float((p * (np.log(p) - np.log(q))).sum())
    return total / len(p) if norm == "l2" else total


def test_spatial_alignment_of_orthogonal_against_equal_tokens_is_one_half() -> None:
    student = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # gram: identity
    teacher = torch.tensor([[[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]])  # gram: all ones
    assert spatial_alignment(student, teacher).item() == pytest.approx(2 / 4)


def test_attention_alignment_of_a_half_against_a_quarter() -> None:
    teacher = torch.tensor([[1.0, 1.0]])  # (1/2, 1/2)
    student = torch.tensor([[1.0, 3.0]])  # (1/4, 3/4)
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert attention_alignment(student, teacher).item() == pytest.approx(expected)


@given(seeds)
def test_spatial_alignment_equals_float64_numpy(seed: int) -> None:
    student, teacher = rng_tokens(seed, 3, 9, 5), rng_tokens(seed + 1, 3, 9, 7)
    valid = torch.rand(3, 9, generator=torch.Generator().manual_seed(seed)) > 0.4
    valid[:, 0] = True
    got = spatial_alignment_terms(student, teacher, valid)
    for k in range(3):
        wanted = numpy_spatial(
            student[k].double().numpy(), teacher[k].double().numpy(), valid[k].numpy()
        )
        assert got[k].item() == pytest.approx(wanted, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("norm", ["sum", "softmax", "l2"])
@given(seed=seeds)
def test_attention_alignment_equals_float64_numpy(norm: AttentionNorm, seed: int) -> None:
    student = rng_tokens(seed, 3, 9).softmax(-1) * 0.3
    teacher = (rng_tokens(seed + 1, 3, 9) * 2).softmax(-1) * 0.9
    valid = torch.rand(3, 9, generator=torch.Generator().manual_seed(seed)) > 0.4
    valid[:, 0] = True
    got = attention_alignment_terms(student, teacher, valid, norm)
    for k in range(3):
        wanted = numpy_kl(
            student[k].double().numpy(), teacher[k].double().numpy(), valid[k].numpy(), norm
        )
        assert got[k].item() == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_temperature_flattens_both_maps_before_they_are_compared() -> None:
    teacher, student = torch.tensor([[1.0, 16.0]]), torch.tensor([[1.0, 1.0]])
    # x^(1/2) of (1, 16) is (1, 4): p = (1/5, 4/5) against (1/2, 1/2)
    expected = 0.2 * math.log(0.4) + 0.8 * math.log(1.6)
    got = attention_alignment(student, teacher, temperature=2.0).item()
    assert got == pytest.approx(expected, rel=1e-5)


@given(seed=seeds, scale=st.floats(0.1, 10))
def test_spatial_alignment_is_blind_to_rotation_and_scale(seed: int, scale: float) -> None:
    tokens = rng_tokens(seed, 2, 6, 4)
    rotation, _ = torch.linalg.qr(rng_tokens(seed + 1, 4, 4))
    got = spatial_alignment(tokens, scale * tokens @ rotation).item()
    assert got == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("norm", ["sum", "softmax", "l2"])
@given(seed=seeds)
def test_attention_alignment_of_a_map_with_itself_is_zero(norm: AttentionNorm, seed: int) -> None:
    attention = rng_tokens(seed, 2, 8).softmax(-1)
    assert attention_alignment(attention, attention, norm=norm).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("norm", ["sum", "l2"])
@given(seed=seeds, scale=st.floats(0.01, 100))
def test_attention_alignment_is_blind_to_scale(
    norm: AttentionNorm, seed: int, scale: float
) -> None:
    s, t = rng_tokens(seed, 2, 8).softmax(-1), rng_tokens(seed + 1, 2, 8).softmax(-1)
    a = attention_alignment(s, t, norm=norm).item()
    assert attention_alignment(scale * s, t, norm=norm).item() == pytest.approx(a, abs=1e-5)
    assert attention_alignment(s, scale * t, norm=norm).item() == pytest.approx(a, abs=1e-5)


@given(seed=seeds)
def test_losses_are_never_negative(seed: int) -> None:
    assert spatial_alignment(rng_tokens(seed, 2, 5, 3), rng_tokens(seed + 1, 2, 5, 4)).item() >= 0
    s, t = rng_tokens(seed, 2, 8).softmax(-1), rng_tokens(seed + 1, 2, 8).softmax(-1)
    assert attention_alignment(s, t).item() >= -1e-6


@given(seed=seeds)
def test_a_common_permutation_of_patches_changes_nothing(seed: int) -> None:
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    student, teacher = rng_tokens(seed, 2, 9, 5), rng_tokens(seed + 1, 2, 9, 7)
    valid = rng_tokens(seed + 2, 2, 9) > -0.5
    valid[:, 0] = True
    a = spatial_alignment(student, teacher, valid)
    b = spatial_alignment(student[:, order], teacher[:, order], valid[:, order])
    assert b.item() == pytest.approx(a.item(), rel=1e-5)
    s, t = student[..., 0].exp(), teacher[..., 0].exp()
    c = attention_alignment(s, t, valid)
    d = attention_alignment(s[:, order], t[:, order], valid[:, order])
    assert d.item() == pytest.approx(c.item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("norm", ["sum", "softmax", "l2"])
@pytest.mark.parametrize("poison", [0.0, 1e6, float("nan")])
def test_padding_patches_carry_no_weight_and_no_gradient(
    norm: AttentionNorm, poison: float
) -> None:
    valid = torch.tensor([[True, True, False, True, False]])
    student, teacher = rng_tokens(1, 1, 5, 3), rng_tokens(2, 1, 5, 4)
    s, t = rng_tokens(3, 1, 5).softmax(-1), rng_tokens(4, 1, 5).softmax(-1)

    def both(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = spatial_alignment(x, teacher, valid) + attention_alignment(
            y, t, valid, norm
        )
        return total

    before = both(student, s)
    poisoned = torch.where(valid[..., None], student, poison).requires_grad_()
    masked = torch.where(valid, s, poison).requires_grad_()
    after = both(poisoned, masked)
    assert after.item() == pytest.approx(before.item(), rel=1e-6)
    after.backward()  # type: ignore[no-untyped-call]
    assert poisoned.grad is not None
    assert masked.grad is not None
    assert poisoned.grad[~valid].abs().max() == 0
    assert masked.grad[~valid].abs().max() == 0
    assert poisoned.grad[valid].isfinite().all()
    assert poisoned.grad[valid].abs().max() > 0


def test_no_gradient_reaches_the_teacher() -> None:
    teacher = rng_tokens(0, 1, 4, 3).requires_grad_()
    attention = rng_tokens(1, 1, 4).softmax(-1).requires_grad_()
    student = rng_tokens(2, 1, 4, 3).requires_grad_()
    total: torch.Tensor = spatial_alignment(student, teacher) + attention_alignment(
        student[..., 0].exp(), attention
    )
    total.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert teacher.grad is None
    assert attention.grad is None


def test_attention_that_underflows_to_zero_gives_a_finite_loss_and_gradient() -> None:
    student = torch.tensor([[0.0, 1e-30, 0.5]], requires_grad=True)
    loss: torch.Tensor = attention_alignment(student, torch.tensor([[0.3, 0.3, 0.4]]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_half_precision_inputs_are_computed_in_float32() -> None:
    tokens = rng_tokens(0, 1, 6, 4)
    gram = cosine_gram(tokens.bfloat16())
    assert gram.dtype == torch.float32
    assert torch.allclose(gram, cosine_gram(tokens.bfloat16().float()), atol=0)


@pytest.mark.parametrize("call", [spatial_alignment, attention_alignment])
def test_shapes_that_disagree_are_refused(call: Callable[..., torch.Tensor]) -> None:
    shape = (1, 4, 2) if call is spatial_alignment else (1, 4)
    other = (1, 9, 2) if call is spatial_alignment else (1, 9)
    with pytest.raises(ValueError, match=r"must agree on \[images, tokens\]"):
        call(torch.ones(shape), torch.ones(other))


def test_an_unknown_norm_is_refused() -> None:
    unknown: Any = "max"
    with pytest.raises(ValueError, match="sum, softmax or l2"):
        attention_alignment(torch.ones(1, 2), torch.ones(1, 2), norm=unknown)
