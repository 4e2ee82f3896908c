"""Where a student's question looks: layer l's attention to every image of the question."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one question looked at.

    Attributes:
        maps: [N] attention to each image of the question, in order.
        grids: of these.
        problem: why there are none, or an empty string.
    """

    maps: tuple[Float32, ...] = ()
    grids: tuple[PatchGrid, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentAttention:
    """A student's attention to the images of many records.

    Attributes:
        label: what the report calls it.
        geometry: how an image becomes what the student sees.
        seen: by record id.
    """

    label: str
    geometry: GeometryName
    seen: dict[str, Seen]

    def of(self, record: str, image: int, height: int, width: int) -> AttentionMap | None:
        """Return the map of a record's image, by its place; None if there is none.

        Args:
            record: id.
            image: place of the image in the record.
            height: of the image, in pixels.
            width: of the image, in pixels.
        """
        seen = self.seen[record]
        if image >= len(seen.maps):
            return None
        grid = seen.grids[image]
        return AttentionMap(
            label=self.label,
            values=seen.maps[image],
            valid=valid_patches(self.geometry, height, width, grid),
            grid=grid,
            geometry=self.geometry,
        )


def layer_of_runs(sources: Sequence[Source]) -> int | None:
    """Return the layer that all adapters were trained at; None without one, or if they differ."""
    layers = {source.layer() for source in sources} - {None}
    return layers.pop() if len(layers) == 1 else None


@torch.inference_mode()
def student_attention(
    source: Source,
    label: str,
    records: Sequence[Record],
    images: Path,
    *,
    layer: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StudentAttention:
    """Run a student over the first question of every record and read layer l's attention.

    Mean over heads and the question's tokens, as L_att has it (Eq. 5). Questions go one by one, so
    that no padding can matter.

    Args:
        source: run, adapter or student.
        label: what to call it.
        records: the questions.
        images: folder of the images.
        layer: l, counted from 0, of a student without an adapter; an adapter has its own.
        progress: told how many records are done, and of how many.

    Raises:
        StudentError: the student cannot be loaded, or has no layer l.
    """
    spec = source.spec()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = llava_of(_probed(source, spec, device, layer))
    samples = Conversations(records, images, spec, 0, None, ask=True, alpha=source.alpha)
    seen = {}
    for number, record in enumerate(records):
        seen[record.id] = _seen(model, samples[number])
        if progress is not None:
            progress(number + 1, len(records))
    geometry: GeometryName = "stretch" if spec.sight.fixed_grid is None else spec.geometry
    return StudentAttention(label=label, geometry=geometry, seen=seen)


def _probed(source: Source, spec: StudentSpec, device: torch.device, layer: int | None) -> Any:
    if source.adapter is not None:
        return source.load(device, probe=True)
    if layer is None or not 0 <= layer < spec.layers:
        said = "is not given" if layer is None else f"is {layer}"
        raise StudentError(
            f"{source.student} is a student without an adapter, and --layer {said}; give one of "
            f"its layers, 0 to {spec.layers - 1}"
        )
    model = source.load(device)
    attach(model, layer, rotation=False)
    return model


def _seen(model: Any, sample: Sample) -> Seen:
    if sample.encoded is None:
        return Seen(problem=sample.skipped)
    if not sample.grids:
        return Seen(problem="the first question shows no image")
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
    return Seen(maps=tuple(map(_cut, rows, sizes)), grids=sample.grids)


def _cut(row: Float32, size: int) -> Float32:
    return row[:size].copy()


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
    """Stack positions of different number: [I, most], and which of them are none of padding."""
    stacked = pad_sequence([torch.from_numpy(each) for each in positions], batch_first=True)
    ok = pad_sequence([torch.ones(len(p), dtype=torch.bool) for p in positions], batch_first=True)
    return stacked, ok
