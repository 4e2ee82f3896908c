"""Eq. 1: the rotation (I + W) of the visual tokens at the input of one decoder layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VisualRotation(nn.Module):
    """x + W x on visual tokens, x elsewhere. W [C, C] is zero at the start: the exact identity.

    A module of its own, so that PEFT carries W through `modules_to_save` and ZeRO-3 gathers it.
    """

    def __init__(
        self, width: int, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, width, dtype=dtype, device=device))

    def forward(self, hidden: Tensor, visual: Tensor) -> Tensor:
        """Rotate the visual tokens.

        Args:
            hidden: [B, T, C] input of layer l.
            visual: [B, T] bool, True at visual tokens.

        Returns:
            [B, T, C], equal to `hidden` where `visual` is False.
        """
        return torch.where(visual[..., None], hidden + F.linear(hidden, self.weight), hidden)
