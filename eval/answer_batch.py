"""Let a loaded student answer one batch of questions by one decoder."""

from collections.abc import Container, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..pipeline.manifest import IMAGE_PLACEHOLDER, Record
from ..trainer.batch import Batch
from ..trainer.students.spec import StudentSpec
from .answers import Answer, gold
from .decoders import Spec, decode
from .decoders.specs import Pai


def answer_batch(
    model: Any,
    student: StudentSpec,
    batch: Batch,
    records: Sequence[Record],
    spec: Spec,
    seed: int,
) -> Iterator[Answer]:
    """Yield one answer per record, in their order.

    Args:
        model: the Hugging Face model, its PEFT wrapper taken off.
        student: what the model's folder says.
        batch: the records' first questions, padded on the left, wherever it lies.
        records: B of them; skipped ones get an answer too, which says nothing.
        spec: decoder and its settings.
        seed: of decoders that draw tokens or noise; answers of others say 0.
    """
    # Pixels stay float32: the decoder casts them, after it has added noise.
    moved = batch.to(model.device, torch.float32)
    inputs = {
        "input_ids": moved.input_ids,
        "attention_mask": moved.attention_mask,
        "pixel_values": moved.pixel_values,
        **student.family.inputs(model.config, moved.input_ids, moved.grids),
    }
    tokenizer = student.processor.tokenizer
    if isinstance(spec, Pai) and spec.variant == "reference":
        inputs |= _bare_questions(tokenizer, records, dict(batch.skipped), model.device)
    new = decode(model, inputs, spec, seed, ids=batch.ids).tolist()
    end = model.generation_config.eos_token_id
    ends = set(end) if isinstance(end, list) else {end}
    for record, tokens in zip(records, new, strict=True):
        length = next((k + 1 for k, token in enumerate(tokens) if token in ends), len(tokens))
        yield Answer(
            id=record.id,
            prompt=student.encoder.prompt_text(record),
            text=tokenizer.decode(tokens[:length], skip_special_tokens=True).strip(),
            answer=gold(record),
            decoder=spec.name,
            # Nothing else tells lines of one file apart: it may be continued with another seed.
            seed=seed if spec.seeded else 0,
            new_tokens=length,
            settings=spec.settings(),
        )


def _bare_questions(
    tokenizer: Any, records: Sequence[Record], skipped: Container[str], device: torch.device
) -> dict[str, Tensor]:
    """The questions by themselves, without template and image, padded on the left."""
    texts = [r.conversations[0].text.replace(IMAGE_PLACEHOLDER, "").strip() for r in records]
    # Of skipped ones a single token, as in the batch: theirs may be too long for the student.
    rows = [
        [0] if record.id in skipped else tokenizer(text)["input_ids"]
        for record, text in zip(records, texts, strict=True)
    ]
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for k, row in enumerate(rows):
        ids[k, longest - len(row) :] = torch.tensor(row)
        mask[k, longest - len(row) :] = 1
    return {"question_ids": ids.to(device), "question_mask": mask.to(device)}
