"""Attention of the [cls] query in one block: a single row, never the map of all tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class QueryKey:
    """How an attention module makes queries and keys from its input.

    Attributes:
        weight: [2D, D], the rows for the queries, then those for the keys.
        bias: [2D] or None.
        heads: H; each head has D / H features.
        query_norm: applied to each head's queries, None for none (timm's `q_norm`).
        key_norm: the same for keys.
    """

    weight: Tensor
    bias: Tensor | None
    heads: int
    query_norm: Callable[[Tensor], Tensor] | None = None
    key_norm: Callable[[Tensor], Tensor] | None = None


def class_attention(projection: QueryKey, tokens: Tensor) -> Tensor:
    """Return how the first token attends to all tokens, as the mean over heads.

    Scores and softmax are float32 whatever the tower computes in: in bfloat16 small
    probabilities would round to zero, and their logarithm is needed later (Eq. 5).

    Args:
        projection: the queries and keys of the block.
        tokens: what the block's attention module receives, [B, T, D], [cls] first.

    Returns:
        Probabilities [B, T], float32; each row sums to 1.
    """
    weights = projection.weight.chunk(2)
    biases = (None, None) if projection.bias is None else projection.bias.chunk(2)
    query = _heads(F.linear(tokens[:, :1], weights[0], biases[0]), projection.heads)
    keys = _heads(F.linear(tokens, weights[1], biases[1]), projection.heads)
    if projection.query_norm is not None:
        query = projection.query_norm(query)
    if projection.key_norm is not None:
        keys = projection.key_norm(keys)
    query = query.float() * query.shape[-1] ** -0.5
    scores = query @ keys.float().transpose(-2, -1)
    return torch.softmax(scores, dim=-1).mean(dim=1).squeeze(1)


def _heads(x: Tensor, heads: int) -> Tensor:
    """Split [B, T, D] into [B, H, T, D / H]."""
    batch, tokens, width = x.shape
    return x.reshape(batch, tokens, heads, width // heads).transpose(1, 2)
