"""Attention of a student's question to every image of the question, at layer l."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ...pipeline.geometry import GeometryName, valid_patches
from ...pipeline.manifest import Record
from ...teacher_cache.schema import PatchGrid
from ...trainer.data.batch import Sample, collate
from ...trainer.data.conversation import Encoded, Int64
from ...trainer.data.dataset import Conversations
from ...trainer.student import llava_of
from ...trainer.students.families import family_of
from ...trainer.students.probe import Tap, attach
from ...trainer.students.question_attention import Look
from ...trainer.students.spec import StudentError, StudentSpec
from ..alignment import Float32
from ..source import Source
from .attention_maps import AttentionMap

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionAttention:
    """What one question attends to.

    Attributes:
        maps: [N] attention to each image of the question, in order.
        grids: of these.
        problem: the reason where there are none, or an empty string.
    """

    maps: tuple[Float32, ...] = ()
    grids: tuple[PatchGrid, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentAttention:
    """A student's attention to the images of many records.

    Attributes:
        label: name of the student in the report.
        geometry: how an image becomes what the student sees.
        questions: the first question of every record, by its id.
    """

    label: str
    geometry: GeometryName
    questions: dict[str, QuestionAttention]

    def of(self, record: str, image: int, height: int, width: int) -> AttentionMap | None:
        """Return the map of one of a record's images; None if there is none.

        Args:
            record: id.
            image: number of the image in the record, from 0.
            height: of the image, in pixels.
            width: of the image, in pixels.
        """
        question = self.questions[record]
        if image >= len(question.maps):
            return None
        grid = question.grids[image]
        return AttentionMap(
            label=self.label,
            values=question.maps[image],
            valid=valid_patches(self.geometry, height, width, grid),
            grid=grid,
            geometry=self.geometry,
        )


def layer_of_runs(sources: Sequence[Source]) -> int | None:
    """Return the layer that all adapters were trained at; None without one, or if they differ."""
    layers = {source.layer() for source in sources} - {None}
    return layers.pop() if len(layers) == 1 else None


def attention_of_students(
    sources: Sequence[tuple[str, Source]],
    records: Sequence[Record],
    images: Path,
    *,
    layer: int | None = None,
    progress: Progress | None = None,
) -> list[StudentAttention]:
    """Run several students over the first question of every record, one after the other.

    Args:
        sources: name and student.
        records: the questions.
        images: folder of the images.
        layer: of students without an adapter; if None, that of the runs among the sources, where
            they have one in common.
        progress: called with (steps done, steps in all); a step is one record of one student.

    Raises:
        StudentError: a student cannot be loaded, or has no such layer.
    """
    if layer is None:
        layer = layer_of_runs([source for _, source in sources])

    def count(before: int, done: int, _of: int) -> None:
        if progress is not None:
            progress(before + done, len(records) * len(sources))

    return [
        student_attention(
            source,
            label,
            records,
            images,
            layer=layer,
            progress=partial(count, number * len(records)),
        )
        for number, (label, source) in enumerate(sources)
    ]


@torch.inference_mode()
def student_attention(
    source: Source,
    label: str,
    records: Sequence[Record],
    images: Path,
    *,
    layer: int | None = None,
    progress: Progress | None = None,
) -> StudentAttention:
    """Run a student over the first question of every record and read layer l's attention.

    Mean over heads and the question's tokens, as L_att has it (Eq. 5). Questions go one by one, so
    that no padding can matter.

    Args:
        source: run, adapter or student.
        label: name of the student.
        records: the questions.
        images: folder of the images.
        layer: l, counted from 0, of a student without an adapter; an adapter has its own.
        progress: called with (records done, records in all).

    Raises:
        StudentError: the student cannot be loaded, or has no layer l.
    """
    spec = source.spec()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = llava_of(_probed(source, spec, device, layer))
    samples = Conversations(records, images, spec, 0, None, ask=True, alpha=source.alpha)
    questions = {}
    for number, record in enumerate(records):
        questions[record.id] = _attention(model, samples[number])
        if progress is not None:
            progress(number + 1, len(records))
    geometry: GeometryName = "stretch" if spec.sight.fixed_grid is None else spec.geometry
    return StudentAttention(label=label, geometry=geometry, questions=questions)


def _probed(source: Source, spec: StudentSpec, device: torch.device, layer: int | None) -> Any:
    if source.adapter is not None:
        return source.load(device, probe=True)
    if layer is None or not 0 <= layer < spec.layers:
        problem = "is not given" if layer is None else f"is {layer}"
        raise StudentError(
            f"{source.student} is a student without an adapter, and --layer {problem}; give one "
            f"of its layers, 0 to {spec.layers - 1}"
        )
    model = source.load(device)
    attach(model, layer, rotation=False)
    return model


def _attention(model: Any, sample: Sample) -> QuestionAttention:
    if sample.encoded is None:
        return QuestionAttention(problem=sample.skipped)
    if not sample.grids:
        return QuestionAttention(problem="the first question shows no image")
    batch = collate([sample], pad_id=0).to(model.device, model.dtype)
    tap = Tap(batch.input_ids == model.config.image_token_id, _look(sample.encoded, model.device))
    model.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        pixel_values=batch.pixel_values,
        use_cache=False,
        tap=tap,
        **family_of(model).inputs(model.config, batch.input_ids, batch.grids),
    )
    assert tap.attention is not None
    rows = tap.attention.float().cpu().numpy()
    sizes = [grid.size for grid in sample.grids]
    # Copies: a slice would keep the padded rows of all images in memory.
    maps = tuple(row[:size].copy() for row, size in zip(rows, sizes, strict=True))
    return QuestionAttention(maps=maps, grids=sample.grids)


def _look(encoded: Encoded, device: torch.device) -> Look:
    cols, cols_ok = _stacked(encoded.cols)
    rows, rows_ok = _stacked(encoded.rows)
    return Look(
        owner=torch.zeros(len(cols), dtype=torch.long, device=device),
        cols=cols.to(device),
        rows=rows.to(device),
        rows_ok=rows_ok.to(device),
        keys_ok=torch.ones(1, len(encoded.input_ids), dtype=torch.bool, device=device),
        cols_ok=None if cols_ok.all() else cols_ok.to(device),
    )


def _stacked(positions: Sequence[Int64]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack positions of different number, [I, most], and a mask that is False on padding."""
    stacked = pad_sequence([torch.from_numpy(row) for row in positions], batch_first=True)
    ok = pad_sequence([torch.ones(len(p), dtype=torch.bool) for p in positions], batch_first=True)
    return stacked, ok
