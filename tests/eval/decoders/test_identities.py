"""Settings with which a decoder must give another one's answer, on both language models."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from medalign.eval.decoders import DecodingError, decode, m3id, make_spec, vcd
from medalign.eval.decoders import attention as last_row
from medalign.eval.decoders.call import cache_keyword
from medalign.eval.decoders.pai import boosted

TOKENS = 8

SAME_AS_GREEDY: list[tuple[str, dict[str, Any]]] = [
    ("beam", {"beams": 1}),
    ("nucleus", {"temperature": 0.0}),
    ("nucleus", {"top_p": 1e-9}),
    ("nucleus", {"top_k": 1, "top_p": 1.0}),
    ("vcd", {"alpha": 0.0}),
    ("vcd", {"variant": "reference"}),
    ("dola", {"relative_top": 1.0}),
    ("dola", {"relative_top": 1.0, "layers": "high", "variant": "reference"}),
    ("opera", {"weight": 0.0, "beams": 1, "candidates": 2}),
    ("avisc", {"alpha": 0.0}),
    ("avisc", {"lambda": float("-inf")}),
    ("m3id", {"lambda": 0.0}),
    ("m3id", {"lambda": 0.0, "variant": "reference"}),
    ("damro", {"alpha": 0.0}),
    ("damro", {"top_tokens": 16}),
    ("damro", {"variant": "reference"}),
    ("pai", {"alpha": 0.0, "gamma": 1.0}),
]


def answers(bench: Any, name: str, *picked: int, **settings: Any) -> list[list[int]]:
    if name in ("vcd", "avisc", "m3id", "damro"):
        settings = {"temperature": 0.0, **settings}
    spec = make_spec(name, None, {"max_new_tokens": TOKENS, **settings})
    rows = picked or (0, 1, 2, 3)
    ids = [f"r{k}" for k in rows]
    found: list[list[int]] = decode(bench.model, bench.inputs(*rows), spec, ids=ids).tolist()
    return found


def test_the_students_are_not_degenerate(bench: Any) -> None:
    """An identity would hold for anything if one token were always the most likely."""
    greedy = answers(bench, "greedy")
    assert all(len(set(row)) >= 5 for row in greedy)
    assert len({tuple(row) for row in greedy}) == 4


@pytest.mark.parametrize(("name", "settings"), SAME_AS_GREEDY)
def test_it_is_greedy(bench: Any, name: str, settings: dict[str, Any]) -> None:
    assert answers(bench, name, **settings) == answers(bench, "greedy")


STRONG: list[tuple[str, dict[str, Any]]] = [
    ("beam", {}),
    ("vcd", {"alpha": 4.0, "beta": 0.001}),
    ("dola", {}),
    ("dola", {"layers": "high"}),
    ("opera", {}),
    ("avisc", {"alpha": 4.0, "beta": 0.001}),
    ("m3id", {"lambda": 0.5, "gate": 1.0}),
    ("m3id", {"lambda": 0.5, "variant": "reference"}),
    ("damro", {"alpha": 4.0, "beta": 0.001}),
    ("damro", {"alpha": 4.0, "beta": 0.001, "mode": "drop", "layer": -2, "split_heads": False}),
    ("pai", {"alpha": 2.0, "gamma": 1.0}),
    ("pai", {"alpha": 0.0, "gamma": 3.0, "beta": 0.001}),
]


@pytest.mark.parametrize(("name", "settings"), STRONG)
def test_it_is_not_greedy_when_it_is_strong(
    bench: Any, name: str, settings: dict[str, Any]
) -> None:
    with_images = (0, 1, 2)
    found = answers(bench, name, *with_images, **settings)
    assert found != answers(bench, "greedy", *with_images)


def test_vcd_with_a_clean_image_is_greedy(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second stream is the whole model, rotation included: strong contrast changes nothing."""
    monkeypatch.setattr(vcd, "noised_images", lambda pixels, *_: pixels)
    found = answers(bench, "vcd", alpha=4.0)
    assert found == answers(bench, "greedy")


