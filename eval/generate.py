"""Let a student answer a manifest's questions, batched and resumable."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from ..pipeline.manifest import Record, read_manifest
from ..trainer.batch import Batch
from ..trainer.data import Conversations
from ..trainer.student import llava_of
from ..trainer.students.spec import StudentSpec
from ..trainer.workers import micro_batches
from .answer_log import AnswerLog
from .answers import Answer, AnswersError, gold
from .decoding import Decoder
from .source import Source


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """How generation ended.

    Attributes:
        records: of the manifest.
        reused: answered by an earlier run.
        answered: answered now.
        unreadable: (record id, reason) of records that got no answer.
    """

    records: int
    reused: int
    answered: int
    unreadable: tuple[tuple[str, str], ...]


def generate(
    source: Source,
    manifest: Path,
    images: Path,
    out: Path,
    decoder: Decoder,
    *,
    batch_size: int = 8,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Answered:
    """Answer the first question of every record; answers already in `out` are kept.

    Args:
        source: what answers.
        manifest: questions; a reference answer is copied when there is one.
        images: folder of the images.
        out: predictions file.
        decoder: how tokens are chosen.
        batch_size: questions at a time.
        workers: processes that decode images.
        progress: told how many records are done, and of how many.

    Raises:
        ValueError: of the part that is wrong: manifest, student, adapter, predictions file.
    """
    if not images.is_dir():
        raise AnswersError(f"--images {images} is no folder")
    records = read_manifest(manifest)
    spec = source.spec()
    with AnswerLog.open(out, _identity(source, decoder, manifest)) as log:
        open_records = [record for record in records if record.id not in log.done]
        reused = len(records) - len(open_records)
        unreadable: list[tuple[str, str]] = []
        answered = 0
        if open_records:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            model = llava_of(source.load(device))
            samples = Conversations(
                open_records, images, spec, 0, None, ask=True, alpha=source.alpha
            )
            numbers = range(len(samples))
            order = [list(numbers[k : k + batch_size]) for k in numbers[::batch_size]]
            pad = spec.processor.tokenizer.pad_token_id or 0
            with closing(micro_batches(samples, order, pad, workers, left=True)) as batches:
                for places, batch in zip(order, batches, strict=True):
                    asked = [open_records[k] for k in places]
                    skipped = dict(batch.skipped)
                    unreadable += batch.skipped
                    for answer in _answers(model, spec, decoder, batch, asked, device):
                        if answer.id not in skipped:
                            log.append(answer)
                            answered += 1
                    if progress is not None:
                        progress(reused + answered + len(unreadable), len(records))
    return Answered(
        records=len(records), reused=reused, answered=answered, unreadable=tuple(unreadable)
    )


@torch.inference_mode()
def _answers(
    model: Any,
    spec: StudentSpec,
    decoder: Decoder,
    batch: Batch,
    records: Sequence[Record],
    device: torch.device,
) -> Iterator[Answer]:
    moved = batch.to(device, next(model.parameters()).dtype)
    inputs = {
        "input_ids": moved.input_ids,
        "attention_mask": moved.attention_mask,
        "pixel_values": moved.pixel_values,
        **spec.family.inputs(model.config, moved.input_ids, moved.grids),
    }
    tokenizer = spec.processor.tokenizer
    end = model.generation_config.eos_token_id
    ends = set(end) if isinstance(end, list) else {end}
    new = decoder.generate(model, inputs, batch.ids).tolist()
    for record, tokens in zip(records, new, strict=True):
        length = next((k + 1 for k, token in enumerate(tokens) if token in ends), len(tokens))
        yield Answer(
            id=record.id,
            prompt=spec.encoder.prompt_text(record),
            text=tokenizer.decode(tokens[:length], skip_special_tokens=True).strip(),
            answer=gold(record),
            decoder=decoder.name,
            seed=decoder.seed,
            new_tokens=length,
        )


def _identity(source: Source, decoder: Decoder, manifest: Path) -> dict[str, Any]:
    return {
        **source.identity(),
        **decoder.identity(),
        "manifest": hashlib.sha256(manifest.read_bytes()).hexdigest(),
    }
