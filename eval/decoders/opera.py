"""OPERA: beam search that takes attention to a few summary tokens for over-trust.

Huang et al., arXiv 2311.17911. `search` is the loop; `BeamModel` is the model with its cache,
`over_trust` the penalty, `_Past` the memory that a rewind needs.
"""

import copy
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from ...trainer.students.probe import Tap
from .attention import last_rows
from .call import cache_keyword, image_features, refuse_no_numbers
from .prompts import Prompt, embed
from .settings import Opera

FIRST_TOKENS: Final = 10
"""Up to this many tokens, attention to the image is rewarded instead, and nothing is rewound."""

_LIMIT: Final = 1e6  # of the penalty; products of attention may overflow
_NONE: Final = -1e9  # of a beam that does not exist yet


@dataclass(frozen=True, eq=False, slots=True)
class Beams:
    """A state of the search; nothing in it is ever changed in place.

    Attributes:
        tokens: [beams, g] generated so far.
        scores: [beams] sums of log-probabilities, best first.
        finished: (mean log-probability, tokens) of ended hypotheses, best first.
        trust: [beams, g] see `over_trust`.
    """

    tokens: Tensor
    scores: Tensor
    finished: tuple[tuple[float, tuple[int, ...]], ...]
    trust: Tensor

    @classmethod
    def begin(cls, beams: int, device: torch.device) -> Self:
        """Nothing generated; only the first beam counts, as all are the same."""
        scores = torch.full((beams,), _NONE, device=device)
        scores[0] = 0.0
        tokens = torch.zeros(beams, 0, dtype=torch.long, device=device)
        return cls(tokens, scores, (), torch.zeros(beams, 0, dtype=torch.float64, device=device))

    @property
    def length(self) -> int:
        """Tokens generated."""
        return self.tokens.shape[1]

    def best(self) -> list[int]:
        """Tokens of the best finished hypothesis."""
        return list(self.finished[0][1])

    def with_trust(self, trust: Tensor) -> Self:
        """The same beams with other trust."""
        return replace(self, trust=trust)


class Attentive(Protocol):
    """A model that generates for several beams and shows its last layer's attention."""

    @property
    def visual(self) -> Tensor:
        """[P] bool, the prompt's columns that count as image."""

    def restart(self, tokens: Tensor) -> Tensor:
        """Forget what was generated, read `tokens` [beams, g]; logits [beams, V]."""

    def peek(self, tokens: Tensor) -> Tensor:
        """Rows [beams, P + g + 1] of one more token each, which is not kept."""

    def step(self, tokens: Tensor, parents: Tensor) -> tuple[Tensor, Tensor]:
        """Reorder beams, read one token each: logits [beams, V], rows [beams, P + g + 1].

        A row is the last layer's attention of that token, largest of all heads, summing to 1.
        """


