"""How much the tokens of a question attend to those of its image, in one layer (Eq. 5)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Look:
    """Which tokens to read. I counts the batch's images that have a teacher.

    Attributes:
        owner: [I] batch row of each image.
        cols: [I, N] positions of each image's visual tokens.
        rows: [I, R] positions of the question's tokens, padded.
        rows_ok: [I, R] bool, False where `rows` is padding.
        keys_ok: [B, T] bool, the 2-D padding mask.
        cols_ok: [I, N] bool, False where `cols` is padding; None when every image has N tokens.
    """

    owner: Tensor
    cols: Tensor
    rows: Tensor
    rows_ok: Tensor
    keys_ok: Tensor
    cols_ok: Tensor | None = None


def question_attention(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float,
    look: Look,
    window: int | None = None,
) -> Tensor:
    """Attention of the question to its image, from one layer's queries and keys (Eq. 5, M~_a).

    Args:
        query: [B, H, T, d] after rotary embedding.
        key: [B, K, T, d], K key heads; query head h reads key head h // (H / K).
        mask: the layer's own mask [B, 1, T, T], bool or additive; None = causal and `keys_ok`.
        scaling: factor on query-key products.
        look: positions of questions and images.
        window: keys that a query sees, itself included, where `mask` is None; None sees all.

    Returns:
        [I, N] float32 probability, mean over the H heads and over the question's rows; 0 where
        `cols` is padding. The softmax runs over all keys, so a row sums to at most 1.
    """
    heads, width = query.shape[1], query.shape[3]
    kv_heads, tokens = key.shape[1], key.shape[2]
    images, rows = look.rows.shape
    # Scaled and multiplied in float32: in bfloat16 a score of 100 is off by a fifth.
    q = query[look.owner[:, None], :, look.rows].transpose(1, 2).float() * scaling
    # Query heads that share a key head become rows of one product: no repeated keys.
    q = q.reshape(images, kv_heads, heads // kv_heads * rows, width)
    scores = q @ key[look.owner].float().mT
    scores = _masked(scores.view(images, heads, rows, tokens), mask, look, window)
    probability = scores.softmax(-1)
    cols = look.cols[:, None, None, :].expand(-1, heads, rows, -1)
    per_row = probability.gather(3, cols).mean(1)
    weight = look.rows_ok.to(per_row.dtype)
    mean = (per_row * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp_min(1.0)
    return mean if look.cols_ok is None else torch.where(look.cols_ok, mean, 0.0)


def _masked(scores: Tensor, mask: Tensor | None, look: Look, window: int | None) -> Tensor:
    lowest = torch.finfo(scores.dtype).min
    tokens = scores.shape[-1]
    if mask is not None and mask.ndim == 4:
        m = mask[..., :tokens].expand(len(look.keys_ok), -1, -1, -1)
        m = m[look.owner[:, None], :, look.rows].transpose(1, 2)
        return scores.masked_fill(~m, lowest) if m.dtype == torch.bool else scores + m
    # SDPA skips the mask when it is plainly causal; flash attention takes the 2-D one.
    back = look.rows[..., None] - torch.arange(tokens, device=scores.device)
    visible = back >= 0 if window is None else (back >= 0) & (back < window)
    ok = visible & look.keys_ok[look.owner][:, None, :]
    return scores.masked_fill(~ok[:, None], lowest)
