"""The losses of Eqs. 3 to 7: pure functions of tensors.

Shapes: I images, N visual tokens, D expert width, C student width. Everything is computed in
float32, whatever comes in; gradients flow to the student only. Each loss exists twice: `*_terms`
gives one value per image, so that a step's sum does not depend on how its images were split into
micro-batches, and the plain name gives the mean.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .recipe.sections import AttentionNorm as AttentionNorm

# Attention probabilities underflow to 0 in bfloat16; log(1e-12) = -27.6 keeps the KL finite.
_TINY = 1e-12


def cosine_gram(tokens: Tensor) -> Tensor:
    """Cosine similarity of every pair of tokens (Eq. 3): [B, N, d] to [B, N, N] float32."""
    unit = F.normalize(tokens.float(), dim=-1)
    return unit @ unit.mT


def spatial_alignment_terms(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
    """Mean squared gap between the two similarity matrices of each image (Eq. 4).

    Only similarities are compared, so C and D may differ.

    Differs from the paper: pairs with a padding patch carry no weight, when `valid` is given.

    Args:
        student: [I, N, C] visual tokens at the input of layer l, after the rotation.
        teacher: [I, N, D] expert patches on the student's grid.
        valid: [I, N] bool, False where a patch is padding; None takes every patch.

    Returns:
        [I] float32, each in [0, 4].

    Raises:
        ValueError: the shapes disagree on I or N.
    """
    _same("student and teacher", student.shape[:2], teacher.shape[:2])
    teacher = teacher.detach()
    if valid is not None:
        _same("teacher and valid", teacher.shape[:2], valid.shape)
        teacher = torch.where(valid[..., None], teacher, 0.0)
    return gram_alignment_terms(student, cosine_gram(teacher), valid)


def gram_alignment_terms(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
    """The same (Eq. 4), with the teacher's similarity matrices given.

    Args:
        student: [I, N, C] visual tokens at the input of layer l, after the rotation.
        teacher: [I, N, N] cosine similarities of the expert's patches; 0 in rows and columns of
            padding patches.
        valid: [I, N] bool, False where a patch is padding; None takes every patch.

    Returns:
        [I] float32, each in [0, 4].

    Raises:
        ValueError: the shapes disagree on I or N.
    """
    _same("student and teacher", student.shape[:2], teacher.shape[:2])
    if valid is None:
        return (cosine_gram(student) - teacher.detach()).square().mean(dim=(1, 2))
    _same("student and valid", student.shape[:2], valid.shape)
    # Before the products, not after: 0 * NaN of a padding token would poison sum and gradient.
    student = torch.where(valid[..., None], student, 0.0)
    gap = (cosine_gram(student) - teacher.detach()).square()
    return gap.sum(dim=(1, 2)) / valid.sum(-1).square().clamp_min(1)


def spatial_alignment(student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean of `spatial_alignment_terms` over images: scalar L_vis in [0, 4] (Eqs. 3-4)."""
    return spatial_alignment_terms(student, teacher, valid).mean()


def attention_alignment_terms(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    norm: AttentionNorm = "sum",
    temperature: float = 1.0,
) -> Tensor:
    """KL(teacher || student) of two attention maps, per image, in nats (Eq. 5).

    norm:
        sum: both maps become distributions over the N visual tokens, p = x^(1/T) / sum x^(1/T);
            this is the softmax of attention logits restricted to visual tokens.
        softmax: softmax(x / T) of the probabilities, the paper's words taken literally. Nearly
            constant: probabilities over hundreds of tokens differ by thousandths.
        l2: the released code. Both maps are divided by their L2 norm and the sum is divided by
            the number of tokens; this is not a KL divergence and may be negative.

    Differs from the paper: `sum` is the default, and padding patches (`valid` False) take no part.

    Args:
        student: [I, N] non-negative attention of the question to the visual tokens.
        teacher: [I, N] non-negative [cls] attention of the expert.
        valid: [I, N] bool or None.
        norm: how a map becomes comparable, see above.
        temperature: T > 0; above 1 flattens both maps. Not used by `l2`.

    Returns:
        [I] float32.

    Raises:
        ValueError: the shapes differ, or `norm` is unknown.
    """
    _same("student and teacher", student.shape, teacher.shape)
    if valid is None:
        valid = torch.ones_like(student, dtype=torch.bool)
    _same("student and valid", student.shape, valid.shape)
    s, t = (torch.where(valid, x.float(), 0.0) for x in (student, teacher.detach()))
    if norm == "l2":
        return _l2_divergence(s, t, valid)
    if norm == "sum":
        s, t = s.clamp_min(_TINY).log(), t.clamp_min(_TINY).log()
    elif norm != "softmax":
        raise ValueError(f"attention norm must be sum, softmax or l2, got {norm!r}")
    log_q = _masked_log_softmax(s / temperature, valid)
    log_p = _masked_log_softmax(t / temperature, valid)
    # Where a patch is padding both logs are 0, so its term is exp(0) * 0 = 0.
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def attention_alignment(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None = None,
    norm: AttentionNorm = "sum",
    temperature: float = 1.0,
) -> Tensor:
    """Mean of `attention_alignment_terms` over images: scalar L_att in nats (Eq. 5)."""
    return attention_alignment_terms(student, teacher, valid, norm, temperature).mean()


def answer_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy of answer tokens (Eq. 6): [A, V], [A] to a scalar in nats."""
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def _masked_log_softmax(logits: Tensor, valid: Tensor) -> Tensor:
    logs = logits.masked_fill(~valid, torch.finfo(logits.dtype).min).log_softmax(-1)
    return logs.masked_fill(~valid, 0.0)


def _l2_divergence(s: Tensor, t: Tensor, valid: Tensor) -> Tensor:
    s, t = (F.normalize(x.masked_fill(~valid, 0.0), dim=-1).clamp_min(_TINY) for x in (s, t))
    terms = (t * (t.log() - s.log())).masked_fill(~valid, 0.0)
    return terms.sum(-1) / valid.sum(-1).clamp_min(1)


def _same(what: str, a: torch.Size, b: torch.Size) -> None:
    if a != b:
        raise ValueError(f"{what} must agree on [images, tokens], got {tuple(a)} and {tuple(b)}")
