"""The second stream: what it is fed, that its cache changes nothing, that it says its own."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medalign.eval.decoders import SPECS, decode, make_spec
from medalign.eval.decoders.avisc import hidden_tokens
from medalign.eval.decoders.damro import shown_patches
from medalign.eval.decoders.prompts import Embedded, Prompt, embed
from medalign.eval.decoders.settings import Avisc, DecodingError, Greedy
from medalign.eval.decoders.streams import ContrastStream, positions
from medalign.trainer.students.probe import Tap


@pytest.mark.parametrize("name", list(SPECS))
def test_images_that_are_not_those_of_the_prompts_are_refused(bench: Any, name: str) -> None:
    spec = make_spec(name, None, {"max_new_tokens": 1})
    two, text = bench.inputs(0, 1), bench.inputs(3)
    for inputs, message in (
        ({**two, "pixel_values": two["pixel_values"][:1]}, r"\[16, 16\] image tokens for 1 images"),
        ({**two, "pixel_values": None}, r"\[16, 16\] image tokens for 0 images of 16"),
        ({**text, "pixel_values": bench.pixels[:1]}, r"\[0\] image tokens for 1 images of 16"),
    ):
        with pytest.raises(DecodingError, match=message):
            decode(bench.model, inputs, spec)


@dataclass
class Step:
    """One step of a second stream: its prompt, what it was asked, what it said."""

    prompt: Embedded
    begins: int
    ids: Tensor
    logits: Tensor


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Steps of every second stream, as they happen."""
    seen: list[Step] = []
    begin, step = ContrastStream.__init__, ContrastStream.step
    made: dict[int, tuple[Embedded, int]] = {}

    def watch_begin(self: ContrastStream, model: Any, prompt: Embedded, begins: int) -> None:
        begin(self, model, prompt, begins)
        made[id(self)] = (prompt, begins)

    def watch_step(self: ContrastStream, ids: Tensor) -> Tensor:
        logits: Tensor = step(self, ids)
        seen.append(Step(*made[id(self)], ids.clone(), logits))
        return logits

    monkeypatch.setattr(ContrastStream, "__init__", watch_begin)
    monkeypatch.setattr(ContrastStream, "step", watch_step)
    return seen


STREAMS: list[tuple[str, dict[str, Any]]] = [
    ("vcd", {}),
    ("avisc", {}),
    ("avisc", {"scheme": "ones"}),
    ("avisc", {"scheme": "noise"}),
    ("m3id", {}),
    ("m3id", {"variant": "reference"}),
    ("damro", {}),
    ("damro", {"mode": "drop", "layer": -2, "split_heads": False}),
    ("pai", {}),
    ("pai", {"first_token": False}),
]


def in_one_go(model: Any, step: Step) -> Tensor:
    """Logits [B, V] of a second stream computed without any cache."""
    new = step.ids[:, step.begins :]
    grown = (0, new.shape[1])
    embeds = torch.cat([step.prompt.embeds, model.get_input_embeddings()(new)], dim=1)
    mask = F.pad(step.prompt.mask, grown, value=True)
    with torch.no_grad():
        out = model(
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            position_ids=positions(mask),
            use_cache=False,
            tap=Tap(F.pad(step.prompt.visual, grown)),
        )
    logits: Tensor = out.logits[:, -1]
    return logits


@pytest.mark.parametrize(("name", "settings"), STREAMS)
def test_a_cached_stream_equals_one_computed_in_one_go(
    bench: Any, watched: list[Step], name: str, settings: dict[str, Any]
) -> None:
    spec = make_spec(name, None, {"max_new_tokens": 6, **settings})
    inputs = bench.inputs(0, 1, 2, 3)
    tokens = decode(bench.model, inputs, spec)
    assert len(watched) == tokens.shape[1] == 6
    for count, step in enumerate(watched):
        # It has seen exactly the tokens that were chosen so far.
        assert torch.equal(step.ids[:, step.begins :], tokens[:, :count])
        assert torch.allclose(step.logits, in_one_go(bench.model, step), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "settings"), STREAMS)
def test_a_stream_says_something_else_than_the_model(
    bench: Any, watched: list[Step], name: str, settings: dict[str, Any]
) -> None:
    spec = make_spec(name, None, {"max_new_tokens": 3, **settings})
    inputs = bench.inputs(0, 1, 2)
    decode(bench.model, inputs, spec)
    with torch.no_grad():
        own = bench.model(**inputs).logits[:, -1]
    assert (watched[0].logits - own).abs().amax(1).min() > 1e-2


