"""Read or change the attention of the last position, beside the model's own kernel.

Every layer keeps SDPA or flash attention; of one row per head the scores are computed again, in
float32. A row costs H * K * d beside the layer's H * T * K * d.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...trainer.students.families import family_of

LAST_ROW: Final = "medalign_last_row"

Look = Callable[[int, Tensor], Tensor | None]
"""(layer, scores [B, H, K] float32 before the softmax, -inf where masked) -> other scores to
attend with, or None to leave the layer's own output alone."""

Applies = Callable[[int, int], bool]
"""(layer, tokens of this forward pass) -> whether `look` is called with its scores."""


@contextmanager
def last_rows(
    model: Any, layers: Sequence[int], look: Look, applies: Applies | None = None
) -> Iterator[None]:
    """Call `look` with the last row of the given layers at every forward pass; then undo it.

    Where `applies` is false, no scores are computed and `look` is not called. As
    `trainer.students.probe` does, only the attention modules of these layers get a copy of their
    configuration; masks and all other layers stay as they are.
    """
    AttentionInterface.register(LAST_ROW, _attention)
    blocks = model.get_submodule(family_of(model).language).layers
    modules = [blocks[layer].self_attn for layer in layers]
    own = [module.config for module in modules]
    for module in modules:
        config = copy.copy(module.config)
        config._attn_implementation = LAST_ROW
        module.medalign_last_row = (module.config, look, applies)
        module.config = config
    try:
        yield
    finally:
        for module, config in zip(modules, own, strict=True):
            module.config = config
            del module.medalign_last_row


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Run the layer's own attention, call `look` with the last row, and replace it if changed."""
    config, look, applies = module.medalign_last_row
    mine, module.config = module.config, config
    try:
        base: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS[
            config._attn_implementation
        ]
        out, weights = base(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    finally:
        module.config = mine
    if applies is not None and not applies(module.layer_idx, query.shape[2]):
        return out, weights
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = last_scores(query, key, attention_mask, scale, kwargs.get("sliding_window"))
    changed = look(module.layer_idx, scores)
    if changed is None:
        return out, weights
    batch, heads, keys = changed.shape
    shared = value.shape[1]
    # Query heads that share a value head become rows of one product: no repeated values.
    grouped = changed.softmax(-1).view(batch, shared, heads // shared, keys)
    row = (grouped @ value.float()).view(batch, 1, heads, value.shape[3])
    return torch.cat([out[:, :-1], row.to(out)], dim=1), weights


def last_scores(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, window: int | None
) -> Tensor:
    """Scores of the last query before the softmax.

    Args:
        query: [B, H, T, d] after rotary embedding.
        key: [B, K, S, d], K key heads.
        mask: the layer's own, [B, 1, T, S] bool or additive, [B, S] of flash attention, or None.
        scaling: factor on query-key products.
        window: keys that a query sees, itself included, where `mask` is None; None is all.

    Returns:
        [B, H, S] float32, -inf where masked.
    """
    batch, heads, _, width = query.shape
    shared, keys = key.shape[1], key.shape[2]
    last = query[:, :, -1].float() * scaling
    last = last.view(batch, shared, heads // shared, width)
    scores = (last @ key.float().mT).view(batch, heads, keys)
    if mask is None:
        return scores if window is None else _windowed(scores, window)
    row = mask[:, None, :keys] if mask.ndim == 2 else mask[:, :, -1, :keys]
    if row.dtype.is_floating_point:
        hidden = row <= torch.finfo(row.dtype).min / 2
        return (scores + row).masked_fill(hidden, float("-inf"))
    return scores.masked_fill(~row.bool(), float("-inf"))


def _windowed(scores: Tensor, window: int) -> Tensor:
    old = scores.shape[-1] - window
    if old > 0:
        scores[..., :old] = float("-inf")
    return scores
