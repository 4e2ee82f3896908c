"""The probe against the attention maps of an eager model, which only the tests ever build."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlavaForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from medalign.trainer.student import checkpoint_activations
from medalign.trainer.students.probe import Tap, attach
from medalign.trainer.students.question_attention import Look, question_attention

LAYER = 2


@pytest.fixture(scope="module")
def llava(students: Callable[..., Path]) -> Callable[..., Any]:
    """Load a student whose attention is peaked, so that a wrong head order shows."""

    def load(attention: str, text_model: str, key_heads: int) -> Any:
        load_model: Any = LlavaForConditionalGeneration.from_pretrained
        folder = students(text_model, key_heads=key_heads)
        model = load_model(folder, attn_implementation=attention, local_files_only=True)
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if "language_model" in name and "proj" in name:
                parameter.data.normal_(std=0.3, generator=generator)
        return model

    return load


def batch(images: list[int], padding: str, image_token: int, seed: int) -> dict[str, torch.Tensor]:
    """Rows of [text][16 image tokens][question][answer]..., `images[k]` of them in row k."""
    generator = torch.Generator().manual_seed(seed)

    def words(low: int, high: int) -> torch.Tensor:
        n = int(torch.randint(low, high + 1, (1,), generator=generator))
        return torch.randint(4, 60, (n,), generator=generator)

    rows, labels, questions = [], [], []
    for count in images:
        parts: list[torch.Tensor] = [words(1, 6)]
        spans: list[tuple[int, int]] = []
        for _ in range(count):
            parts.append(torch.full((16,), image_token))
            question = words(3, 8)
            begin = sum(map(len, parts))
            parts += [question, words(2, 6)]
            spans.append((begin, begin + len(question)))
        rows.append(torch.cat(parts))
        label = rows[-1].clone()
        label[label == image_token] = -100
        label[0] = -100  # under left padding a padding token would have to predict it
        labels.append(label)
        questions.append(spans)
    length = max(map(len, rows))
    if padding == "none":
        length = min(map(len, rows))
        rows, labels = [r[:length] for r in rows], [x[:length] for x in labels]
    offsets = [length - len(r) if padding == "left" else 0 for r in rows]

    def padded(values: list[torch.Tensor], fill: int) -> torch.Tensor:
        out = torch.full((len(values), length), fill)
        for k, value in enumerate(values):
            out[k, offsets[k] : offsets[k] + len(value)] = value
        return out

    ids = padded(rows, 0)
    spans_of = [
        (k, begin + offsets[k], end + offsets[k])
        for k, spans in enumerate(questions)
        for begin, end in spans
    ]
    return {
        "input_ids": ids,
        "attention_mask": padded([torch.ones_like(r) for r in rows], 0),
        "labels": padded(labels, -100),
        "pixel_values": torch.randn(sum(images), 3, 56, 56, generator=generator),
        "spans": torch.tensor(spans_of),
    }


def look_of(inputs: dict[str, torch.Tensor], image_token: int) -> Look:
    spans = inputs["spans"].tolist()
    longest = max(end - begin for _, begin, end in spans)
    rows = torch.zeros(len(spans), longest, dtype=torch.long)
    rows_ok = torch.zeros(len(spans), longest, dtype=torch.bool)
    cols, seen = [], [0] * len(inputs["input_ids"])
    for k, (owner, begin, end) in enumerate(spans):
        rows[k, : end - begin] = torch.arange(begin, end)
        rows_ok[k, : end - begin] = True
        visual = (inputs["input_ids"][owner] == image_token).nonzero().flatten()
        cols.append(visual[16 * seen[owner] : 16 * (seen[owner] + 1)])
        seen[owner] += 1
    return Look(
        owner=inputs["spans"][:, 0],
        cols=torch.stack(cols),
        rows=rows,
        rows_ok=rows_ok,
        keys_ok=inputs["attention_mask"].bool(),
    )


def eager_attention(attentions: Any, inputs: dict[str, torch.Tensor], look: Look) -> torch.Tensor:
    """Mean over heads and question rows of the whole map, at the image's columns."""
    maps = attentions[LAYER].mean(1)
    found = []
    for k, (owner, begin, end) in enumerate(inputs["spans"].tolist()):
        found.append(maps[owner, begin:end][:, look.cols[k]].mean(0))
    return torch.stack(found)