def test_a_later_noise_step_leads_further_away(bench: Any, watched: list[Step]) -> None:
    inputs, away = bench.inputs(0, 1, 2), []
    with torch.no_grad():
        own = bench.model(**inputs).logits[:, -1]
    for step in (0, 999):
        spec = make_spec("vcd", None, {"noise_step": step, "max_new_tokens": 1})
        decode(bench.model, inputs, spec)
        away.append(float((watched[0].logits - own).abs().max()))
        watched.clear()
    assert 0 < 10 * away[0] < away[1]


@pytest.mark.parametrize(("name", "settings"), [("vcd", {}), ("avisc", {"scheme": "noise"})])
def test_noise_in_a_stream_is_that_of_seed_and_record(
    bench: Any, watched: list[Step], name: str, settings: dict[str, Any]
) -> None:
    spec = make_spec(name, None, {"max_new_tokens": 1, **settings})
    for seed, record in ((3, "a"), (3, "a"), (4, "a"), (3, "b")):
        decode(bench.model, bench.inputs(0), spec, seed, ids=[record])
    first, *others = (step.logits for step in watched)
    assert [torch.equal(first, other) for other in others] == [True, False, False]
    # Behind padding, and beside a longer prompt, a record has the same noise.
    decode(bench.model, bench.inputs(2), spec, 3, ids=["a"])
    decode(bench.model, bench.inputs(1, 2), spec, 3, ids=["b", "a"])
    alone, together = watched[-2].logits[0], watched[-1].logits[1]
    assert torch.allclose(alone, together, atol=1e-4)


@pytest.mark.parametrize("name", ["vcd", "damro"])
def test_the_reference_variants_that_contrast_nothing_have_no_stream(
    bench: Any, watched: list[Step], name: str
) -> None:
    decode(bench.model, bench.inputs(0), make_spec(name, None, {"variant": "reference"}))
    assert not watched


