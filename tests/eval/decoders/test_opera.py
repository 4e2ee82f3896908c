"""OPERA's search as its formulas say, and rewinding, under scripted attention."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from medalign.eval.decoders.opera import search
from medalign.eval.decoders.settings import Opera

PROMPT, WORDS = 3, 40


class Scripted:
    """A model of scripted logits and attention; the second column of the prompt is its image."""

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        rows: Callable[[Tensor], Tensor],
    ) -> None:
        self.visual = torch.tensor([False, True, False])
        self.restarts: list[int] = []
        self.lengths: list[int] = []
        self.peeks = 0
        self._logits, self._rows = logits, rows
        self._tokens = torch.zeros(1, 0, dtype=torch.long)

    def restart(self, tokens: Tensor) -> Tensor:
        self.restarts.append(tokens.shape[1])
        self._tokens = tokens
        return self._logits(tokens)

    def peek(self, tokens: Tensor) -> Tensor:
        self.peeks += 1
        return self._rows(torch.cat([self._tokens, tokens[:, None]], dim=1))

    def step(self, tokens: Tensor, parents: Tensor) -> tuple[Tensor, Tensor]:
        self._tokens = torch.cat([self._tokens[parents], tokens[:, None]], dim=1)
        self.lengths.append(self._tokens.shape[1])
        return self._logits(self._tokens), self._rows(self._tokens)


def by_last_token(tokens: Tensor) -> Tensor:
    """Logits [beams, WORDS] that follow from length and last token."""
    rows = []
    for row in tokens:
        last = int(row[-1]) if len(row) else 0
        generator = torch.Generator().manual_seed(1000 * len(row) + last)
        rows.append(3 * torch.randn(WORDS, generator=generator))
    return torch.stack(rows)


def leaning_on(column: int | None) -> Callable[[Tensor], Tensor]:
    """Attention that leans on one generated token as soon as it is there."""

    def rows(tokens: Tensor) -> Tensor:
        row = torch.full((len(tokens), PROMPT + tokens.shape[1]), 0.01)
        if column is not None and tokens.shape[1] > column:
            row[:, PROMPT + column] = 0.9
        return row

    return rows


@pytest.mark.parametrize("beams", [1, 3])
def test_a_dominant_token_is_rewound_to_until_the_quota_is_spent(beams: int) -> None:
    model = Scripted(by_last_token, leaning_on(11))
    spec = Opera(beams=beams, threshold=2, candidates=3, weight=0.0, max_new_tokens=30)
    tokens = search(model, spec, frozenset())
    assert len(tokens) == 30
    # First to the token behind the dominant one, 3 times; then to the dominant one, 3 times.
    assert model.restarts == [0, *[12] * 3, *[11] * 3]
    # Dominant at lengths 11, 12, 13: more than twice. The state that is rewound to keeps what
    # dominated there, so 13 is one too many again, also from one place earlier.
    again, earlier = [13], [12, 13]
    assert model.lengths == [*range(1, 14), *again * 3, *earlier * 3, *range(14, 30)]


def test_what_was_chosen_there_is_not_chosen_again() -> None:
    seen: list[tuple[int, ...]] = []

    def logits(tokens: Tensor) -> Tensor:
        if tokens.shape[1] == 13:
            seen.append(tuple(tokens[0].tolist()))
        return by_last_token(tokens)

    model = Scripted(logits, leaning_on(11))
    spec = Opera(beams=1, threshold=2, candidates=4, weight=0.0, max_new_tokens=30)
    search(model, spec, frozenset())
    first = seen[:5]  # the first visit, and four rewinds to length 12
    assert len({tokens[:12] for tokens in first}) == 1
    ordered = by_last_token(torch.tensor([first[0][:12]]))[0].argsort(descending=True)
    assert [tokens[12] for tokens in first] == ordered[:5].tolist()
    # Then one token earlier, where the same token may be chosen behind another one.
    assert seen[5][:11] == first[0][:11]
    assert seen[5][11] != first[0][11]


def test_a_step_that_is_rewound_to_has_no_penalty() -> None:
    """Token 8 is the second most likely, but leans on token 11 more than 7 and 9 do."""
    seen: list[list[int]] = []

    def logits(tokens: Tensor) -> Tensor:
        seen.append(tokens[0].tolist())
        row = torch.full((len(tokens), WORDS), -20.0)
        row[:, 7], row[:, 8], row[:, 9] = 3.0, 2.9, 2.8
        return row

    def rows(tokens: Tensor) -> Tensor:
        row = leaning_on(11)(tokens)
        if tokens.shape[1] > 12:
            row[tokens[:, -1] == 8, PROMPT + 11] = 0.99
        return row

    # Two rows lean on column 11: 1e-7 (50 * .9) (50 * .99 - 50 * .9) is 2e-5 more, times 1e5.
    spec = Opera(beams=1, threshold=2, candidates=3, weight=1e5, max_new_tokens=15)
    search(Scripted(logits, rows), spec, frozenset())
    first, again = [tokens for tokens in seen if len(tokens) == 13][:2]
    assert (first[12], again[12]) == (7, 8)


def test_rejections_behind_a_rewind_are_forgotten() -> None:
    """Twice to length 14, once to 12, again to 14: there only the newest choice is rejected."""

    seen: list[list[int]] = []

    def order(length: int) -> Tensor:
        generator = torch.Generator().manual_seed(length)
        return torch.randn(WORDS, generator=generator)

    def logits(tokens: Tensor) -> Tensor:
        if tokens.shape[1] == 15:
            seen.append(tokens[0].tolist())
        return order(tokens.shape[1]).repeat(len(tokens), 1)

    def rows(tokens: Tensor) -> Tensor:
        return leaning_on(11 if len(model.restarts) == 3 else 13)(tokens)

    model = Scripted(logits, rows)
    search(model, Opera(beams=1, threshold=2, weight=0.0, max_new_tokens=18), frozenset())
    assert model.restarts[:5] == [0, 14, 14, 12, 14]
    places = [order(14).argsort(descending=True).tolist().index(one[14]) for one in seen]
    # First choice, second, third; then the first again, and the second.
    assert places[:5] == [0, 1, 2, 0, 1]


def test_what_was_chosen_behind_a_rewind_is_forgotten() -> None:
    """State 14 led on once; when it is reached anew, it has chosen nothing to take back."""

    def rows(tokens: Tensor) -> Tensor:
        first = len(model.restarts) == 1
        column, since = (11, 16) if first else (13, 14)
        return leaning_on(column if tokens.shape[1] >= since else None)(tokens)

    model = Scripted(by_last_token, rows)
    search(model, Opera(beams=1, threshold=1, weight=0.0, max_new_tokens=18), frozenset())
    assert model.restarts[:3] == [0, 12, 13]


def test_nothing_is_rewound_without_dominance_or_before_the_tenth_token() -> None:
    for column, threshold in ((None, 2), (9, 2), (11, 40)):
        model = Scripted(by_last_token, leaning_on(column))
        spec = Opera(beams=2, threshold=threshold, weight=0.0, max_new_tokens=30)
        search(model, spec, frozenset())
        assert model.restarts == [0], (column, threshold)
    model = Scripted(by_last_token, leaning_on(10))
    search(model, Opera(beams=2, threshold=2, weight=0.0, max_new_tokens=30), frozenset())
    assert model.restarts[1] == 11


def three_beams(tokens: Tensor) -> Tensor:
    """Logits of beams that repeat their first token, 7, 8 or 9, for ever."""
    row = torch.full((len(tokens), WORDS), -20.0)
    if tokens.shape[1]:
        return row.scatter(1, tokens[:, -1:], 3.0)
    row[:, 7], row[:, 8], row[:, 9] = 3.0, 2.9, 2.8
    return row


def test_a_token_must_dominate_in_every_beam() -> None:
    def rows(tokens: Tensor) -> Tensor:
        row = leaning_on(None)(tokens)
        leaning = torch.isin(tokens[:, 0], torch.tensor(places))
        row[leaning] = leaning_on(11)(tokens[leaning])
        return row

    for places, rewound in (([7, 8], True), ([7], False), ([8], False)):
        model = Scripted(three_beams, rows)
        spec = Opera(beams=2, threshold=2, candidates=2, weight=0.0, max_new_tokens=20)
        search(model, spec, frozenset())
        assert (len(model.restarts) > 1) is rewound, places


def test_most_candidates_say_what_dominates() -> None:
    """Token 7 is chosen and leans on nothing; of three candidates two or one lean on token 11."""

    def logits(tokens: Tensor) -> Tensor:
        row = torch.full((len(tokens), WORDS), -20.0)
        row[:, 7], row[:, 8], row[:, 9] = 3.0, 2.9, 2.8
        return row

    def rows(tokens: Tensor) -> Tensor:
        leans = torch.isin(tokens[:, -1:], leaning)
        return torch.where(leans, leaning_on(11)(tokens), leaning_on(None)(tokens))

    for others, rewound in (([8, 9], True), ([9], False)):
        leaning = torch.tensor(others)
        model = Scripted(logits, rows)
        spec = Opera(beams=1, threshold=2, candidates=3, weight=0.0, max_new_tokens=20)
        search(model, spec, frozenset())
        assert (len(model.restarts) > 1) is rewound


def test_the_most_frequent_place_of_all_beams_is_what_dominates() -> None:
    """The first beam says so no more, when the two others have said it often enough."""

    def rows(tokens: Tensor) -> Tensor:
        row, first = leaning_on(None)(tokens), tokens[:, 0] == 7
        length = tokens.shape[1]
        if length > 11:
            # The first beam leans on token 11 until length 13, the others from 13 on; at 11 it is
            # each beam's own.
            row[~first, PROMPT + 11] = 0.9 if length > 13 else 0.01
            row[first, PROMPT + 11] = 0.0 if length > 14 else 0.9
        return row

    model = Scripted(three_beams, rows)
    spec = Opera(beams=3, threshold=2, candidates=3, weight=0.0, max_new_tokens=20)
    search(model, spec, frozenset())
    assert model.lengths[:14] == list(range(1, 15))
    assert model.restarts[:2] == [0, 12]


def test_a_window_bounds_how_far_back_a_rewind_goes() -> None:
    model = Scripted(by_last_token, leaning_on(11))
    # Fires at length 16, 4 behind the target: kept by a window of 5, gone from one of 4.
    spec = {"beams": 1, "threshold": 5, "weight": 0.0, "max_new_tokens": 24}
    search(model, make_opera(window=5, **spec), frozenset())
    assert model.restarts[1] == 12
    model = Scripted(by_last_token, leaning_on(11))
    search(model, make_opera(window=4, **spec), frozenset())
    assert model.restarts == [0]


def make_opera(**settings: Any) -> Opera:
    return Opera(**settings)


def test_the_first_tokens_are_rewarded_for_attention_to_the_image() -> None:
    def logits(tokens: Tensor) -> Tensor:
        row = torch.full((WORDS,), -20.0)
        row[7], row[8] = 3.0, 2.8
        return row.repeat(len(tokens), 1)

    def rows(tokens: Tensor) -> Tensor:
        row = torch.zeros(len(tokens), PROMPT + tokens.shape[1])
        row[:, 1] = torch.where(tokens[:, -1] == 7, 0.1, 0.4)
        row[:, 2] = 0.9 - row[:, 1]  # text, which earns nothing
        return row

    # 3.0 + .1 against 2.8 + .4: the choice flips.
    for weight, wanted in ((0.0, 7), (1.0, 8)):
        spec = Opera(beams=1, candidates=2, weight=weight, max_new_tokens=1)
        assert search(Scripted(logits, rows), spec, frozenset()) == [wanted]


def test_a_token_that_was_no_candidate_is_never_chosen() -> None:
    """Not even where every candidate is punished by more than the 999 of other tokens."""

    def logits(tokens: Tensor) -> Tensor:
        row = torch.zeros(len(tokens), WORDS)
        row[:, 7], row[:, 8] = 3.0, 2.8
        return row

    spec = Opera(beams=2, threshold=30, candidates=2, max_new_tokens=20)
    model = Scripted(logits, leaning_on(0))  # 1e-7 (50 * .9)^n is 3e9 for the tenth token
    assert set(search(model, spec, frozenset())) <= {7, 8}


def test_over_trust_in_16_bits_rewinds_nothing_where_it_is_small() -> None:
    for variant, rewound in (("published", True), ("reference", False)):
        model = Scripted(by_last_token, leaning_on(11))
        # 1e-7 * .27 * .9 is below 3e-8, so that all columns are 0 and the first is as large.
        spec = Opera(
            beams=1, threshold=2, scale=0.27, weight=0.0, max_new_tokens=16, variant=variant
        )
        search(model, spec, frozenset())
        assert (len(model.restarts) > 1) is rewound


def test_later_tokens_are_punished_for_over_trust() -> None:
    def logits(tokens: Tensor) -> Tensor:
        row = torch.full((WORDS,), -20.0)
        row[7], row[8] = 3.0, 2.0
        return row.repeat(len(tokens), 1)

    def rows(tokens: Tensor) -> Tensor:
        own = torch.full((len(tokens), PROMPT + tokens.shape[1]), 0.02)
        own[tokens[:, -1] == 7, PROMPT] = 0.2  # token 7 leans on the first one
        return own

    spec = Opera(beams=1, candidates=2, max_new_tokens=14)
    unpunished = Opera(beams=1, candidates=2, weight=0.0, max_new_tokens=14)
    assert search(Scripted(logits, rows), unpunished, frozenset()) == [7] * 14
    # 1e-7 (50 * .2)^n: 1e3 at the tenth token, but the first ten are not looked at.
    assert search(Scripted(logits, rows), spec, frozenset()) == [7] * 10 + [8] * 4