CASES = [
    *itertools.product(
        ["mistral", "qwen2", "llama"], [4, 2, 1], ["right", "left"], [[1], [1, 1, 1]], [False]
    ),
    *itertools.product(
        ["mistral", "qwen2"], [2], ["right", "left"], [[1, 1, 1], [2, 0, 1]], [True]
    ),
    ("mistral", 2, "right", [2, 1, 3], False),
    ("qwen2", 2, "left", [2, 0, 3], False),
    ("mistral", 2, "none", [1], False),
]


@pytest.mark.parametrize(("text", "key_heads", "padding", "images", "checkpointing"), CASES)
def test_the_probe_equals_eager_attention_with_gradients(
    llava: Callable[..., Any],
    text: str,
    key_heads: int,
    padding: str,
    images: list[int],
    checkpointing: bool,
) -> None:
    results = {}
    for kind in ("eager", "sdpa"):
        model = llava(kind, text, key_heads)
        attach(model, LAYER, probe=kind == "sdpa")
        language = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
        torch.manual_seed(0)  # of lora_A
        peft = get_peft_model(model, LoraConfig(r=4, target_modules=language, lora_dropout=0.0))
        model.model.language_model.layers[LAYER].visual_rotation.weight.requires_grad_(True)
        generator = torch.Generator().manual_seed(4)
        for name, parameter in peft.named_parameters():
            if "lora_B" in name or "visual_rotation" in name:
                parameter.data.normal_(std=0.05, generator=generator)
        peft.train()
        if checkpointing:
            checkpoint_activations(model)
        token = model.config.image_token_id
        inputs = batch(images, padding, token, seed=7)
        look = look_of(inputs, token)
        given = {k: v for k, v in inputs.items() if k != "spans"}
        tap = Tap(inputs["input_ids"] == token, look)
        out = peft(**given, use_cache=False, tap=tap, output_attentions=kind == "eager")
        if kind == "eager":
            attention = eager_attention(out.attentions, inputs, look)
        else:
            assert tap.attention is not None
            attention = tap.attention
        assert tap.states is not None
        weights = torch.linspace(1, 2, attention.numel()).view_as(attention)
        loss = out.loss + (attention * weights).sum() + tap.states.square().mean()
        loss.backward()
        grads = {n: p.grad for n, p in peft.named_parameters() if p.grad is not None}
        results[kind] = attention.detach(), out.logits.detach(), grads
    (eager, logits_a, grads_a), (probed, logits_b, grads_b) = results["eager"], results["sdpa"]
    assert (eager - probed).abs().max() < 1e-5
    assert eager.max() > 2 * eager.min()  # peaked: an average would not do
    keep = inputs["attention_mask"].bool()
    assert (logits_a[keep] - logits_b[keep]).abs().max() < 1e-4
    assert grads_a.keys() == grads_b.keys()
    assert any("visual_rotation" in name for name in grads_a)
    for name, grad in grads_a.items():
        scale = max(1.0, float(grad.abs().max()))
        assert (grad - grads_b[name]).abs().max() / scale < 1e-4, name


def test_no_layer_runs_eager_and_only_one_has_the_probe(llava: Callable[..., Any]) -> None:
    model = llava("sdpa", "mistral", 2)
    attach(model, LAYER)
    kinds = [
        layer.self_attn.config._attn_implementation for layer in model.model.language_model.layers
    ]
    assert kinds == ["sdpa", "sdpa", "medalign_probe", "sdpa"]


