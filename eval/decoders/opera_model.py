"""One prompt in a Llava model, several beams behind it, and the last layer's attention."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from transformers import DynamicCache

from ...trainer.students.probe import Tap
from .call import cache_keyword, image_features
from .last_row import last_rows
from .prompt import Prompt, embed


class BeamModel:
    """See `opera.Attentive`. The prompt is read once; beams start from copies of its cache.

    Attributes:
        visual: [P] bool, columns that count as image.
        passes: forward passes so far.
    """

    def __init__(self, model: Any, prompt: Prompt, pixels: Tensor | None, visual: Tensor) -> None:
        self.visual = visual
        self.passes = 0
        self._model = model
        self._rows = torch.empty(0)
        features = None if pixels is None else image_features(model, pixels)
        embedded = embed(model, prompt, features)
        self._cache: Any = DynamicCache()
        tap = Tap(embedded.visual)
        self._first = self._forward(inputs_embeds=embedded.embeds, tap=tap)
        self._prompt = self._cache

    @classmethod
    @contextmanager
    def reading(
        cls, model: Any, prompt: Prompt, pixels: Tensor | None, visual: Tensor
    ) -> Iterator[Self]:
        """Read a prompt [1, P] without padding; the model is as before afterwards."""
        made: list[Self] = []

        def read(_layer: int, scores: Tensor) -> None:
            largest = scores.softmax(-1).amax(1)
            if made:
                made[0]._rows = largest / largest.sum(-1, keepdim=True)

        last = model.config.text_config.num_hidden_layers - 1
        with last_rows(model, [last], read):
            made.append(cls(model, prompt, pixels, visual))
            yield made[0]

    def restart(self, tokens: Tensor) -> Tensor:
        """Begin again from the prompt: beams were reordered since, so nothing can be cut off."""
        beams, length = tokens.shape
        self._cache = copy.deepcopy(self._prompt)
        self._cache.batch_repeat_interleave(beams)
        if not length:
            return self._first.repeat(beams, 1)
        return self._forward(input_ids=tokens)

    def peek(self, tokens: Tensor) -> Tensor:
        """Rows of one more token each; the cache forgets it."""
        self._forward(input_ids=tokens[:, None])
        self._cache.crop(-1)
        return self._rows

    def step(self, tokens: Tensor, parents: Tensor) -> tuple[Tensor, Tensor]:
        """Reorder beams, then read one token each."""
        self._cache.reorder_cache(parents)
        logits = self._forward(input_ids=tokens[:, None])
        return logits, self._rows

    def _forward(self, **given: Any) -> Tensor:
        self.passes += 1
        cache = {cache_keyword(self._model): self._cache}
        out = self._model(**given, **cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = out.logits[:, -1].float()
        return logits