class BeamModel:
    """An `Attentive` student. The prompt is read once; beams start from copies of its cache.

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
        readers: list[Self] = []

        def read(_layer: int, scores: Tensor) -> None:
            largest = scores.softmax(-1).amax(1)
            for reader in readers:
                reader._rows = largest / largest.sum(-1, keepdim=True)

        last = model.config.text_config.num_hidden_layers - 1
        with last_rows(model, [last], read):
            readers.append(cls(model, prompt, pixels, visual))
            yield readers[0]

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

    def _forward(self, **inputs: Any) -> Tensor:
        self.passes += 1
        cache = {cache_keyword(self._model): self._cache}
        out = self._model(**inputs, **cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = out.logits[:, -1].float()
        return logits


def search(model: Attentive, spec: Opera, ends: frozenset[int]) -> list[int]:
    """Answer one prompt.

    Args:
        model: the prompt's.
        spec: settings.
        ends: tokens that end an answer.

    Returns:
        New tokens, the end token included if there is one.

    Raises:
        DecodingError: a token's scores are no numbers.
    """
    beams = Beams.begin(spec.beams, model.visual.device)
    logits = model.restart(beams.tokens)
    past = _Past(spec)
    while True:
        scores, dominant = _scored(model, spec, beams, logits)
        past.note(beams, dominant)
        back = past.rewind()
        if back is not None:
            beams, rejected = back
            logits = model.restart(beams.tokens)
            logits[tuple(zip(*sorted(rejected), strict=True))] = float("-inf")
            # This one step has neither penalty nor candidates.
            scores = logits.log_softmax(-1)
        refuse_no_numbers(scores, spec.name)
        beams, parents, done = choose(beams, scores, ends, spec.max_new_tokens)
        if done:
            return beams.best()
        chosen = beams.tokens[:, -1]
        past.chose(parents, chosen)
        logits, rows = model.step(chosen, parents)
        own = rows[:, len(model.visual) :]
        beams = beams.with_trust(grown(beams.trust, own, spec.scale))


def choose(
    beams: Beams, scores: Tensor, ends: frozenset[int], longest: int
) -> tuple[Beams, Tensor, bool]:
    """Choose the best continuations, as transformers' beam search with length penalty 1 does.

    Args:
        beams: the state.
        scores: [beams, V] log-probabilities of the next token.
        ends: tokens that end a hypothesis.
        longest: tokens at which every hypothesis ends.

    Returns:
        The next state, its `trust` the parents' own; parents [beams]; whether the search is over.
    """
    count, vocabulary = scores.shape
    total = (scores.float() + beams.scores[:, None]).flatten()
    # Enough that `count` beams run on even if every other continuation ends.
    width = min(max(2, 1 + len(ends)) * count, len(total))
    values, indices = total.topk(width)
    parents, tokens = indices // vocabulary, indices % vocabulary
    length = beams.length + 1
    over = [length >= longest or token in ends for token in tokens.tolist()]
    finished = list(beams.finished)
    for rank in range(min(count, width)):  # an end below the first `count` does not count
        if over[rank]:
            ended = (*beams.tokens[parents[rank]].tolist(), int(tokens[rank]))
            finished.append((float(values[rank]) / length, ended))
    finished = sorted(finished, key=lambda one: -one[0])[:count]
    running = values + torch.tensor(over, device=values.device) * _NONE
    picked = running.topk(count).indices
    parents, tokens = parents[picked], tokens[picked]
    after = Beams(
        torch.cat([beams.tokens[parents], tokens[:, None]], dim=1),
        running[picked],
        tuple(finished),
        beams.trust[parents],
    )
    hopeless = len(finished) == count and float(after.scores[0]) / length <= finished[-1][0]
    return after, parents, all(over) or hopeless


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


def most_frequent(columns: Sequence[int]) -> int:
    """Return the value that occurs most often, the smallest of equals."""
    counts = Counter(columns)
    return min(counts, key=lambda column: (-counts[column], column))


def _scored(
    model: Attentive, spec: Opera, beams: Beams, logits: Tensor
) -> tuple[Tensor, list[int]]:
    """Return corrected log-probabilities [beams, V], and each beam's dominant generated token."""
    count = min(spec.candidates, logits.shape[-1])
    candidates = logits.topk(count, dim=-1).indices
    penalties, columns = [], []
    for tokens in candidates.T:
        rows = model.peek(tokens)
        own = rows[:, len(model.visual) :]
        trust = over_trust(grown(beams.trust, own, spec.scale), half=spec.variant == "reference")
        columns.append(trust.argmax(-1))
        if own.shape[1] <= FIRST_TOKENS:
            penalties.append(-rows[:, : len(model.visual)][:, model.visual].sum(-1))
        else:
            penalties.append(trust.amax(-1).clamp(max=_LIMIT))
    penalty = torch.stack(penalties, dim=1)
    penalised = logits.gather(1, candidates) - spec.weight * penalty
    # Below every candidate, however large its penalty is; never quite impossible.
    floor = penalised.amin(-1, keepdim=True) - 999.0
    corrected = floor.expand_as(logits).scatter(1, candidates, penalised)
    dominant = torch.stack(columns, dim=1).tolist()
    return corrected.log_softmax(-1), [most_frequent(one) for one in dominant]


class _Past:
    """States of the search, what dominated at each of them, and what was chosen there.

    A state is named by its length g. Attributes by length: `_saved` its beams; `_dominant` the
    dominant token of each beam, which stays when the state is rewound to; `_chosen` (beam, token)
    pairs that led on; `_rejected` pairs that may not be chosen there again.
    """

    def __init__(self, spec: Opera) -> None:
        self._spec = spec
        self._saved: dict[int, Beams] = {}
        self._dominant: list[list[int]] = []
        self._chosen: dict[int, set[tuple[int, int]]] = {}
        self._rejected: defaultdict[int, set[tuple[int, int]]] = defaultdict(set)
        self._visits: Counter[int] = Counter()

    def note(self, beams: Beams, dominant: list[int]) -> None:
        """Keep a state before its next tokens are chosen."""
        self._saved[beams.length] = beams
        self._saved.pop(beams.length - self._spec.window, None)
        self._dominant.append(dominant)

    def chose(self, parents: Tensor, tokens: Tensor) -> None:
        """Keep which (beam, token) pairs led on from the newest state."""
        pairs = zip(parents.tolist(), tokens.tolist(), strict=True)
        self._chosen[len(self._dominant) - 1] = set(pairs)

    def rewind(self) -> tuple[Beams, set[tuple[int, int]]] | None:
        """Go back if one token has dominated for too long: that state, and what is forbidden."""
        target = self._target()
        if target is None:
            return None
        self._visits[target] += 1
        self._rejected[target] |= self._chosen[target]
        for later in [length for length in self._saved if length > target]:
            del self._saved[later]
            self._chosen.pop(later, None)
            self._rejected.pop(later, None)
        del self._dominant[target + 1 :]
        return self._saved[target], self._rejected[target]

    def _target(self) -> int | None:
        column = most_frequent(self._dominant[-1])
        if column < FIRST_TOKENS or not self._dominates(column):
            return None
        # The token behind the dominant one is chosen again; the one before, when that was tried
        # as often as there are candidates.
        for length in (column + 1, column):
            tried = self._visits[length] >= self._spec.candidates
            if not tried and length in self._saved and length in self._chosen:
                return length
        return None

    def _dominates(self, column: int) -> bool:
        beams = range(self._spec.beams)
        counts = [sum(step[beam] == column for step in self._dominant) for beam in beams]
        return all(count > self._spec.threshold for count in counts)
