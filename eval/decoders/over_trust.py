"""How much later tokens lean on one earlier token: OPERA's products of attention columns."""

from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def grown(trust: Tensor, row: Tensor, scale: float) -> Tensor:
    """Add one token's attention to the column products of all generated tokens.

    Args:
        trust: [..., g] float64 sums of log(scale * W[i, j]) over the rows i from j on.
        row: [..., g + 1] attention of the new token to the generated ones and itself.
        scale: sigma.

    Returns:
        [..., g + 1] float64. Logarithms, since products of hundreds of factors leave any range.
    """
    return F.pad(trust, (0, 1)) + (scale * row.double()).log()


def over_trust(trust: Tensor, *, half: bool = False) -> Tensor:
    """1e-7 times each column's product, [..., g + 1] float32, finite.

    Args:
        trust: from `grown`.
        half: go through 16 bits as the released code does, where small values become 0.
    """
    largest = torch.finfo(torch.float32).max
    value = (1e-7 * trust.exp()).clamp(max=largest).float()
    return value.half().float().clamp(max=largest) if half else value


def most_frequent(places: Sequence[int]) -> int:
    """The value that occurs most often, the smallest of equals."""
    counts = Counter(places)
    return min(counts, key=lambda place: (-counts[place], place))
