"""A batch of prompts as embeddings: where its image tokens are, and prompts with less image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from .settings import DecodingError


@dataclass(frozen=True, eq=False, slots=True)
class Prompt:
    """A left-padded batch of prompts.

    Attributes:
        ids: [B, T].
        mask: [B, T] bool, False on padding.
        visual: [B, T] bool, True at image tokens: found by their id, wherever they stand.
    """

    ids: Tensor
    mask: Tensor
    visual: Tensor

    @classmethod
    def of(cls, inputs: Mapping[str, Tensor | None], image_token_id: int) -> Self:
        """Read `input_ids` and `attention_mask` of a model's inputs.

        Raises:
            DecodingError: there are no `input_ids`, or the batch is padded on the right.
        """
        ids = inputs.get("input_ids")
        if ids is None:
            raise DecodingError("inputs need input_ids [B, T]")
        attention = inputs.get("attention_mask")
        mask = torch.ones_like(ids, dtype=torch.bool) if attention is None else attention.bool()
        if not mask[:, -1].all():
            raise DecodingError("prompts are padded on the left, these end in padding")
        return cls(ids, mask, (ids == image_token_id) & mask)

    @property
    def length(self) -> int:
        """T."""
        return self.ids.shape[1]


@dataclass(frozen=True, eq=False, slots=True)
class Embedded:
    """A left-padded batch of prompts as the language model takes it.

    Attributes:
        embeds: [B, T, C].
        mask: [B, T] bool.
        visual: [B, T] bool; a rotation turns these.
    """

    embeds: Tensor
    mask: Tensor
    visual: Tensor

    def with_visual(self, values: Tensor, replaced: Tensor) -> Self:
        """Put other embeddings, [B, T, C] or what broadcasts to it, where [B, T] is True."""
        changed = torch.where(replaced[..., None], values.to(self.embeds), self.embeds)
        return replace(self, embeds=changed)

    def select(self, rows: Sequence[Tensor]) -> Self:
        """Take positions of each prompt, in the order of `rows`, padded on the left."""
        longest = max(len(row) for row in rows)
        batch, _, width = self.embeds.shape
        embeds = self.embeds.new_zeros(batch, longest, width)
        mask = self.mask.new_zeros(batch, longest)
        visual = torch.zeros_like(mask)
        for k, row in enumerate(rows):
            begin = longest - len(row)
            embeds[k, begin:] = self.embeds[k, row]
            visual[k, begin:] = self.visual[k, row]
            mask[k, begin:] = True
        return type(self)(embeds, mask, visual)

    def without_image(self) -> Self:
        """Return the prompts without their image tokens; all text stays."""
        text = self.mask & ~self.visual
        return self.select([row.nonzero()[:, 0] for row in text])


def embed(model: Any, prompt: Prompt, features: Tensor | None) -> Embedded:
    """Embed tokens, and put the images' features at their places.

    Args:
        model: a Llava model.
        prompt: the tokens.
        features: [P, N, C] of the batch's images in order; None leaves the placeholders.

    Raises:
        DecodingError: image tokens and features are not of the same number.
    """
    embeds = model.get_input_embeddings()(prompt.ids)
    if features is not None:
        flat = features.reshape(-1, features.shape[-1])
        if len(flat) != int(prompt.visual.sum()):
            raise DecodingError(
                f"prompts have {int(prompt.visual.sum())} image tokens, the images give {len(flat)}"
            )
        embeds = embeds.masked_scatter(prompt.visual[..., None], flat.to(embeds))
    return Embedded(embeds, prompt.mask, prompt.visual)
