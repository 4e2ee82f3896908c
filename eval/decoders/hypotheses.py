"""Running and finished hypotheses of a beam search over one prompt."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

_NONE = -1e9  # of a beam that does not exist yet


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
    kept = min(max(2, 1 + len(ends)) * count, len(total))
    values, places = total.topk(kept)
    parents, tokens = places // vocabulary, places % vocabulary
    length = beams.length + 1
    over = [length >= longest or token in ends for token in tokens.tolist()]
    finished = list(beams.finished)
    for rank in range(min(count, kept)):  # the others stand by, so that enough can run on
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
