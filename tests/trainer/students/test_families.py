"""The models of every family: what an eager one attends to, what is rotated, generated, trained."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from medalign.eval.decoders import DecodingError, decode
from medalign.eval.decoders.settings import Beam, Greedy
from medalign.eval.generate import FittingQuestions
from medalign.trainer.data.batch import Batch, collate
from medalign.trainer.data.dataset import Conversations
from medalign.trainer.objective import Objective, Share
from medalign.trainer.recipe.sections import LossSection
from medalign.trainer.student import (
    checkpoint_activations,
    llava_of,
    load_base,
    load_student,
    save_adapter,
)
from medalign.trainer.students.families import FAMILIES as KNOWN
from medalign.trainer.students.families import family_of
from medalign.trainer.students.probe import Tap, attach

FAMILIES = ("llava", "gemma3", "qwen2_5_vl")
Folder = Callable[[str], Path]


def inputs_of(model: Any, batch: Batch) -> dict[str, Any]:
    given = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "pixel_values": batch.pixel_values,
        **family_of(model).inputs(model.config, batch.input_ids, batch.grids),
    }
    return {name: value for name, value in given.items() if value is not None}


CASES = [
    *[(family, 2, [0, 1, 2, 3, 4], False) for family in FAMILIES],
    *[(family, 3, [0, 1, 2, 3, 4], False) for family in FAMILIES[1:]],  # not a sliding one
    *[(family, 2, [4, 2, 3], True) for family in FAMILIES[1:]],
    *[(family, 2, [1], False) for family in FAMILIES[1:]],
]


@pytest.mark.parametrize(("family", "layer", "picked", "checkpointing"), CASES)
def test_the_probe_equals_eager_attention_with_gradients(
    family: str,
    layer: int,
    picked: Sequence[int],
    checkpointing: bool,
    samples: Callable[..., Conversations],
    family_folder: Folder,
    spread: Callable[[Any], Any],
) -> None:
    made = samples(family)
    batch = collate([made[k] for k in picked], 0)
    assert batch.teacher is not None
    seen = batch.teacher.look
    results = {}
    for kind in ("eager", "sdpa"):
        found = KNOWN[family]
        model = found.model_class.from_pretrained(
            family_folder(family), attn_implementation=kind, local_files_only=True
        )
        attach(model, layer, probe=kind == "sdpa")
        torch.manual_seed(0)
        lora = LoraConfig(
            r=4,
            target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj",
            modules_to_save=["visual_rotation", found.projector_name],
        )
        peft = spread(get_peft_model(model, lora)).train()
        if checkpointing and kind == "sdpa":
            checkpoint_activations(model)
        tap = Tap(batch.input_ids == model.config.image_token_id, seen)
        out = peft(
            **inputs_of(model, batch), use_cache=False, tap=tap, output_attentions=kind == "eager"
        )
        if kind == "eager":
            maps = out.attentions[layer].mean(1)
            rows = [maps[o][r] for o, r in zip(seen.owner, seen.rows, strict=True)]
            attention = torch.stack(
                [
                    row[ok].mean(0)[cols]
                    for row, ok, cols in zip(rows, seen.rows_ok, seen.cols, strict=True)
                ]
            )
            if seen.cols_ok is not None:
                attention = torch.where(seen.cols_ok, attention, 0.0)
        else:
            assert tap.attention is not None
            attention = tap.attention
        assert tap.states is not None
        weights = torch.linspace(1, 2, attention.numel()).view_as(attention)
        loss: Any = (attention * weights).sum() + tap.states.square().mean()
        loss.backward()
        grads = {n: p.grad for n, p in peft.named_parameters() if p.grad is not None}
        results[kind] = attention.detach(), out.logits.detach(), grads
    (eager, logits_a, grads_a), (probed, logits_b, grads_b) = results["eager"], results["sdpa"]
    assert (eager - probed).abs().max() < 1e-5
    assert eager.max() > 2 * eager[eager > 0].min()  # peaked: an average would not do
    keep = batch.attention_mask.bool()
    assert (logits_a[keep] - logits_b[keep]).abs().max() < 1e-3 * logits_a.abs().max()
    assert grads_a.keys() == grads_b.keys()
    for part in ("lora_A", "visual_rotation", found.projector_name):
        assert any(part in name for name in grads_a)
    for name, grad in grads_a.items():
        scale = max(1.0, float(grad.abs().max()))
        assert (grad - grads_b[name]).abs().max() / scale < 1e-4, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rotation_acts_on_visual_tokens_alone_and_zero_changes_no_bit(
    family: str, samples: Callable[..., Conversations], family_folder: Folder
) -> None:
    made = samples(family)
    batch = collate([made[k] for k in (2, 4)], 0)
    model = load_base(family_folder(family), torch.float32)
    given = inputs_of(model, batch)
    block = model.model.language_model.layers[2]
    seen: list[torch.Tensor] = []
    block.input_layernorm.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        before = model(**given).logits
        attach(model, 2)
        assert torch.equal(model(**given).logits, before)
        generator = torch.Generator().manual_seed(0)
        w = 0.1 * torch.randn(block.visual_rotation.weight.shape, generator=generator)
        block.visual_rotation.weight.copy_(w)
        model(**given)
    visual = batch.input_ids == model.config.image_token_id
    grids = made[0].grids + made[2].grids
    assert visual.sum() == sum(grid.size for grid in made[2].grids) > 0, grids
    plain, rotated = seen[0], seen[2]
    assert torch.equal(rotated[~visual], plain[~visual])
    wanted = plain[visual] @ (torch.eye(len(w)) + w).T  # Eq. 1
    assert torch.allclose(rotated[visual], wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(rotated[visual], plain[visual], rtol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_cache_equals_generation_without(
    family: str,
    samples: Callable[..., Conversations],
    family_folder: Folder,
    adapted: Callable[[Path], Any],
) -> None:
    made = samples(family, ask=True)
    model = llava_of(adapted(family_folder(family)).eval())
    everything = [made[k] for k in range(5)]
    whole = collate(everything, 0, left=True)
    options: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    cached, plain = (
        torch.stack(model.generate(**inputs_of(model, whole), use_cache=keep, **options).logits)
        for keep in (True, False)
    )
    assert torch.allclose(cached, plain, rtol=1e-3, atol=1e-3)
    # Alone, unpadded: nothing of the padding or of the neighbours is seen.
    for k, sample in enumerate(everything):
        alone = collate([sample], 0, left=True)
        logits = model.generate(**inputs_of(model, alone), **options).logits
        assert torch.allclose(torch.stack(logits)[:, 0], cached[:, k], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_question_longer_than_the_student_is_left_out_and_refused(
    family: str, samples: Callable[..., Conversations], family_folder: Folder
) -> None:
    made = samples(family, ask=True)
    model = load_base(family_folder(family), torch.float32)
    text = model.config.text_config
    assert made.student.positions == text.max_position_embeddings
    everything = [made[k] for k in range(5)]
    lengths = [len(one.encoded.input_ids) for one in everything if one.encoded is not None]
    spec = Greedy(max_new_tokens=3)
    text.max_position_embeddings = max(lengths) + 2  # one too few
    made.student = replace(made.student, positions=max(lengths) + 2)
    fitting = FittingQuestions(made, spec)
    kept = [fitting[k] for k in range(5)]
    longest = lengths.index(max(lengths))
    assert [k for k, one in enumerate(kept) if one.skipped] == [longest]
    assert f"its prompt has {max(lengths)} tokens, images included" in str(kept[longest].skipped)
    whole, fit = (collate(each, 0, left=True) for each in (everything, kept))
    with pytest.raises(DecodingError, match=f"prompt '{whole.ids[longest]}'"):
        decode(model, inputs_of(model, whole), spec, ids=whole.ids)
    assert decode(model, inputs_of(model, fit), spec, ids=fit.ids).shape[1] <= 3


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_keep_to_their_own_images(
    family: str,
    samples: Callable[..., Conversations],
    family_folder: Folder,
    adapted: Callable[[Path], Any],
) -> None:
    made = samples(family, ask=True)
    model = llava_of(adapted(family_folder(family)).eval())
    beam = Beam(beams=2, max_new_tokens=4)
    everything = [made[k] for k in (1, 2, 4)]
    whole = collate(everything, 0, left=True)
    together = decode(model, inputs_of(model, whole), beam)
    for sample, tokens in zip(everything, together, strict=True):
        alone = collate([sample], 0, left=True)
        wanted = decode(model, inputs_of(model, alone), beam)[0]
        assert torch.equal(tokens[: len(wanted)], wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_step_trains_lora_the_rotation_and_the_projector_and_nothing_else(
    family: str,
    samples: Callable[..., Conversations],
    family_folder: Folder,
    tmp_path: Path,
    adapted: Callable[[Path], Any],
) -> None:
    made = samples(family)
    model = adapted(family_folder(family)).train()
    linear = {
        name
        for name, module in llava_of(model).model.language_model.named_modules()
        if isinstance(module, nn.Linear) and "lora" not in name and "base_layer" not in name
    }
    assert not linear  # every linear layer of the language model is a LoRA layer now
    batch = collate([made[k] for k in range(5)], 0)
    share = Share.of(batch.answer_tokens, batch.teacher_images, 1)
    total, _ = Objective(model, LossSection(layer=2, alpha=1.0, beta=0.5))(batch, share)
    total.backward()
    projector = {
        "llava": "multi_modal_projector",
        "gemma3": "multi_modal_projector",
        "qwen2_5_vl": "merger",
    }[family]
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert any("visual_rotation" in n for n in trained)
    assert any(projector in n for n in trained)
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        assert ("lora_" in name and "language_model.layers" in name) or "modules_to_save" in name
    assert all(p.grad is None for n, p in model.named_parameters() if n not in trained)
    save_adapter(model, trained, tmp_path, {"recipe": {}})
    again = load_student(load_base(family_folder(family), torch.float32), tmp_path)
    with torch.no_grad():
        wanted = llava_of(model.eval())(**inputs_of(llava_of(model), batch)).logits
        assert torch.equal(llava_of(again)(**inputs_of(llava_of(again), batch)).logits, wanted)
