"""A second stream beside the one that generates: another prompt, the same generated tokens."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor

from ...trainer.students.probe import Tap
from .call import cache_keyword
from .prompts import Embedded

Combine = Callable[[Tensor, Tensor, int], Tensor]
"""(l [B, V], l' [B, V], tokens generated so far) -> scores [B, V], all float32."""


def positions(mask: Tensor) -> Tensor:
    """Position of every token, [B, T] from 0 at the first one that is no padding."""
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


class ContrastStream:
    """Next-token logits of another prompt, with a cache of its own.

    Args:
        model: the model that generates.
        prompt: the other prompt, as long as it likes.
        begins: T of the normal prompt; what `input_ids` holds behind it was generated.
    """

    def __init__(self, model: Any, prompt: Embedded, begins: int) -> None:
        self._model = model
        self._prompt = prompt
        self._mask = prompt.mask
        self._cache: Any = DynamicCache()
        self._fed = begins
        self._logits: Tensor | None = None

    def step(self, input_ids: Tensor) -> Tensor:
        """Return logits [B, V] float32 after everything in `input_ids` [B, T + G].

        Only tokens that were not there at the last call are computed.
        """
        new = input_ids[:, self._fed :]
        if self._logits is None:
            # A rotation must find the image tokens, and embeddings carry no ids.
            tap = Tap(self._prompt.visual)
            self._logits = self._forward(inputs_embeds=self._prompt.embeds, tap=tap)
        if new.shape[1]:
            self._mask = torch.cat([self._mask, torch.ones_like(new, dtype=torch.bool)], dim=1)
            self._logits = self._forward(input_ids=new)
            self._fed = input_ids.shape[1]
        return self._logits

    def _forward(self, **inputs: Any) -> Tensor:
        (length,) = {value.shape[1] for value in inputs.values() if isinstance(value, Tensor)}
        out = self._model(
            **inputs,
            attention_mask=self._mask.long(),
            position_ids=positions(self._mask)[:, -length:],
            use_cache=True,
            logits_to_keep=1,
            **{cache_keyword(self._model): self._cache},
        )
        logits: Tensor = out.logits[:, -1].float()
        return logits


class Contrast(LogitsProcessor):
    """Combine the normal stream's logits with those of a second one, token by token.

    Args:
        open_stream: makes the second stream; called at the first token, when the normal prompt
            has gone through the model and what was seen there can be used.
        combine: of the two.
        begins: T of the normal prompt.
    """

    def __init__(
        self, open_stream: Callable[[], ContrastStream], combine: Combine, begins: int
    ) -> None:
        self._open = open_stream
        self._combine = combine
        self._begins = begins
        self._stream: ContrastStream | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [B, V] for logits [B, V] of the normal stream."""
        if self._stream is None:
            self._stream = self._open()
        logits = scores.float()
        other = self._stream.step(input_ids)
        # A stream that broke down contrasts nothing, as AvisC's code does.
        broken = other.isnan().any(-1, keepdim=True)
        other = torch.where(broken, logits, other)
        # Counted in the sequence: generate may call once more than tokens are kept.
        return self._combine(logits, other, input_ids.shape[1] - self._begins)
