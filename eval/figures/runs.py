"""The figures of a paper: loss curves of runs, and where expert and students look."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...pipeline.geometry import GeometryName, apply_geometry
from ...pipeline.manifest import ManifestError, Record, read_manifest, resolve_image
from ...pipeline.pixels import PixelsError, read_image
from ...teacher_cache.reader import TeacherCache
from ...trainer.run.folder import RunFolder
from ...trainer.students.spec import StudentSpec
from ..html_report.attention_maps import AttentionMap
from ..html_report.cards import question
from ..html_report.images import Pictures
from ..html_report.student_attention import StudentAttention, layer_of_runs, student_attention
from ..html_report.write import Progress, Steps, evenly
from ..predictions import AnswersError
from ..source import Source
from .figures import attention_overlay, loss_curves

Format = Literal["png", "pdf", "svg"]
Pixels = NDArray[np.uint8]

_SIDE = 448  # pixels of the square of a student that has none of its own
_SLUG = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions whose attention is drawn.

    Attributes:
        manifest: of the questions.
        images: folder of its images.
        sources: whose attention is drawn, by name.
        cache: whose expert is drawn, too; None for none.
        layer: of students without an adapter; if None, that of the runs among the sources.
        samples: how many records, evenly chosen; 0 for all.
    """

    manifest: Path
    images: Path
    sources: Mapping[str, Source]
    cache: TeacherCache | None = None
    layer: int | None = None
    samples: int = 8


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was drawn.

    Attributes:
        files: in order.
        problems: what could not be drawn, and why.
    """

    files: tuple[Path, ...]
    problems: tuple[str, ...] = ()


def draw_curves(folders: Mapping[str, Path], out: Path, form: Format = "png") -> Drawn:
    """Draw `loss_curves` of all runs that made a step; no file where none did.

    Args:
        folders: of runs, by name.
        out: folder for the figure; missing folders are made.
        form: of the file.
    """
    runs = {name: RunFolder(folder).metrics() for name, folder in folders.items()}
    stepped = {name: steps for name, steps in runs.items() if steps}
    idle = [name for name, steps in runs.items() if not steps]
    problems = tuple(f"{name} has no loss curve: no step was made" for name in idle)
    if not stepped:
        return Drawn((), problems)
    path = out / f"loss_curves.{form}"
    loss_curves(stepped, path)
    return Drawn((path,), problems)


def draw_attention(
    asked: Asked, out: Path, form: Format = "png", progress: Progress | None = None
) -> Drawn:
    """Draw attention to every image of some questions, a panel for each source.

    Files are named `attention_LINE_ID`, with `_2` for a record's second image.

    Args:
        asked: questions, and who looks.
        out: folder for the figures; missing folders are made.
        form: of the files.
        progress: told how many steps are done, and of how many.

    Raises:
        AnswersError: no record has an image, or there is no such folder of images.
        ManifestError: the manifest is broken.
        StudentError: a student cannot be loaded.
    """
    if not asked.images.is_dir():
        raise AnswersError(f"--images {asked.images} is no folder")
    every = [record for record in read_manifest(asked.manifest) if record.images]
    if not every:
        raise AnswersError(f"{asked.manifest}: no record has an image, so nothing is looked at")
    records = [every[place] for place in evenly(len(every), asked.samples)]
    looks = _looks(asked, records, progress)
    first = next(iter(asked.sources.values()))
    spec = first.spec()
    pictures = Pictures(asked.images, _SIDE, first.alpha, asked.cache)
    files, problems = [], []
    for record in records:
        for place in range(len(record.images)):
            path = out / f"{_stem(record, place)}.{form}"
            try:
                remarks = _overlay(record, place, looks, pictures, spec, path)
                files.append(path)
            except (ManifestError, PixelsError, AnswersError) as error:
                remarks = [str(error)]
            problems += [f"record {record.id!r}: {remark}" for remark in remarks]
    return Drawn(tuple(files), tuple(problems))


def _looks(
    asked: Asked, records: Sequence[Record], progress: Progress | None
) -> list[StudentAttention]:
    layer = asked.layer
    if layer is None:
        layer = layer_of_runs(list(asked.sources.values()))
    steps = Steps(progress, len(records) * len(asked.sources))
    looks = []
    for name, source in asked.sources.items():
        looks.append(
            student_attention(
                source, name, records, asked.images, layer=layer, progress=steps.within
            )
        )
        steps.end(len(records))
    return looks


def _overlay(
    record: Record,
    place: int,
    looks: Sequence[StudentAttention],
    pictures: Pictures,
    spec: StudentSpec,
    path: Path,
) -> list[str]:
    """Draw one image of a record; return what is missing from the figure."""
    rgb = read_image(resolve_image(pictures.root, record.images[place]), alpha=pictures.alpha).rgb
    picture = pictures.of(record.images)[place]
    remarks = list(picture.remarks)
    maps = [] if picture.expert is None else [picture.expert]
    for look in looks:
        seen = look.of(record.id, place, *rgb.shape[:2])
        if seen is None:
            remarks.append(f"{look.label}: {look.seen[record.id].problem}")
        else:
            maps.append(seen)
    if not maps:
        raise AnswersError("; ".join(remarks))
    first = maps[-1]  # a student's, where there is one: the figure shows the square that it sees
    kept = [each for each in maps if _same_place(each, first)]
    remarks += [
        f"{each.label} sees a {each.geometry} square of {each.grid} patches, {first.label} a "
        f"{first.geometry} one of {first.grid}; `eval report` lays both over the image"
        for each in maps
        if not _same_place(each, first)
    ]
    attention_overlay(
        _square(rgb, first.geometry, spec),
        {each.label: each.values for each in kept},
        first.grid,
        path,
        valid=first.valid,
        title=f"{Path(record.images[place]).name}: {question(record)}",
    )
    return remarks


def _same_place(one: AttentionMap, other: AttentionMap) -> bool:
    return (one.geometry, one.grid) == (other.geometry, other.grid)


def _square(rgb: Pixels, geometry: GeometryName, spec: StudentSpec) -> Pixels:
    if spec.sight.fixed_grid is None:
        return apply_geometry(rgb, geometry, _SIDE)
    return apply_geometry(rgb, geometry, spec.image_size, spec.square.fill)


def _stem(record: Record, place: int) -> str:
    slug = _SLUG.sub("_", record.id)[:80]
    return f"attention_{record.line}_{slug}" + f"_{place + 1}" * (place > 0)
