"""Contrast of two distributions, and the cut that keeps it to plausible tokens.

Order of every step: contrast, cut, temperature, top-k, top-p, draw. The cut is computed on the
logits of the normal stream, untempered.
"""

import math

from torch import Tensor


def keep_plausible(scores: Tensor, logits: Tensor, beta: float) -> Tensor:
    """Cut tokens off that the model finds less likely than beta times its most likely one.

    Adaptive plausibility constraint (Li et al., Contrastive Decoding, arXiv 2210.15097).

    Args:
        scores: [B, V], what is cut.
        logits: [B, V], what decides: logits or log-probabilities of the normal stream.
        beta: 0 keeps every token, 1 the most likely one.

    Returns:
        [B, V], -inf where cut.
    """
    if beta == 0:
        return scores
    cutoff = logits.amax(-1, keepdim=True) + math.log(beta)
    return scores.masked_fill(logits < cutoff, float("-inf"))


def contrasted(logits: Tensor, other: Tensor, alpha: float, beta: float) -> Tensor:
    """(1 + alpha) l - alpha l', cut to plausible tokens (VCD, arXiv 2311.16922, Eq. 3 and 4).

    Args:
        logits: l, [B, V] float32 of the normal stream.
        other: l', [B, V] float32 of the other stream.
        alpha: 0 leaves l.
        beta: of the cut.
    """
    return keep_plausible((1 + alpha) * logits - alpha * other, logits, beta)
