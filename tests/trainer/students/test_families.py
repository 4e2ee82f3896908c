"""Every family alike: what the processor gives, what an eager model attends to, what is trained."""

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from medalign.eval.decoding import Decoder
from medalign.pipeline.manifest import Record, read_manifest
from medalign.pipeline.pixels import read_image
from medalign.teacher_cache.reader import TeacherCache
from medalign.trainer.batch import Batch, collate
from medalign.trainer.data import Conversations
from medalign.trainer.objective import Objective, Share, look
from medalign.trainer.recipe import LoraSection, LossSection
from medalign.trainer.student import (
    add_adapter,
    checkpoint_activations,
    llava_of,
    load_base,
    load_student,
    save_adapter,
)
from medalign.trainer.students.families import FAMILIES as KNOWN
from medalign.trainer.students.families import family_of
from medalign.trainer.students.probe import Tap, attach
from medalign.trainer.students.spec import read_config, read_student

FAMILIES = ("llava", "gemma3", "qwen2_5_vl")
PILLOW: dict[str, Any] = {
    "llava": LlavaImageProcessorPil,
    "gemma3": Gemma3ImageProcessorPil,
    "qwen2_5_vl": Qwen2VLImageProcessorPil,
}
GEOMETRY = {"llava": "pad", "gemma3": "stretch", "qwen2_5_vl": "pad"}
Folder = Callable[[str], Path]
Make = Callable[..., tuple[Path, Path, Path]]


@pytest.fixture
def samples(conversations: Make, family_folder: Folder) -> Callable[..., Conversations]:
    """Conversations of every kind, with a teacher, as a family's student reads them."""

    def make(family: str, *, ask: bool = False) -> Conversations:
        manifest, images, store = conversations(geometry=GEOMETRY[family])
        spec = read_student(family_folder(family))
        cache = TeacherCache.open(store)
        return Conversations(read_manifest(manifest), images, spec, 512, cache, ask=ask)

    return make


def spread(model: Any) -> Any:
    """Weights of LoRA and W away from zero, by name, so that every gradient shows."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "visual_rotation" in name:
            own = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            parameter.data.normal_(std=0.05, generator=own)
    return model


def adapted(folder: Path, layer: int = 2) -> Any:
    torch.manual_seed(0)
    base = load_base(folder, torch.float32)
    lora = LoraSection(rank=4, dropout=0.0)
    return spread(add_adapter(base, layer, lora, rotation=True, projector=True))


def inputs_of(model: Any, batch: Batch) -> dict[str, Any]:
    given = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "pixel_values": batch.pixel_values,
        **family_of(model).inputs(model.config, batch.input_ids, batch.grids),
    }
    return {name: value for name, value in given.items() if value is not None}


def spoken(record: Record) -> list[dict[str, Any]]:
    """A record with its images in the text, as LLaVA's data has it."""
    roles = {"human": "user", "gpt": "assistant"}
    return [{"role": roles[turn.role], "content": turn.text} for turn in record.conversations]


