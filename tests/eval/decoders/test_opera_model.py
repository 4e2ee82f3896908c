"""OPERA on a student: as beam search, as a plain recomputation, at its cost."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from medalign.eval.decoders import decode, make_spec
from medalign.eval.decoders.opera import BeamModel, search
from medalign.eval.decoders.settings import Beam, Opera

TOKENS = 13
SCALE = 100.0


class Plain:
    """Reads prompt and answer anew for every question it is asked."""

    def __init__(self, bench: Any, row: int) -> None:
        self._bench, self._row = bench, row
        self.prompt = len(bench.rows[row])
        self.image = [
            k
            for k, token in enumerate(bench.rows[row])
            if token == bench.model.config.image_token_id
        ]

    def read(self, tokens: list[int]) -> tuple[Tensor, list[float]]:
        """Logits [V] after these tokens; the last one's attention, largest of heads, sum 1."""
        inputs = self._bench.inputs(self._row)
        given = {
            "input_ids": torch.cat([inputs["input_ids"], torch.tensor([tokens]).long()], dim=1),
            "pixel_values": inputs["pixel_values"],
        }
        with torch.no_grad():
            out = self._bench.model(**given, use_cache=False, output_attentions=True)
        row = out.attentions[-1][0, :, -1].double().amax(0)
        return out.logits[0, -1].double(), (row / row.sum()).tolist()


def penalty(model: Plain, attention: list[list[float]]) -> float:
    """Of a candidate, whose own row is the last one."""
    if len(attention) <= 10:
        return -sum(attention[-1][k] for k in model.image)
    columns = range(len(attention))
    return max(
        1e-7 * math.prod(SCALE * row[model.prompt + j] for i, row in enumerate(attention) if i >= j)
        for j in columns
    )


def plain_search(model: Plain, beams: int, candidates: int) -> list[int]:
    """Tokens of the best hypothesis, when nothing ends and nothing is rewound."""
    running: list[tuple[float, list[int], list[list[float]]]] = [(0.0, [], [])]
    for _ in range(TOKENS):
        following = []
        for score, tokens, rows in running:
            logits, _ = model.read(tokens)
            values, found = logits.topk(candidates)
            seen = [[*rows, model.read([*tokens, token])[1]] for token in found.tolist()]
            corrected = torch.stack(
                [value - penalty(model, rows) for value, rows in zip(values, seen, strict=True)]
            )
            logs = corrected.log_softmax(0).tolist()
            for token, own, log in zip(found.tolist(), seen, logs, strict=True):
                following.append((score + log, [*tokens, token], own))
        running = sorted(following, key=lambda one: -one[0])[:beams]
    return running[0][1]


def test_it_equals_a_recomputation_from_eager_attention(
    bench: Any, eager: Callable[[Any, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = 2  # whose answer holds no image token, which could not be read anew
    monkeypatch.setattr(bench.model.generation_config, "eos_token_id", None)
    opera = Opera(beams=2, candidates=2, scale=SCALE, threshold=10**6, max_new_tokens=TOKENS)
    beam = Beam(beams=2, max_new_tokens=TOKENS)
    found = decode(bench.model, bench.inputs(row), opera)[0].tolist()
    with eager(bench.model, "text_config"):
        assert found == plain_search(Plain(bench, row), beams=2, candidates=2)
    assert found != decode(bench.model, bench.inputs(row), beam)[0].tolist()


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
