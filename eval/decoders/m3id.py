"""M3ID: contrast with the prompt without image, more with every token (arXiv 2403.14003)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import LogitsProcessor

from .call import Call, keep_plausible
from .prompts import embed
from .settings import M3id
from .streams import Contrast, ContrastStream


@contextmanager
def m3id(spec: M3id, call: Call) -> Iterator[list[LogitsProcessor]]:
    """Make the processors of one call."""

    def open_stream() -> ContrastStream:
        text = embed(call.model, call.prompt, None).without_image()
        return ContrastStream(call.model, text, call.prompt.length)

    def combine(logits: Tensor, other: Tensor, done: int) -> Tensor:
        if spec.variant == "reference":
            return cut_contrast(logits, other, done + 1, spec.lambda_, spec.beta)
        return gated_contrast(logits, other, done + 1, spec.lambda_, spec.gate)

    yield [Contrast(open_stream, combine, call.prompt.length)]


def weight(token: int, lambda_: float) -> float:
    """(1 - g) / g with g = e^(-lambda t), for token t of the answer, from 1."""
    try:
        return math.expm1(lambda_ * token)
    except OverflowError:
        return math.inf


def gated_contrast(
    logits: Tensor, other: Tensor, token: int, lambda_: float, gate: float
) -> Tensor:
    """The paper's form: lc + w_t (lc - lu) where the most likely token is less likely than `gate`.

    Args:
        logits: [B, V] float32 with the image; lc is their log-softmax.
        other: [B, V] float32 without it; lu.
        token: t.
        lambda_: of the weight.
        gate: a probability.
    """
    lc, lu = logits.log_softmax(-1), other.log_softmax(-1)
    open_ = lc.amax(-1, keepdim=True).exp() < gate
    return torch.where(open_, lc + weight(token, lambda_) * (lc - lu), lc)


def cut_contrast(logits: Tensor, other: Tensor, token: int, lambda_: float, beta: float) -> Tensor:
    """The released code's form (AvisC's port): no gate, but implausible tokens are cut."""
    lc, lu = logits.log_softmax(-1), other.log_softmax(-1)
    return keep_plausible(lc + weight(token, lambda_) * (lc - lu), logits, beta)
