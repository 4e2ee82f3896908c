"""Let a student answer a manifest's questions, batched, resumable, and shared if need be."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pipeline.manifest import IMAGE_PLACEHOLDER, Record, read_manifest
from ..pipeline.parts import Part
from ..trainer.batch import Batch
from ..trainer.data import Conversations
from ..trainer.student import llava_of
from ..trainer.students.spec import StudentSpec
from ..trainer.workers import micro_batches
from .answer_log import AnswerLog
from .answer_parts import (
    Joined,
    begin_part,
    finish_part,
    join_parts,
    part_identity,
    part_path,
    refuse_other_parts,
)
from .answers import Answer, AnswersError, gold
from .decoders import Spec, decode
from .decoders.fit import check_fit
from .decoders.specs import Opera, Pai
from .source import Source

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """How generation ended.

    Attributes:
        out: the file that was written.
        records: that were to be answered.
        reused: answered by an earlier run.
        answered: answered now.
        unreadable: (record id, reason) of records that got no answer.
        joined: what became of all parts; None without parts.
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

    Args:
        source: what answers.
        manifest: questions; a reference answer is copied when there is one.
        images: folder of the images.
        out: predictions file.
        spec: decoder and its settings.
        seed: of decoders that draw.
        part: answer every N-th record, into a file of its own beside `out`; whoever finds all
            parts finished joins them into `out`.
        batch_size: questions at a time; OPERA answers them one by one whatever it is.
        workers: processes that decode images.
        progress: told how many records are done, and of how many.

    Raises:
        ValueError: of the part that is wrong: manifest, student, adapter, decoder, predictions.
    """
    if not images.is_dir():
        raise AnswersError(f"--images {images} is no folder")
    records = read_manifest(manifest)
    student = source.spec()
    check_fit(spec, student)
    together = 1 if isinstance(spec, Opera) else batch_size
    asker = _Asker(source, student, images, spec, seed, together)
    identity = _identity(source, spec, seed, manifest)
    if part is None:
        with AnswerLog.open(out, identity) as log:
            return asker.answer(records, log, workers, progress)
    refuse_other_parts(out, part.count, identity)
    own = records[part.index - 1 :: part.count]
    with AnswerLog.open(part_path(out, part), part_identity(identity, part)) as log:
        if any(record.id not in log.done for record in own):
            begin_part(out, part)
        done = asker.answer(own, log, workers, progress)
    finish_part(out, part, done.unreadable)
    joined = join_parts(out, part.count, identity, [record.id for record in records])
    return dataclasses.replace(done, joined=joined)


@dataclasses.dataclass(frozen=True, slots=True)
class _Asker:
    """A student, loaded when there is something to ask it, and how it is asked."""

    source: Source
    student: StudentSpec
    images: Path
    spec: Spec
    seed: int
    batch_size: int

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
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            model = llava_of(self.source.load(device))
            for asked, batch in self._batches(open_records, workers):
                skipped = dict(batch.skipped)
                unreadable += batch.skipped
                for answer in self._answers(model, batch, asked, device):
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
        numbers = range(len(samples))
        order = [list(numbers[k : k + self.batch_size]) for k in numbers[:: self.batch_size]]
        pad = self.student.processor.tokenizer.pad_token_id or 0
        with closing(micro_batches(samples, order, pad, workers, left=True)) as batches:
            for places, batch in zip(order, batches, strict=True):
                yield [records[k] for k in places], batch

    def _answers(
        self, model: Any, batch: Batch, records: Sequence[Record], device: torch.device
    ) -> Iterator[Answer]:
        student, spec = self.student, self.spec
        # Pixels stay float32: the decoder casts them, after it has added noise.
        moved = batch.to(device, torch.float32)
        inputs = {
            "input_ids": moved.input_ids,
            "attention_mask": moved.attention_mask,
            "pixel_values": moved.pixel_values,
            **student.family.inputs(model.config, moved.input_ids, moved.grids),
        }
        tokenizer = student.processor.tokenizer
        if isinstance(spec, Pai) and spec.variant == "reference":
            inputs |= _bare_questions(tokenizer, records, device)
        new = decode(model, inputs, spec, self.seed, ids=batch.ids).tolist()
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
                seed=self.seed,
                new_tokens=length,
                settings=spec.settings(),
            )


def _bare_questions(
    tokenizer: Any, records: Sequence[Record], device: torch.device
) -> dict[str, Tensor]:
    """The questions by themselves, without template and image, padded on the left."""
    texts = [r.conversations[0].text.replace(IMAGE_PLACEHOLDER, "").strip() for r in records]
    rows = [tokenizer(text)["input_ids"] for text in texts]
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for k, row in enumerate(rows):
        ids[k, longest - len(row) :] = torch.tensor(row)
        mask[k, longest - len(row) :] = 1
    return {"question_ids": ids.to(device), "question_mask": mask.to(device)}


def _identity(source: Source, spec: Spec, seed: int, manifest: Path) -> dict[str, Any]:
    return {
        **source.identity(),
        **spec.identity(seed),
        "manifest": hashlib.sha256(manifest.read_bytes()).hexdigest(),
    }