def test_without_contrast_vcd_draws_from_the_plausible_tokens(bench: Any) -> None:
    drawn = {"temperature": 1.0}
    uncontrasted = answers(bench, "vcd", alpha=0.0, beta=0.2, **drawn)
    assert uncontrasted == answers(bench, "vcd", variant="reference", beta=0.2, **drawn)
    assert uncontrasted == answers(bench, "damro", variant="reference", beta=0.2, **drawn)
    everything = answers(bench, "vcd", alpha=0.0, beta=0.0, **drawn)
    assert everything == answers(bench, "nucleus", top_p=1.0)
    assert everything != uncontrasted


def test_a_prompt_without_image_is_left_alone_by_what_contrasts_images(bench: Any) -> None:
    greedy = answers(bench, "greedy", 3)
    for name in ("vcd", "avisc", "m3id", "damro", "pai"):
        assert answers(bench, name, 3) == greedy, name


@pytest.mark.parametrize("variant", ["published", "reference"])
def test_dola_equals_a_recomputation_from_all_hidden_states(bench: Any, variant: str) -> None:
    """Plain float64, no cache, no hooks; the layers as `output_hidden_states` gives them."""
    inputs = bench.inputs(0)
    ids, wanted = inputs["input_ids"], []
    head = bench.model.lm_head.weight.detach().double()
    for _ in range(TOKENS):
        with torch.no_grad():
            out = bench.model(
                input_ids=ids, pixel_values=inputs["pixel_values"], output_hidden_states=True
            )
        states = [state[0, -1].double() for state in out.hidden_states]
        p = (head @ states[6]).softmax(-1)
        logits = [head @ states[k] for k in (0, 2)]
        distances = []
        for q in (one.softmax(-1) for one in logits):
            m = (p + q) / 2
            pair = [(p, m), (q, m)] if variant == "published" else [(m, p), (m, q)]
            distances.append(sum(float((x * (x / y).log()).sum()) for x, y in pair))
        q = logits[distances.index(max(distances))].softmax(-1)
        score = p.log() - q.log()
        score[p < 0.1 * p.max()] = float("-inf")
        wanted.append(int(score.argmax()))
        ids = torch.cat([ids, torch.tensor([[wanted[-1]]])], dim=1)
    assert answers(bench, "dola", 0, variant=variant) == [wanted]


def test_a_repetition_penalty_keeps_dola_from_repeating(bench: Any) -> None:
    free = {"relative_top": 0.0}
    plain = answers(bench, "dola", **free)
    assert any(len(set(row)) < TOKENS for row in plain)
    for k, row in enumerate(answers(bench, "dola", repetition_penalty=50.0, **free)):
        assert len(set(row)) == TOKENS
        assert not set(row) & set(bench.rows[k])


