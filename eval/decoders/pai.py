"""PAI: attend more to the image, and contrast with the prompt without it (arXiv 2407.21771)."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import LogitsProcessor

from .attention import last_rows
from .call import Call, keep_plausible
from .prompts import Embedded, Prompt, embed
from .settings import DecodingError, Pai
from .streams import Contrast, ContrastStream


@contextmanager
def pai(spec: Pai, call: Call) -> Iterator[list[LogitsProcessor]]:
    """Make the processors of one call, and change the attention of the normal stream."""
    boost = _Boost(spec, call.prompt)
    layers = boosted_layers(spec, call.layers)

    def open_stream() -> ContrastStream:
        return _Unboosted(call.model, _text(spec, call), call.prompt.length, boost)

    def combine(logits: Tensor, other: Tensor, _done: int) -> Tensor:
        return refined(logits, other, spec.gamma, spec.beta)

    processors: list[LogitsProcessor] = []
    if spec.gamma != 1:
        processors.append(Contrast(open_stream, combine, call.prompt.length))
    with last_rows(call.model, layers, boost, boost.applies):
        yield processors


def boosted_layers(spec: Pai, layers: int) -> range:
    """Layers whose attention is changed.

    Raises:
        DecodingError: the model has no such layers.
    """
    last = layers - 1 if spec.last_layer == -1 else spec.last_layer
    if not spec.first_layer <= last < layers:
        raise DecodingError(
            f"pai: first_layer {spec.first_layer} and last_layer {spec.last_layer} name no layers "
            f"of this student, which has 0 to {layers - 1}"
        )
    return range(spec.first_layer, last + 1)


def boosted(scores: Tensor, visual: Tensor, alpha: float) -> Tensor:
    """Raise scores w of image tokens to w + alpha |w|; those below 0 come nearer to 0.

    Args:
        scores: [B, H, S] before the softmax.
        visual: [B, S] bool.
        alpha: share that is added.
    """
    # A sliding window may hide image tokens; -inf plus its size would be no number.
    raised = visual[:, None] & scores.isfinite()
    return torch.where(raised, scores + alpha * scores.abs(), scores)


def refined(logits: Tensor, other: Tensor, gamma: float, beta: float) -> Tensor:
    """Contrast and cut: gamma (lc - lu) + lu; gamma 1 gives lc, uncut.

    Args:
        logits: [B, V] float32 of the normal stream; lc is their log-softmax.
        other: [B, V] float32 of the prompt without image; lu.
        gamma: weight of the difference.
        beta: of the cut.
    """
    lc, lu = logits.log_softmax(-1), other.log_softmax(-1)
    if gamma == 1:
        return lc
    return keep_plausible(gamma * (lc - lu) + lu, lc, beta)


class _Boost:
    """Changes the last row's scores while it is on, and counts what each layer has read.

    The number of keys does not tell: a sliding window drops the oldest ones.
    """

    def __init__(self, spec: Pai, prompt: Prompt) -> None:
        self._alpha = spec.alpha
        self._first = spec.first_token
        self._visual = prompt.visual
        self._read: Counter[int] = Counter()
        self.on = True

    def applies(self, layer: int, tokens: int) -> bool:
        """Whether the attention of the last of these tokens, which a layer reads, is changed."""
        if not self.on:
            return False
        self._read[layer] += tokens
        return self._first or self._read[layer] > self._visual.shape[1]

    def __call__(self, layer: int, scores: Tensor) -> Tensor:
        generated = self._read[layer] - self._visual.shape[1]
        # Keys that were generated are no image.
        visual = torch.nn.functional.pad(self._visual, (0, generated))[:, -scores.shape[-1] :]
        return boosted(scores, visual, self._alpha)


class _Unboosted(ContrastStream):
    """The second stream, during which attention is the model's own."""

    def __init__(self, model: object, prompt: Embedded, begins: int, boost: _Boost) -> None:
        super().__init__(model, prompt, begins)
        self._boost = boost

    def step(self, input_ids: Tensor) -> Tensor:
        self._boost.on = False
        try:
            return super().step(input_ids)
        finally:
            self._boost.on = True


def _text(spec: Pai, call: Call) -> Embedded:
    """The prompt without image; the reference has the bare question instead."""
    if spec.variant == "published":
        return embed(call.model, call.prompt, None).without_image()
    question = call.inputs.get("question_ids")
    if question is None:
        raise DecodingError(
            "pai: variant=reference needs inputs['question_ids'] and inputs['question_mask'], "
            "the bare questions padded on the left"
        )
    bare = {"input_ids": question, "attention_mask": call.inputs.get("question_mask")}
    return embed(call.model, Prompt.of(bare, -1), None)
