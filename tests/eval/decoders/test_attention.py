"""Attention that is read or changed beside the model's own kernel."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, CLIPVisionConfig
from transformers.masking_utils import eager_mask
from transformers.models.clip.modeling_clip import CLIPAttention

from medalign.eval.decoders import decode, make_spec
from medalign.eval.decoders.attention import last_rows, last_scores
from medalign.eval.decoders.damro import class_attention, class_row
from medalign.eval.decoders.pai import boosted
from medalign.eval.decoders.settings import Damro, DecodingError


def test_avisc_reads_what_eager_attention_would_say(
    bench: Any, eager: Callable[[Any, str], Any]
) -> None:
    inputs = bench.inputs(0, 1, 3)
    rows: dict[int, Tensor] = {}

    def read(layer: int, scores: Tensor) -> None:
        rows[layer] = scores.softmax(-1)

    with torch.no_grad(), last_rows(bench.model, range(6), read):
        bench.model(**inputs)
    with torch.no_grad(), eager(bench.model, "text_config"):
        maps = bench.model(**inputs, output_attentions=True).attentions
    for layer in range(6):
        assert torch.allclose(rows[layer], maps[layer][:, :, -1], atol=1e-5)


def test_masks_of_every_kernel_hide_the_same_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 3, 8, generator=generator)
    key = torch.randn(2, 2, 6, 8, generator=generator)
    repeated = key.repeat_interleave(2, dim=1)
    plain = torch.einsum("bhd,bhsd->bhs", query[:, :, -1], repeated) * 0.5
    assert torch.allclose(last_scores(query, key, None, 0.5, None), plain, atol=1e-5)
    seen = torch.tensor([[False, False, True, True, True, True], [True] * 6])
    wanted = plain.masked_fill(~seen[:, None], float("-inf"))
    square = seen[:, None, None, :].expand(-1, 1, 3, -1)
    added = torch.zeros(2, 1, 3, 6).masked_fill(~square, torch.finfo(torch.float32).min)
    for mask in (seen.long(), square, added):
        assert torch.allclose(last_scores(query, key, mask, 0.5, None), wanted, atol=1e-5)
    near = last_scores(query, key, None, 0.5, 4)
    assert near[:, :, :2].isneginf().all()
    assert torch.allclose(near[:, :, 2:], plain[:, :, 2:], atol=1e-5)
    assert torch.allclose(last_scores(query, key, None, 0.5, 6), plain, atol=1e-5)


@pytest.mark.parametrize("layer", [-1, -2])
def test_damro_reads_the_class_token_as_the_tower_attends(
    bench: Any, eager: Callable[[Any, str], Any], layer: int
) -> None:
    model = bench.model
    with torch.no_grad(), eager(model, "vision_config"):
        maps = model.model.vision_tower(bench.pixels, output_attentions=True).attentions
    found = {}
    for split in (True, False):
        spec = Damro(layer=layer, split_heads=split)
        with torch.no_grad(), class_attention(model, spec) as rows:
            model.get_image_features(pixel_values=bench.pixels)
        (found[split],) = rows
    assert torch.allclose(found[True], maps[layer].mean(1)[:, 0, 1:], atol=1e-5)
    assert not torch.allclose(found[True], found[False], atol=1e-3)


def test_attention_over_the_whole_width_is_one_softmax() -> None:
    block = CLIPAttention(CLIPVisionConfig(hidden_size=8, num_attention_heads=2))
    states = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = block.q_proj(states[0, 0]) @ block.k_proj(states[0]).T / math.sqrt(8)
        found = class_row(block, states, split_heads=False)
    assert torch.allclose(found[0], scores.softmax(-1)[1:])


def test_a_tower_without_such_a_layer_or_a_class_token_is_refused(bench: Any) -> None:
    with (
        pytest.raises(DecodingError, match="layer is -3, the vision tower has 2 layers"),
        class_attention(bench.model, Damro(layer=-3)),
    ):
        pass
    config = SimpleNamespace(
        vision_feature_select_strategy="full", vision_config=SimpleNamespace(model_type="siglip")
    )
    other = SimpleNamespace(config=config, model=bench.model.model)
    with (
        pytest.raises(DecodingError, match="needs a vision tower with a class token, siglip"),
        class_attention(other, Damro()),
    ):
        pass


def test_boosted_attention_at_zero_changes_nothing(bench: Any) -> None:
    inputs = bench.inputs(0, 1, 3)
    prompt = bench.call(0, 1, 3).prompt
    with torch.no_grad():
        own = bench.model(**inputs).logits
        with last_rows(bench.model, range(6), lambda _k, s: boosted(s, prompt.visual, 0.0)):
            same = bench.model(**inputs).logits
    keep = prompt.mask
    assert torch.allclose(own[keep], same[keep], atol=1e-4)


def test_boosted_attention_changes_the_last_row_of_its_layers_alone(bench: Any) -> None:
    inputs = bench.inputs(0, 1)
    prompt = bench.call(0, 1).prompt
    mass: dict[str, list[Tensor]] = {"own": [], "boosted": []}

    def look(layer: int, scores: Tensor) -> Tensor | None:
        raised: Tensor = boosted(scores, prompt.visual, 0.5)
        if layer == 3:
            for name, row in (("own", scores), ("boosted", raised)):
                mass[name].append((row.softmax(-1) * prompt.visual[:, None]).sum(-1))
        return raised

    with torch.no_grad():
        plain = bench.model(**inputs, output_hidden_states=True)
        with last_rows(bench.model, [3, 4, 5], look):
            changed = bench.model(**inputs, output_hidden_states=True)
    for layer in range(4):  # inputs of layers 0 to 3
        assert torch.equal(plain.hidden_states[layer], changed.hidden_states[layer])
    keep = prompt.mask[:, :-1]
    assert torch.equal(plain.logits[:, :-1][keep], changed.logits[:, :-1][keep])
    assert (plain.logits[:, -1] - changed.logits[:, -1]).abs().max() > 1e-2
    (own,), (raised,) = mass["own"], mass["boosted"]
    higher = own.mean(1) < raised.mean(1)
    assert higher.all()


def test_pai_equals_a_recomputation_without_cache(bench: Any) -> None:
    """Every score of every layer in plain eager attention, all tokens read anew each time."""
    alpha, layers, row = 1.5, range(1, 5), 2
    prompt = bench.call(row).prompt
    start = prompt.length - 1

    def plain(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **given: Any
    ) -> tuple[Tensor, Tensor]:
        times = query.shape[1] // key.shape[1]
        key, value = (one.repeat_interleave(times, dim=1) for one in (key, value))
        scores = query @ key.mT * given["scaling"] + mask
        if module.layer_idx in layers:
            # The prompt's last row chooses the first token; each token after it the next one.
            raised = scores + alpha * scores.abs()
            raised[:, :, :start] = scores[:, :, :start]
            image = torch.nn.functional.pad(prompt.visual[0], (0, scores.shape[-1] - start - 1))
            scores = torch.where(image, raised, scores)
        weights = scores.softmax(-1)
        return (weights @ value).transpose(1, 2), weights

    AttentionInterface.register("plain_boost", plain)
    AttentionMaskInterface.register("plain_boost", eager_mask)
    settings = {"alpha": alpha, "gamma": 1, "first_layer": 1, "last_layer": 4}
    spec = make_spec("pai", None, {"max_new_tokens": 6, **settings})
    # Behind padding, too.
    found = decode(bench.model, bench.inputs(0, row), spec)[1].tolist()
    inputs = bench.inputs(row)
    bench.model.set_attn_implementation({"text_config": "plain_boost"})
    try:
        for token in found:
            with torch.no_grad():
                logits = bench.model(**inputs, use_cache=False).logits[0, -1]
            assert int(logits.argmax()) == token
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    finally:
        bench.model.set_attn_implementation({"text_config": "sdpa"})
    greedy = decode(
        bench.model, bench.inputs(row), make_spec("greedy", None, {"max_new_tokens": 6})
    )
    assert found != greedy[0].tolist()