def test_a_repetition_penalty_leaves_padding_alone(bench: Any) -> None:
    """Padding may be a token that an answer has: its row is as if it were alone."""
    penalty = {"repetition_penalty": 50.0, "relative_top": 0.0}
    (alone,) = answers(bench, "dola", 2, **penalty)
    inputs = bench.inputs(1, 2)
    inputs["input_ids"][inputs["attention_mask"] == 0] = alone[0]
    spec = make_spec("dola", None, {"max_new_tokens": TOKENS, **penalty})
    assert decode(bench.model, inputs, spec)[1].tolist() == alone


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vcd", {"alpha": 1e38}),
        ("avisc", {"alpha": 1e38}),
        ("m3id", {"lambda": 1e3, "gate": 1.0}),
        ("pai", {"alpha": 1e38}),
    ],
)
def test_scores_that_are_no_numbers_are_refused(
    bench: Any, name: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(DecodingError, match=f"{name}: the scores of the next token are no numb"):
        answers(bench, name, 0, **settings)


@pytest.mark.parametrize("name", ["greedy", "beam", "nucleus", "dola", "opera"])
def test_damaged_weights_give_no_answer(bench: Any, name: str) -> None:
    head = bench.model.lm_head.weight
    whole = head.detach().clone()
    try:
        with torch.no_grad():
            head.fill_(float("nan"))
        with pytest.raises(DecodingError, match="or the student's weights are damaged"):
            answers(bench, name, 0)
    finally:
        with torch.no_grad():
            head.copy_(whole)


@pytest.mark.parametrize(
    ("variant", "name"), [("published", "gated_contrast"), ("reference", "cut_contrast")]
)
def test_m3id_counts_the_tokens_of_the_answer_from_one(
    bench: Any, monkeypatch: pytest.MonkeyPatch, variant: str, name: str
) -> None:
    counted: list[int] = []
    contrast = getattr(m3id, name)

    def count(logits: Any, other: Any, token: int, *settings: float) -> Any:
        counted.append(token)
        return contrast(logits, other, token, *settings)

    monkeypatch.setattr(m3id, name, count)
    answers(bench, "m3id", 0, 1, variant=variant)
    assert counted == list(range(1, TOKENS + 1))


def test_pai_can_leave_the_first_token_alone(bench: Any) -> None:
    strong = {"alpha": 3.0, "gamma": 1.0, "first_layer": 0}
    greedy = answers(bench, "greedy", 0, 1, 2)
    later = answers(bench, "pai", 0, 1, 2, first_token=False, **strong)
    assert [row[0] for row in later] == [row[0] for row in greedy]
    assert later != greedy
    at_once = answers(bench, "pai", 0, 1, 2, **strong)
    assert [row[0] for row in at_once] != [row[0] for row in greedy]


@pytest.mark.parametrize("first_token", [True, False])
def test_pai_finds_the_image_where_a_window_has_dropped_old_keys(
    benches: Any, monkeypatch: pytest.MonkeyPatch, first_token: bool
) -> None:
    """As with a cache that keeps every key, whose columns are those of the prompt."""
    bench = benches("mistral")
    monkeypatch.setattr(bench.model.config.text_config, "sliding_window", 20)
    strong = {"alpha": 2.0, "gamma": 1.0, "first_layer": 0, "first_token": first_token}
    rows = (0, 2)
    for row, found in zip(rows, answers(bench, "pai", *rows, **strong), strict=True):
        call = bench.call(row)

        def look(_layer: int, scores: Tensor, visual: Tensor = call.prompt.visual) -> Tensor:
            grown = scores.shape[-1] - visual.shape[1]
            alpha = 2.0 if first_token or grown else 0.0
            raised: Tensor = boosted(scores, F.pad(visual, (0, grown)), alpha)
            return raised

        cache, given = DynamicCache(), dict(bench.inputs(row))
        with torch.no_grad(), last_row.last_rows(bench.model, range(6), look):
            for token in found:
                out = bench.model(**given, **{cache_keyword(bench.model): cache}, use_cache=True)
                assert token == int(out.logits[0, -1].argmax())
                given = {"input_ids": torch.tensor([[token]])}
        assert cache.get_seq_length() > 20


@pytest.mark.parametrize(("first_token", "passes"), [(True, TOKENS), (False, TOKENS - 1)])
def test_pai_computes_no_scores_that_it_does_not_change(
    bench: Any, monkeypatch: pytest.MonkeyPatch, first_token: bool, passes: int
) -> None:
    computed: list[int] = []
    compute = last_row.last_scores

    def count(query: Any, *others: Any) -> Any:
        computed.append(query.shape[0])
        return compute(query, *others)

    monkeypatch.setattr(last_row, "last_scores", count)
    answers(bench, "pai", 0, first_token=first_token)
    assert len(computed) == 4 * passes  # layers 2 to 5 of the stream with the image
