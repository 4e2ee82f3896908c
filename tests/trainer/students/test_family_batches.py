"""What every family makes of conversations: tokens, pixels, teacher rows, and their losses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from medalign.pipeline.manifest import Record
from medalign.pipeline.pixels import read_image
from medalign.teacher_cache.gram.codec import decode, encode
from medalign.teacher_cache.reader import TeacherCache, TeacherRow
from medalign.trainer.data.batch import collate
from medalign.trainer.data.dataset import Conversations
from medalign.trainer.data.teacher import Resampled
from medalign.trainer.objective import Objective, Share, look
from medalign.trainer.recipe.sections import LossSection
from medalign.trainer.student import llava_of, load_base
from medalign.trainer.students.families import FAMILIES, family_of
from medalign.trainer.students.spec import read_config

PILLOW: dict[str, Any] = {
    "llava": LlavaImageProcessorPil,
    "gemma3": Gemma3ImageProcessorPil,
    "qwen2_5_vl": Qwen2VLImageProcessorPil,
}
Folder = Callable[[str], Path]


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


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_neighbours_change_no_loss(
    family: str,
    samples: Callable[..., Conversations],
    family_folder: Folder,
    adapted: Callable[[Path], Any],
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


def test_a_cache_of_similarities_gives_the_losses_of_a_cache_of_features(
    samples: Callable[..., Conversations],
    family_folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
    adapted: Callable[[Path], Any],
) -> None:
    made = samples("qwen2_5_vl")
    model = llava_of(adapted(family_folder("qwen2_5_vl")).eval())
    objective = Objective(model, LossSection(layer=2, alpha=1.0, beta=0.5))
    features = collate([made[k] for k in range(5)], 0)
    read = TeacherCache.__getitem__

    def read_code(cache: TeacherCache, number: int) -> TeacherRow:
        row, grid = read(cache, number), cache.card.grid
        blob, _ = encode(row.features.astype(np.float32), grid, grid, row.valid, 1e-4)
        return TeacherRow(row.attention, row.valid, row.source_size, code=decode(blob, grid, grid))

    monkeypatch.setattr(TeacherCache, "__getitem__", read_code)
    codes = collate([made[k] for k in range(5)], 0).to("cpu", torch.float32)
    assert codes.teacher is not None
    assert isinstance(codes.teacher.spatial, Resampled)
    with torch.no_grad():
        plain, coded = (objective(b, Share.of(1, 1, 1))[1] for b in (features, codes))
    assert torch.allclose(plain, coded, rtol=1e-3)


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
    family: str,
    samples: Callable[..., Conversations],
    family_folder: Folder,
    adapted: Callable[[Path], Any],
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
