"""OPERA's search: as beam search, as its formulas say, and rewinding under scripted attention."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from medalign.eval.decoders import decode, make_spec
from medalign.eval.decoders.hypotheses import Beams, choose
from medalign.eval.decoders.opera import search
from medalign.eval.decoders.opera_model import BeamModel
from medalign.eval.decoders.specs import Beam, Opera

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


def test_nothing_is_rewound_without_dominance_or_before_the_tenth_token() -> None:
    for column, threshold in ((None, 2), (9, 2), (11, 40)):
        model = Scripted(by_last_token, leaning_on(column))
        spec = Opera(beams=2, threshold=threshold, weight=0.0, max_new_tokens=30)
        search(model, spec, frozenset())
        assert model.restarts == [0], (column, threshold)
    model = Scripted(by_last_token, leaning_on(10))
    search(model, Opera(beams=2, threshold=2, weight=0.0, max_new_tokens=30), frozenset())
    assert model.restarts[1] == 11


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
        return row

    # 3.0 + .1 against 2.8 + .4: the choice flips.
    for weight, wanted in ((0.0, 7), (1.0, 8)):
        spec = Opera(beams=1, candidates=2, weight=weight, max_new_tokens=1)
        assert search(Scripted(logits, rows), spec, frozenset()) == [wanted]


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


def test_a_beam_keeps_what_belongs_to_its_parent() -> None:
    beams = Beams(
        tokens=torch.tensor([[1, 2], [3, 4]]),
        scores=torch.tensor([-1.0, -2.0]),
        finished=(),
        trust=torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64),
    )
    scores = torch.full((2, 6), -9.0)
    scores[0, 3], scores[1, 5] = -3.0, -0.5
    after, parents, done = choose(beams, scores, frozenset(), 9)
    assert parents.tolist() == [1, 0]
    assert after.tokens.tolist() == [[3, 4, 5], [1, 2, 3]]
    assert after.scores.tolist() == [-2.5, -4.0]
    assert after.trust.tolist() == [[0.3, 0.4], [0.1, 0.2]]
    assert (after.finished, done) == ((), False)


def test_an_end_ranked_behind_the_beams_finishes_nothing() -> None:
    beams = Beams.begin(1, torch.device("cpu"))
    scores = torch.tensor([[-1.0, -2.0, -3.0, -4.0]])
    after, _, _ = choose(beams, scores, frozenset({1}), 9)
    assert (after.finished, after.tokens.tolist()) == ((), [[0]])
    after, _, _ = choose(beams, scores, frozenset({0}), 9)
    assert (after.finished, after.tokens.tolist()) == (((-1.0, (0,)),), [[1]])


def test_every_token_costs_one_pass_and_one_for_each_candidate(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    answers: list[int] = []

    def counted(model: BeamModel, spec: Opera, ends: frozenset[int]) -> list[int]:
        found: list[int] = search(model, spec, ends)
        passes.append(model.passes)
        answers.append(len(found))
        return found

    monkeypatch.setattr("medalign.eval.decoders.dispatch.search", counted)
    decode(bench.model, bench.inputs(0), Opera(max_new_tokens=4))
    assert passes == [answers[0] * (1 + 5)]


@pytest.mark.parametrize("ends", [[2, 17, 40, 113], list(range(100, 200))])
def test_without_penalty_and_with_every_candidate_it_is_beam_search(
    bench: Any, ends: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of attention weigh nothing here, so they need not be computed for each of V tokens."""

    def flat(self: BeamModel, tokens: Tensor) -> Tensor:
        length = self._cache.get_seq_length() + 1
        return torch.full((len(tokens), length), 1.0 / length)

    monkeypatch.setattr(BeamModel, "peek", flat)
    words = bench.model.config.text_config.vocab_size
    own = bench.model.generation_config.eos_token_id
    bench.model.generation_config.eos_token_id = list(ends)
    try:
        for beams in (2, 3):
            opera = Opera(
                beams=beams, weight=0.0, threshold=10**6, candidates=words, max_new_tokens=6
            )
            for picked in (0, 3):
                inputs = bench.inputs(picked)
                wanted = decode(bench.model, inputs, Beam(beams=beams, max_new_tokens=6))
                assert torch.equal(decode(bench.model, inputs, opera), wanted)
    finally:
        bench.model.generation_config.eos_token_id = own


def test_a_restart_from_tokens_equals_having_generated_them(bench: Any) -> None:
    call = bench.call(0)
    with (
        torch.no_grad(),
        BeamModel.reading(bench.model, call.prompt, call.pixels, call.prompt.visual[0]) as model,
    ):
        model.restart(torch.zeros(2, 0, dtype=torch.long))
        tokens = torch.tensor([[5, 6, 7], [8, 9, 10]])
        for step in range(3):
            logits, rows = model.step(tokens[:, step], torch.tensor([0, 1]))
            before = logits.clone()
            looked = model.peek(torch.tensor([50, 51]))
            assert rows.shape == (2, call.prompt.length + step + 1)
            assert looked.shape == (2, call.prompt.length + step + 2)
            assert torch.allclose(rows.sum(1), torch.ones(2))
        again = model.restart(tokens)
        assert torch.allclose(again, before, atol=1e-4)
        assert torch.equal(model.restart(tokens[:, :0])[0], model.restart(tokens[:, :0])[1])


def test_the_reference_counts_one_column_too_many_as_image(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns: dict[str, list[int]] = {}
    for variant in ("published", "reference"):

        def keep(
            model: BeamModel, _spec: Opera, _ends: frozenset[int], name: str = variant
        ) -> list[int]:
            columns[name] = model.visual.nonzero()[:, 0].tolist()
            return [1]

        monkeypatch.setattr("medalign.eval.decoders.dispatch.search", keep)
        decode(bench.model, bench.inputs(0), make_spec("opera", None, {"variant": variant}))
    assert columns["published"] == list(range(3, 19))
    assert columns["reference"] == list(range(3, 20))