def test_a_stream_that_breaks_down_contrasts_nothing(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ContrastStream.step

    def broken(self: ContrastStream, ids: Tensor) -> Tensor:
        logits: Tensor = step(self, ids).clone()
        logits[0, 5] = float("nan")
        return logits

    spec = make_spec("vcd", None, {"alpha": 4.0, "temperature": 0.0, "max_new_tokens": 6})
    whole = decode(bench.model, bench.inputs(0, 1), spec)
    monkeypatch.setattr(ContrastStream, "step", broken)
    found = decode(bench.model, bench.inputs(0, 1), spec)
    greedy = decode(bench.model, bench.inputs(0, 1), Greedy(max_new_tokens=6))
    assert torch.equal(found[0], greedy[0])
    assert torch.equal(found[1], whole[1])


def test_a_prompt_without_image_keeps_what_stands_around_it(bench: Any) -> None:
    call = bench.call(0, 1, 3)
    text = embed(bench.model, call.prompt, None).without_image()
    table = bench.model.get_input_embeddings()
    image = bench.model.config.image_token_id
    for k, row in enumerate((0, 1, 3)):
        kept = torch.tensor([token for token in bench.rows[row] if token != image])
        assert torch.equal(text.embeds[k, text.mask[k]], table(kept))
        assert not text.visual[k].any()
    assert text.mask[:, -1].all()


def test_the_bare_question_is_pais_reference_prompt(bench: Any, watched: list[Step]) -> None:
    spec = make_spec("pai", None, {"variant": "reference", "max_new_tokens": 2})
    inputs = bench.inputs(0, 1)
    with pytest.raises(DecodingError, match="question_ids"):
        decode(bench.model, inputs, spec)
    question = torch.tensor([[0, 0, 70, 71], [1, 72, 73, 74]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    decode(bench.model, {**inputs, "question_ids": question, "question_mask": mask}, spec)
    prompt = watched[-1].prompt
    assert torch.equal(prompt.embeds, bench.model.get_input_embeddings()(question))
    assert torch.equal(prompt.mask, mask.bool())


def test_avisc_hides_all_but_the_blind_tokens_and_nothing_else(
    bench: Any, watched: list[Step]
) -> None:
    decode(bench.model, bench.inputs(0, 1, 2, 3), make_spec("avisc", None, {"max_new_tokens": 1}))
    prompt = watched[0].prompt
    zero = (prompt.embeds == 0).all(-1)
    for k, visual in enumerate(prompt.visual[:3]):
        assert 0 < int((zero & prompt.mask)[k].sum()) < int(visual.sum())
    assert not (zero & prompt.mask & ~prompt.visual).any()
    assert not (zero & prompt.mask)[3].any()
    spec = Avisc(lambda_=float("inf"))
    everything = hidden_tokens(torch.rand(6, 4, prompt.mask.shape[1]), prompt, spec)
    assert torch.equal(everything, prompt.visual)


def test_avisc_reads_attention_while_the_prompt_is_read_and_no_longer(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = bench.model.model.language_model.layers
    reading: list[bool] = []
    step = ContrastStream.step

    def look(self: ContrastStream, ids: Tensor) -> Tensor:
        reading.append(any(hasattr(block.self_attn, "medalign_last_row") for block in blocks))
        logits: Tensor = step(self, ids)
        return logits

    monkeypatch.setattr(ContrastStream, "step", look)
    decode(bench.model, bench.inputs(0), make_spec("avisc", None, {"max_new_tokens": 2}))
    assert reading == [False, False]


@pytest.mark.parametrize("mode", ["zero", "drop"])
def test_damro_shows_the_chosen_patches_bit_for_bit(
    bench: Any, watched: list[Step], mode: str
) -> None:
    inputs = bench.inputs(0, 1, 3)
    spec = make_spec("damro", None, {"max_new_tokens": 1, "top_tokens": 3, "mode": mode})
    decode(bench.model, inputs, spec)
    with torch.no_grad():
        features = torch.stack(
            list(bench.model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output)
        )
    clean = embed(bench.model, bench.call(0, 1, 3).prompt, features)
    prompt = watched[0].prompt
    dropped = torch.tensor([13, 13, 0]) if mode == "drop" else 0
    assert torch.equal(prompt.mask.sum(1), clean.mask.sum(1) - dropped)
    for k in range(2):
        shown = prompt.embeds[k, prompt.visual[k]]
        shown = shown[(shown != 0).any(-1)]
        assert len(shown) == 3
        for one in shown:
            assert (clean.embeds[k, clean.visual[k]] == one).all(-1).any()
    text, clean_text = prompt.mask & ~prompt.visual, clean.mask & ~clean.visual
    assert torch.equal(prompt.embeds[text], clean.embeds[clean_text])


def test_dropped_patches_leave_the_others_in_order_of_attention() -> None:
    visual = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1, 0]]).bool()
    prompt = Embedded(torch.zeros(2, 8, 1), torch.ones_like(visual), visual)
    top = torch.tensor([[2, 0], [1, 2], [2, 1]])  # two images in the first prompt, one below
    shown, order = shown_patches(prompt, top, [[0, 1], [2]])
    assert shown.int().tolist() == [[0, 1, 0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1, 0]]
    first = [k for k in order[0].argsort().tolist() if shown[0, k]]
    assert first == [3, 1, 5, 6]
    assert [k for k in order[1].argsort().tolist() if shown[1, k]] == [6, 5]


def test_prompts_padded_on_the_right_are_refused(bench: Any) -> None:
    inputs = bench.inputs(0, 3)
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    with pytest.raises(DecodingError, match="padded on the left"):
        decode(bench.model, inputs, make_spec("greedy"))
    with pytest.raises(DecodingError, match="input_ids"):
        Prompt.of({}, 3)


def test_the_image_is_found_wherever_it_stands(bench: Any) -> None:
    call = bench.call(0, 1, 2, 3)
    starts = [int(row.nonzero()[0, 0]) for row in call.prompt.visual[:3]]
    lengths = [len(bench.rows[k]) for k in range(3)]
    longest = max(lengths)
    wanted = [longest - n + before for n, before in zip(lengths, (3, 2, 1), strict=True)]
    assert starts == wanted
    assert call.prompt.visual.sum(1).tolist() == [16, 16, 16, 0]
    assert [call.images_of(row) for row in range(4)] == [[0], [1], [2], []]
    features = torch.zeros(2, 16, 32)
    with pytest.raises(DecodingError, match="48 image tokens, the images give 32"):
        embed(bench.model, call.prompt, features)
