"""OPERA: beam search that takes attention to a few summary tokens for over-trust.

Huang et al., arXiv 2311.17911. The search here; the model with its cache in `opera_model.py`, what
attention says in `over_trust.py`, beams in `hypotheses.py`.
"""

from collections import Counter, defaultdict
from typing import Final, Protocol

import torch
from torch import Tensor

from .finite import refuse_no_numbers
from .hypotheses import Beams, choose
from .over_trust import grown, most_frequent, over_trust
from .specs import Opera

FIRST_TOKENS: Final = 10
"""Up to this many tokens attention to the image is rewarded instead; nor is rewound before."""

_LIMIT: Final = 1e6  # of the penalty; products of attention may overflow


class Attentive(Protocol):
    """A model that generates for several beams and tells what its last layer attends to."""

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


def _scored(
    model: Attentive, spec: Opera, beams: Beams, logits: Tensor
) -> tuple[Tensor, list[int]]:
    """Corrected log-probabilities [beams, V], and the dominant generated token of each beam."""
    count = min(spec.candidates, logits.shape[-1])
    candidates = logits.topk(count, dim=-1).indices
    penalties, places = [], []
    for tokens in candidates.T:
        rows = model.peek(tokens)
        own = rows[:, len(model.visual) :]
        trust = over_trust(grown(beams.trust, own, spec.scale), half=spec.variant == "reference")
        places.append(trust.argmax(-1))
        if own.shape[1] <= FIRST_TOKENS:
            penalties.append(-rows[:, : len(model.visual)][:, model.visual].sum(-1))
        else:
            penalties.append(trust.amax(-1).clamp(max=_LIMIT))
    penalty = torch.stack(penalties, dim=1)
    kept = logits.gather(1, candidates) - spec.weight * penalty
    # Below every candidate, however large its penalty is; never quite impossible.
    floor = kept.amin(-1, keepdim=True) - 999.0
    corrected = floor.expand_as(logits).scatter(1, candidates, kept)
    dominant = torch.stack(places, dim=1).tolist()
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
        place = most_frequent(self._dominant[-1])
        if place < FIRST_TOKENS or not self._dominates(place):
            return None
        # The token behind the dominant one is chosen again; the one before, when that was tried
        # as often as there are candidates.
        for length in (place + 1, place):
            tried = self._visits[length] >= self._spec.candidates
            if not tried and length in self._saved and length in self._chosen:
                return length
        return None

    def _dominates(self, place: int) -> bool:
        beams = range(self._spec.beams)
        counts = [sum(one[beam] == place for one in self._dominant) for beam in beams]
        return all(count > self._spec.threshold for count in counts)
