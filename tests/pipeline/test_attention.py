import numpy as np
import pytest
import torch
from open_clip.transformer import Attention as OpenClipAttention
from timm.layers import Attention as TimmAttention  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn import functional as F

from medalign.pipeline.tower import QueryKey, class_attention, query_key
from medalign.pipeline.weights import ExpertError


def seen_weights(query: Tensor, keys: Tensor) -> Tensor:
    """Softmax weights of a first query by scaled_dot_product_attention on one-hot values."""
    values = torch.eye(keys.shape[-2]).expand(*keys.shape[:-1], keys.shape[-2])
    return F.scaled_dot_product_attention(query, keys, values).mean(1)[:, 0]


def test_norms_of_queries_and_keys_are_applied() -> None:
    tokens = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(1))
    timm = TimmAttention(12, num_heads=3, qkv_bias=False, qk_norm=True, norm_layer=nn.LayerNorm)
    own = OpenClipAttention(12, num_heads=3, qk_norm=True)
    for norm in (timm.q_norm, timm.k_norm, own.ln_q, own.ln_k):
        nn.init.uniform_(norm.get_parameter("weight"), 1, 4)
    q, k, _ = timm.qkv(tokens).reshape(2, 7, 3, 3, 4).permute(2, 0, 3, 1, 4)
    wanted = seen_weights(timm.q_norm(q), timm.k_norm(k))
    torch.testing.assert_close(class_attention(query_key(timm), tokens), wanted)
    q, k, _ = F.linear(tokens, own.in_proj_weight, own.in_proj_bias).chunk(3, dim=-1)
    q, k = (part.reshape(2, 7, 3, 4).transpose(1, 2) for part in (q, k))
    wanted = seen_weights(own.ln_q(q), own.ln_k(k))
    torch.testing.assert_close(class_attention(query_key(own), tokens), wanted)


def test_an_attention_of_unknown_kind_is_refused() -> None:
    with pytest.raises(ExpertError, match=r"of .*Attention is not supported"):
        query_key(OpenClipAttention(12, num_heads=3, scaled_cosine=True))


def test_the_softmax_is_float32_whatever_the_tower_computes_in() -> None:
    projection = QueryKey(torch.eye(4).repeat(2, 1).to(torch.bfloat16), None, heads=1)
    tokens = torch.tensor([[[6.0, 0, 0, 0], [6, 0, 0, 0], [-6, 0, 0, 0]]]).to(torch.bfloat16)
    row = class_attention(projection, tokens)
    # Scores 6 * 6 / sqrt(4) = 18, 18 and -18, so the third is exp(-36) / 2; bfloat16 keeps
    # eight bits of it at best.
    assert row.dtype == torch.float32
    assert row[0, 2].item() == pytest.approx(np.exp(-36) / 2, rel=1e-5)
