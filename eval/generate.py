"""Let a student answer a manifest's questions, batched, resumable, and shared if need be."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch

from ..pipeline.manifest import Record, read_manifest
from ..pipeline.parts import Part
from ..trainer.batch import Batch
from ..trainer.data import Conversations
from ..trainer.student import llava_of
from ..trainer.students.spec import StudentSpec
from ..trainer.workers import micro_batches
from .answer_batch import answer_batch
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
from .answers import AnswersError
from .decoders import Spec
from .decoders.fit import check_fit
from .decoders.specs import Opera
from .fitting_questions import FittingQuestions
from .image_digest import image_digest
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
        unreadable: (record id, reason) of records that got no answer: what they name cannot be
            read, or they leave no room for an answer.
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

    A record is left out, and named in `Answered.unreadable`, if it cannot be read, or if its
    prompt and `max_new_tokens` together need more positions than the student has.

    Args:
        source: what answers.
        manifest: questions; a reference answer is copied when there is one.
        images: folder of the images.
        out: predictions file.
        spec: decoder and its settings.
        seed: of decoders that draw tokens or noise; lines of others say 0.
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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asker = _Asker(source, student, images, spec, seed, together, device)
    identity = {
        **source.identity(device),
        **spec.identity(seed),
        "manifest": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "images": image_digest(records, images),
    }
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
            for asked, batch in self._batches(open_records, workers):
                skipped = dict(batch.skipped)
                unreadable += batch.skipped
                for answer in answer_batch(model, self.student, batch, asked, self.spec, self.seed):
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
            for places, batch in zip(order, batches, strict=True):
                yield [records[k] for k in places], batch
