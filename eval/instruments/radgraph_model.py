"""RadGraph's network: spans of words are entities or not, pairs of spans are related or not.

Source: Wadden et al., "Entity, relation, and event extraction with contextualized span
representations" (DyGIE++, 2019), as Jain et al., RadGraph (2021), trained it: entities and
relations alone, without propagation between spans.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BertModel

Span = tuple[int, int]
"""First and last word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RadGraphSizes:
    """What the archive's configuration says of the network.

    Attributes:
        max_span_width: most words of an entity.
        feature_size: width of the vector that stands for a span's length.
        layers: of every feed-forward network.
        hidden: their width.
        spans_per_word: share of spans that may have relations, as spans per word of the text.
        max_pieces: word pieces that BERT reads at a time, special tokens included.
        entities: number of kinds, "none" left out.
        relations: number of kinds, "none" left out.
    """

    max_span_width: int
    feature_size: int
    layers: int
    hidden: int
    spans_per_word: float
    max_pieces: int
    entities: int
    relations: int


class RadGraphModel(nn.Module):
    """Finds entities and relations in a text that was cut into words."""

    def __init__(self, bert: Any, sizes: RadGraphSizes) -> None:
        super().__init__()
        self.sizes = sizes
        span = 2 * bert.hidden_size + sizes.feature_size
        self.bert = BertModel(bert)
        self.width = nn.Embedding(sizes.max_span_width, sizes.feature_size)
        self.entity = _Scorer(span, sizes, sizes.entities)
        self.mention = _Scorer(span, sizes, 1)
        self.relation = _Scorer(3 * span, sizes, sizes.relations)

    @torch.inference_mode()
    def forward(
        self, words: list[list[int]], opening: int, closing: int
    ) -> tuple[dict[Span, int], list[tuple[Span, Span, int]]]:
        """Return kinds of entities by span, and related pairs of spans with their kind.

        Args:
            words: word pieces of every word; a word may have none.
            opening: token that opens what BERT reads.
            closing: token that closes it.
        """
        vectors = self._words(words, opening, closing)
        last = len(words) - 1
        spans = [
            (start, end)
            for start in range(len(words))
            for end in range(start, min(start + self.sizes.max_span_width - 1, last) + 1)
        ]
        at = torch.tensor(spans, device=vectors.device)
        start, end = at[:, 0], at[:, 1]
        embedded = torch.cat([vectors[start], vectors[end], self.width(end - start)], dim=1)
        kinds = _kinds(self.entity(embedded)).tolist()
        found = {span: kind for span, kind in zip(spans, kinds, strict=True) if kind >= 0}
        return found, list(self._relations(spans, embedded, len(words)))

    def _words(self, words: list[list[int]], opening: int, closing: int) -> Tensor:
        """Return a vector per word, [words, D]: the mean of its pieces, 0 for a word without."""
        device = self.width.weight.device
        step = self.sizes.max_pieces - 2
        pieces = torch.tensor([piece for word in words for piece in word], device=device)
        # A long text is read in parts; no part sees another.
        cut = [pieces[at : at + step] for at in range(0, len(pieces), step)]
        frame = (torch.tensor([opening], device=device), torch.tensor([closing], device=device))
        parts = [torch.cat([frame[0], part, frame[1]]) for part in cut]
        ids = pad_sequence(parts, batch_first=True)
        mask = pad_sequence([torch.ones_like(part) for part in parts], batch_first=True)
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        inner = [row[1 : 1 + len(part)] for row, part in zip(hidden, cut, strict=True)]
        ends = accumulate(len(word) for word in words)
        flat = torch.cat(inner)
        means = [
            flat[end - len(word) : end].mean(dim=0) if word else flat.new_zeros(flat.shape[1])
            for word, end in zip(words, ends, strict=True)
        ]
        return torch.stack(means)

    def _relations(
        self, spans: list[Span], embedded: Tensor, words: int
    ) -> Iterator[tuple[Span, Span, int]]:
        """Yield related pairs among the spans that most look like mentions."""
        mentions = self.mention(embedded)[:, 0]
        keep = min(math.ceil(words * self.sizes.spans_per_word), len(spans))
        top = mentions.topk(keep).indices.sort().values
        kept, scores = embedded[top], mentions[top]
        for place, span, score in zip(top.tolist(), kept, scores, strict=True):
            # One first span at a time: all pairs at once take a gigabyte for a long report.
            pairs = torch.cat([span.expand_as(kept), kept, span * kept], dim=1)
            kinds = _kinds(self.relation(pairs) + (score + scores)[:, None])
            for other, kind in zip(top.tolist(), kinds.tolist(), strict=True):
                if kind >= 0:
                    yield spans[place], spans[other], kind


class _Scorer(nn.Module):
    """Scores vectors [..., width] for every kind, [..., kinds]."""

    def __init__(self, width: int, sizes: RadGraphSizes, kinds: int) -> None:
        super().__init__()
        widths = [width, *[sizes.hidden] * sizes.layers]
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.last = nn.Linear(widths[-1], kinds)

    def forward(self, vectors: Tensor) -> Tensor:
        for layer in self.hidden:
            vectors = layer(vectors).relu()
        scores: Tensor = self.last(vectors)
        return scores


def _kinds(scores: Tensor) -> Tensor:
    """Return the best kind, or -1 where "none", whose score is 0, is better."""
    best, kind = scores.max(dim=-1)
    return kind.where(best > 0, -1)