def test_bfloat16_scores_are_not_rounded_before_the_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    query = (12 * torch.randn(1, 4, 24, 32, generator=generator)).bfloat16()
    key = (12 * torch.randn(1, 2, 24, 32, generator=generator)).bfloat16()
    look = Look(
        owner=torch.tensor([0]),
        cols=torch.arange(2, 18)[None],
        rows=torch.arange(18, 24)[None],
        rows_ok=torch.ones(1, 6, dtype=torch.bool),
        keys_ok=torch.ones(1, 24, dtype=torch.bool),
    )
    got = question_attention(query, key, None, 0.2, look)
    # by hand, in float64: repeated keys, causal mask, mean over heads and rows
    q, k = query.double()[0], key.double()[0].repeat_interleave(2, dim=0)
    scores = 0.2 * q @ k.mT
    scores = scores.masked_fill(torch.ones(24, 24).triu(1).bool(), -torch.inf)
    assert scores[:, 18:][scores[:, 18:].isfinite()].abs().max() > 100
    wanted = scores.softmax(-1).mean(0)[18:, 2:18].mean(0)
    assert torch.allclose(got[0].double(), wanted, rtol=1e-3, atol=1e-6)


def test_a_window_hides_what_lies_before_it_when_no_mask_says_so() -> None:
    # Flash attention gets the window as a number, not as a mask.
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 12, 8, generator=generator) for _ in range(2))
    look = Look(
        owner=torch.tensor([0]),
        cols=torch.arange(1, 8)[None],
        rows=torch.tensor([[9]]),
        rows_ok=torch.ones(1, 1, dtype=torch.bool),
        keys_ok=torch.ones(1, 12, dtype=torch.bool),
    )
    got = question_attention(query, key, None, 0.5, look, window=4)
    # by hand: position 9 sees 6, 7, 8 and itself
    wanted = (0.5 * query[0, :, 9:10] @ key[0, :, 6:10].mT).softmax(-1).mean(0)[0]
    assert torch.equal(got[0, :5], torch.zeros(5))
    assert torch.allclose(got[0, 5:], wanted[:2], atol=1e-6)


def test_the_layers_own_attention_sees_its_own_implementation_name(
    llava: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Flash attention looks its kernel up by the name in the module's config.
    model = llava("sdpa", "mistral", 2)
    attach(model, LAYER)
    seen = []

    def spy(module: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(module.config._attn_implementation)
        return sdpa_attention_forward(module, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", spy)
    inputs = batch([1], "right", model.config.image_token_id, seed=5)
    given = {k: inputs[k] for k in ("input_ids", "attention_mask", "pixel_values")}
    model(**given)
    assert len(seen) >= 4
    assert set(seen) == {"sdpa"}
    assert model.model.language_model.layers[LAYER].self_attn.config._attn_implementation != "sdpa"


def test_the_rotation_acts_on_visual_tokens_of_the_input_of_its_layer_only(
    llava: Callable[..., Any],
) -> None:
    model = llava("sdpa", "mistral", 2)
    token = model.config.image_token_id
    inputs = batch([1, 1], "right", token, seed=5)
    given = {k: inputs[k] for k in ("input_ids", "attention_mask", "pixel_values")}
    plain = model(**given, output_hidden_states=True).hidden_states[LAYER]
    attach(model, LAYER)
    block = model.model.language_model.layers[LAYER]
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(block.visual_rotation.weight.shape, generator=generator)
    block.visual_rotation.weight.data.copy_(w)
    seen: list[torch.Tensor] = []
    block.input_layernorm.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    model(**given)
    visual = inputs["input_ids"] == token
    wanted = plain.clone()
    wanted[visual] = plain[visual] @ (torch.eye(len(w)) + w).T  # Eq. 1
    assert torch.allclose(seen[0], wanted, atol=1e-4)


def test_a_rotation_of_zero_changes_no_bit(llava: Callable[..., Any]) -> None:
    model = llava("sdpa", "qwen2", 2)
    inputs = batch([1, 1], "left", model.config.image_token_id, seed=5)
    given = {k: inputs[k] for k in ("input_ids", "attention_mask", "pixel_values")}
    before = model(**given).logits
    attach(model, LAYER)
    assert torch.equal(model(**given).logits, before)