def messages(record: Record) -> list[dict[str, Any]]:
    """A record as transformers' own users write it: parts, no line break behind an image."""
    roles = {"human": "user", "gpt": "assistant"}
    found = []
    for turn in record.conversations:
        parts: list[dict[str, str]] = []
        for k, piece in enumerate(turn.text.split("<image>")):
            parts += [{"type": "image"}] if k else []
            text = piece.removeprefix("\n") if k else piece
            parts += [{"type": "text", "text": text}] if text else []
        found.append({"role": roles[turn.role], "content": parts})
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_what_the_familys_own_processor_makes(
    family: str, samples: Callable[..., Conversations], family_folder: Folder
) -> None:
    made = samples(family)
    spec = made.student
    images = PILLOW[family].from_pretrained(family_folder(family))
    for k, record in enumerate(made.records):
        batch = collate([made[k]], 0)
        assert not batch.skipped, batch.skipped
        written = spoken(record) if family == "llava" else messages(record)
        text = spec.processor.apply_chat_template(written, tokenize=False)
        shown = [np.array(read_image(made.images / name).rgb) for name in record.images]
        wanted = spec.processor(text=text, images=[shown] if shown else None, return_tensors="pt")
        assert torch.equal(batch.input_ids, wanted["input_ids"]), record.id
        config = read_config(family_folder(family))
        model_inputs = spec.family.inputs(config, batch.input_ids, batch.grids)
        own = set(wanted) - {"input_ids", "attention_mask", "pixel_values"}
        assert set(model_inputs) == (own if shown else own & set(model_inputs))
        for name, value in model_inputs.items():
            assert torch.equal(value.long(), wanted[name].long()), (record.id, name)
        if shown:
            # transformers' torch and Pillow versions differ by a grey level; Pillow's is followed.
            pixels = images(shown, return_tensors="pt")["pixel_values"]
            assert batch.pixel_values is not None
            assert torch.equal(batch.pixel_values, pixels), record.id


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_ask_about_their_image_and_answers_alone_are_learnt(
    family: str, samples: Callable[..., Conversations]
) -> None:
    made = samples(family)
    decode = made.student.processor.tokenizer.decode
    asked = {
        "one image": ["Is this an X-ray?"],
        "two images in one turn": ["Which organ?", "Which organ?"],
        "images in two turns": ["Is this an X-ray?", "this one?"],
        "text after an image": ["Which organ is shown?"],
        "text alone": [],
    }
    for k, record in enumerate(made.records):
        sample = made[k]
        encoded = sample.encoded
        assert encoded is not None
        questions = [decode(encoded.input_ids[rows]) for rows in encoded.rows]
        assert len(questions) == len(asked[record.id]) == len(sample.grids)
        for question, words in zip(questions, asked[record.id], strict=True):
            assert words in question
            for other in ("image", "vision", "yes", "lungs"):
                assert other not in question
        assert [len(cols) for cols in encoded.cols] == [grid.size for grid in sample.grids]
        learnt = decode(encoded.input_ids[encoded.labels != -100], skip_special_tokens=True)
        answers = [turn.text for turn in record.conversations if turn.role == "gpt"]
        assert learnt.replace(" ", "") == "".join(answers).replace(" ", "")


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
    family: str, samples: Callable[..., Conversations], family_folder: Folder
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
def test_beams_keep_to_their_own_images(
    family: str, samples: Callable[..., Conversations], family_folder: Folder
) -> None:
    made = samples(family, ask=True)
    model = llava_of(adapted(family_folder(family)).eval())
    decoder = Decoder(name="beam", beams=2, max_new_tokens=4)
    everything = [made[k] for k in (1, 2, 4)]
    whole = collate(everything, 0, left=True)
    together = decoder.generate(model, inputs_of(model, whole), whole.ids)
    for sample, tokens in zip(everything, together, strict=True):
        alone = collate([sample], 0, left=True)
        wanted = decoder.generate(model, inputs_of(model, alone), alone.ids)[0]
        assert torch.equal(tokens[: len(wanted)], wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_step_trains_lora_the_rotation_and_the_projector_and_nothing_else(
    family: str, samples: Callable[..., Conversations], family_folder: Folder, tmp_path: Path
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


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_neighbours_change_no_loss(
    family: str, samples: Callable[..., Conversations], family_folder: Folder
) -> None:
    made = samples(family)
    model = llava_of(adapted(family_folder(family)).eval())
    objective = Objective(model, LossSection(layer=2, alpha=1.0, beta=0.5))
    share = Share.of(1, 1, 1)
    with torch.no_grad():
        together = objective(collate([made[k] for k in range(5)], 0), share)[1]
        alone = [objective(collate([made[k]], 0), share)[1] for k in range(5)]
    assert together.min() > 0
    assert torch.allclose(torch.stack(alone).sum(0), together, rtol=1e-4)


def test_the_grids_of_a_batch_differ_where_the_family_follows_the_image(
    samples: Callable[..., Conversations],
) -> None:
    # Otherwise the tests above would not pad anything.
    made = samples("qwen2_5_vl")
    batch = collate([made[k] for k in range(5)], 0)
    assert batch.teacher is not None
    assert batch.grids is not None
    assert len({tuple(grid) for grid in batch.grids.tolist()}) > 1
    assert len({grid.size for grid in made[1].grids}) == 2
    assert any(rows != cols for rows, cols in batch.grids.tolist())
    assert batch.teacher.look.cols_ok is not None
    sizes = batch.teacher.look.cols_ok.sum(1)
    assert torch.equal(batch.teacher.valid.sum(1), sizes)
    assert np.array_equal(sizes.numpy(), batch.grids.prod(1).numpy())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_images_gives_the_projector_a_gradient_of_zeros(
    family: str, samples: Callable[..., Conversations], family_folder: Folder
) -> None:
    batch = collate([samples(family)[4]], 0)
    assert batch.pixel_values is None
    model = adapted(family_folder(family)).train()
    objective = Objective(model, LossSection(layer=2, alpha=1.0, beta=0.5))
    total, parts = objective(batch, Share.of(batch.answer_tokens, 0, 1))
    total.backward()
    assert parts[0] > 0
    name = family_of(llava_of(model)).projector_name
    grads = [p.grad for n, p in model.named_parameters() if f"{name}.modules_to_save" in n]
    assert grads
    assert all(grad is not None and not grad.any() for grad in grads)


def test_a_text_only_batch_after_an_image_batch_keeps_nothing_of_it(
    samples: Callable[..., Conversations], family_folder: Folder
) -> None:
    # Qwen's model remembers how far its last images moved the positions of text.
    made = samples("qwen2_5_vl")
    text = collate([made[4]], 0)
    fresh = load_base(family_folder("qwen2_5_vl"), torch.float32)
    used = load_base(family_folder("qwen2_5_vl"), torch.float32)
    with torch.no_grad():
        wanted = look(fresh, text)[0]
        look(used, collate([made[1]], 0))
        assert torch.equal(look(used, text)[0], wanted)
