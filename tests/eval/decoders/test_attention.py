"""Attention that is read or changed beside the model's own kernel."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medalign.eval.decoders.damro import class_row
from medalign.eval.decoders.last_row import last_rows
from medalign.eval.decoders.pai import boosted


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


def test_damro_reads_the_class_token_as_the_tower_attends(
    bench: Any, eager: Callable[[Any, str], Any]
) -> None:
    tower = bench.model.model.vision_tower
    block = tower.encoder.layers[-1].self_attn
    seen: list[Tensor] = []
    keep = block.register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with torch.no_grad(), eager(bench.model, "vision_config"):
        maps = tower(bench.pixels, output_attentions=True).attentions
    keep.remove()
    with torch.no_grad():
        found = class_row(block, seen[0], split_heads=True)
        whole = class_row(block, seen[0], split_heads=False)
    assert torch.allclose(found, maps[-1].mean(1)[:, 0, 1:], atol=1e-5)
    assert not torch.allclose(found, whole, atol=1e-3)


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
        raised = boosted(scores, prompt.visual, 0.5)
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
