"""Let a student answer a manifest's questions: in batches, resumable, shared among processes."""

import hashlib
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..pipeline.manifest import IMAGE_PLACEHOLDER, Record, read_manifest
from ..runtime.parts import Part
from ..trainer.data.batch import Batch, Sample
from ..trainer.data.dataset import Conversations
from ..trainer.data.loader import micro_batches
from ..trainer.student import llava_of
from ..trainer.students.spec import StudentSpec
from .decoders import Spec, decode
from .decoders.limits import check_fit, lacks_room
from .decoders.settings import Opera, Pai
from .prediction_log import (
    AnswerLog,
    Joined,
    begin_part,
    finish_part,
    image_digest,
    join_parts,
    part_identity,
    part_path,
    refuse_other_parts,
)
from .predictions import Answer, gold, refuse_no_folder
from .source import Source

Progress = Callable[[int, int], None]
"""Called with (records done, records in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """How generation ended.

    Attributes:
        out: the file that was written.
        records: in the manifest, or in the part.
        reused: answered by an earlier run.
        answered: answered now.
        unreadable: (record id, reason) of records without an answer: an image cannot be read, or
            the question leaves no room for an answer.
        joined: state of all parts; None without parts.
    """

    out: Path
    records: int
    reused: int
    answered: int
    unreadable: tuple[tuple[str, str], ...]
    joined: Joined | None = None


def generate(
    source: Source,
    manifest: Path,
    images: Path,
    out: Path,
    spec: Spec,
    *,
    seed: int = 0,
    part: Part | None = None,
    batch_size: int = 8,
    workers: int = 0,
    progress: Progress | None = None,
) -> Answered:
    """Answer the first question of every record; answers already in `out` are kept.

    A record is left out, and named in `Answered.unreadable`, if it cannot be read, or if its
    prompt and `max_new_tokens` together need more positions than the student has.

    Args:
        source: what answers.
        manifest: questions; a reference answer is copied when there is one.
        images: folder of the images.
        out: predictions file.
        spec: decoder and its settings.
        seed: of decoders that draw tokens or noise; 0 in the lines of others.
        part: answer every N-th record, into a file of its own beside `out`; the process that
            finds all parts finished joins them into `out`.
        batch_size: questions at a time; OPERA answers them one by one whatever it is.
        workers: processes that decode images.
        progress: called with (records done, records in all).

    Raises:
        ValueError: of the part that is wrong: manifest, student, adapter, decoder, predictions.
    """
    refuse_no_folder(images)
    records = read_manifest(manifest)
    student = source.spec()
    check_fit(spec, student)
    # OPERA rewinds each answer by itself, so a batch would only take memory.
    together = 1 if isinstance(spec, Opera) else batch_size
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    answerer = _Answerer(source, student, images, spec, seed, together, device)
    identity = {
        **source.identity(device),
        **spec.identity(seed),
        "manifest": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "images": image_digest(records, images),
    }
    if part is None:
        with AnswerLog.open(out, identity) as log:
            return answerer.answer(records, log, workers, progress)
    refuse_other_parts(out, part.count, identity)
    own = records[part.index - 1 :: part.count]
    with AnswerLog.open(part_path(out, part), part_identity(identity, part)) as log:
        if any(record.id not in log.done for record in own):
            begin_part(out, part)
        done = answerer.answer(own, log, workers, progress)
    finish_part(out, part, done.unreadable)
    joined = join_parts(out, part.count, identity, [record.id for record in records])
    return replace(done, joined=joined)


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
        student: description of the model's folder.
        batch: the records' first questions, padded on the left, on any device.
        records: B of them; skipped ones get an answer too, which means nothing.
        spec: decoder and its settings.
        seed: of decoders that draw tokens or noise; 0 in the answers of others.
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


@dataclass(frozen=True, slots=True)
class FittingQuestions(Dataset[Sample]):
    """Samples by number; picklable, so that each worker process may hold its own.

    Attributes:
        samples: the questions.
        spec: decoder and its settings.
    """

    samples: Conversations
    spec: Spec

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        if sample.encoded is None:
            return sample
        tokens = len(sample.encoded.input_ids)
        reason = lacks_room(tokens, self.spec, self.samples.student.positions)
        return sample if reason is None else Sample(sample.id, skipped=reason)


@dataclass(frozen=True, slots=True)
class _Answerer:
    """A student, loaded when a record has no answer yet, and its decoder."""

    source: Source
    student: StudentSpec
    images: Path
    spec: Spec
    seed: int
    batch_size: int
    device: torch.device

    def answer(
        self,
        records: Sequence[Record],
        log: AnswerLog,
        workers: int,
        progress: Progress | None,
    ) -> Answered:
        """Answer the records that the log does not have."""
        open_records = [record for record in records if record.id not in log.done]
        reused = len(records) - len(open_records)
        unreadable: list[tuple[str, str]] = []
        answered = 0
        if open_records:
            model = llava_of(self.source.load(self.device))
            for own, batch in self._batches(open_records, workers):
                skipped = dict(batch.skipped)
                unreadable += batch.skipped
                for answer in answer_batch(model, self.student, batch, own, self.spec, self.seed):
                    if answer.id not in skipped:
                        log.append(answer)
                        answered += 1
                if progress is not None:
                    progress(reused + answered + len(unreadable), len(records))
        return Answered(
            out=log.path,
            records=len(records),
            reused=reused,
            answered=answered,
            unreadable=tuple(unreadable),
        )

    def _batches(
        self, records: Sequence[Record], workers: int
    ) -> Iterator[tuple[list[Record], Batch]]:
        samples = Conversations(
            records, self.images, self.student, 0, None, ask=True, alpha=self.source.alpha
        )
        fitting = FittingQuestions(samples, self.spec)
        numbers = range(len(records))
        order = [list(numbers[k : k + self.batch_size]) for k in numbers[:: self.batch_size]]
        pad = self.student.processor.tokenizer.pad_token_id or 0
        with closing(micro_batches(fitting, order, pad, workers, left=True)) as batches:
            for rows, batch in zip(order, batches, strict=True):
                yield [records[row] for row in rows], batch


def _bare_questions(
    tokenizer: Any, records: Sequence[Record], skipped: Container[str], device: torch.device
) -> dict[str, Tensor]:
    """Return the questions by themselves, without template and image, padded on the left."""
    texts = [r.conversations[0].text.replace(IMAGE_PLACEHOLDER, "").strip() for r in records]
    # A single token for skipped ones, as in the batch: theirs may be too long for the student.
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
