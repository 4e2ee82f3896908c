from collections.abc import Callable
from typing import Any

import pytest
import torch

from medalign.eval.decoders import call as finite
from medalign.eval.decoders import decode, make_spec
from medalign.eval.decoders.settings import Beam, Greedy, Nucleus
from medalign.trainer.machine import quiet_libraries
from medalign.trainer.student import load_base
from medalign.trainer.students.tiny import DEMO_TEXTS, TinyStudent, make_student


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    quiet_libraries()
    folder = tmp_path_factory.mktemp("student")
    make_student(folder, DEMO_TEXTS, TinyStudent(image_size=56, width=32, layers=2))
    return load_base(folder, torch.float32)


Prompts = Callable[[list[list[int]]], dict[str, torch.Tensor | None]]


@pytest.fixture
def prompts() -> Prompts:
    """Left-padded batch of text prompts."""

    def make(rows: list[list[int]]) -> dict[str, torch.Tensor | None]:
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": None}

    return make


@pytest.mark.parametrize("name", ["greedy", "beam", "nucleus"])
def test_an_answer_does_not_depend_on_its_batch(model: Any, prompts: Prompts, name: Any) -> None:
    rows = [[10, 20, 30], [11, 21, 31, 41, 51, 61], [12, 22]]
    spec = make_spec(name, None, {"max_new_tokens": 6})
    together = decode(model, prompts(rows), spec, 3, ids=["a", "b", "c"])
    for k, record in enumerate("abc"):
        alone = decode(model, prompts([rows[k]]), spec, 3, ids=[record])[0]
        # A batch is as long as its longest answer; what follows an end token is padding.
        length = min(len(alone), together.shape[1])
        assert torch.equal(together[k][:length], alone[:length])


def test_nucleus_depends_on_the_seed_and_on_the_record(model: Any, prompts: Prompts) -> None:
    def sample(seed: int, record: str) -> list[int]:
        spec = Nucleus(max_new_tokens=8)
        tokens: list[int] = decode(model, prompts([[10, 20]]), spec, seed, ids=[record])[0].tolist()
        return tokens

    assert sample(0, "a") == sample(0, "a")
    assert sample(0, "a") != sample(1, "a")
    assert sample(0, "a") != sample(0, "b")


def test_nucleus_draws_from_the_truncated_distribution(model: Any, prompts: Prompts) -> None:
    n, inputs = 4000, prompts([[10, 20, 30]])
    given = {k: v for k, v in inputs.items() if v is not None}
    with torch.no_grad():
        probability = model(**given).logits[0, -1].div(0.7).softmax(-1)
    ordered, tokens = probability.sort(descending=True)
    inside = ordered.cumsum(0) - ordered < 0.5  # the smallest set that reaches one half
    wanted = torch.zeros_like(probability)
    wanted[tokens[inside]] = ordered[inside] / ordered[inside].sum()
    spec = Nucleus(max_new_tokens=1, top_p=0.5, temperature=0.7)
    batch = prompts([[10, 20, 30]] * 500)
    drawn = torch.cat(
        [
            decode(model, batch, spec, ids=[f"{begin}/{k}" for k in range(500)])[:, 0]
            for begin in range(0, n, 500)
        ]
    )
    found = torch.bincount(drawn, minlength=len(wanted)).double() / n
    assert found[wanted == 0].sum() == 0
    likely = wanted > 0.01
    assert likely.sum() > 3
    error = (found - wanted)[likely].abs() / (wanted[likely] * (1 - wanted[likely]) / n).sqrt()
    assert error.max() < 4.5  # standard deviations


def test_temperature_top_k_and_top_p_come_in_this_order(
    model: Any, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[torch.Tensor] = []
    monkeypatch.setattr(finite, "refuse_no_numbers", lambda scores, _: kept.append(scores))
    spec = Nucleus(max_new_tokens=1, temperature=0.8, top_k=4, top_p=0.6)
    other_order = 0
    for first in range(8, 20):
        inputs = prompts([[first, 20, 30]])
        decode(model, inputs, spec)
        with torch.no_grad():
            logits = model(input_ids=inputs["input_ids"]).logits[0, -1]
        ordered, tokens = logits.div(0.8).softmax(-1).sort(descending=True)
        four = ordered[:4] / ordered[:4].sum()
        wanted = tokens[:4][four.cumsum(0) - four < 0.6]
        assert set(kept.pop()[0].isfinite().nonzero()[:, 0].tolist()) == set(wanted.tolist())
        other_order += len(wanted) != min(4, int((ordered.cumsum(0) - ordered < 0.6).sum()))
    assert other_order > 0


def test_beam_finds_an_answer_at_least_as_likely_as_greedy(model: Any, prompts: Prompts) -> None:
    def likelihood(answer: torch.Tensor, prompt: list[int]) -> float:
        ids = torch.cat([torch.tensor([prompt]), answer[None]], dim=1)
        with torch.no_grad():
            logs = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return float(logs.gather(1, answer[:, None]).sum())

    better = 0
    for first in range(8, 28):
        prompt = [first, 20, 30]
        greedy = decode(model, prompts([prompt]), Greedy(max_new_tokens=5))[0]
        beam = decode(model, prompts([prompt]), Beam(max_new_tokens=5))[0]
        if len(greedy) == len(beam) == 5:
            gap = likelihood(beam, prompt) - likelihood(greedy, prompt)
            better += gap > 1e-4
    assert better > 0


def test_the_checkpoints_own_settings_are_not_inherited(model: Any, prompts: Prompts) -> None:
    wanted = decode(model, prompts([[10, 20]]), Greedy(max_new_tokens=4))
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.no_repeat_ngram_size = 1
    try:
        got = decode(model, prompts([[10, 20]]), Greedy(max_new_tokens=4))
    finally:
        model.generation_config.repetition_penalty = None
        model.generation_config.no_repeat_ngram_size = None
    assert torch.equal(got, wanted)
