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
from ..html_report.student_attention import Progress, StudentAttention, attention_of_students
from ..html_report.write import evenly
from ..predictions import AnswersError, refuse_no_folder
from ..source import Source
from .figures import attention_overlay, loss_curves

Format = Literal["png", "pdf", "svg"]
Pixels = NDArray[np.uint8]

_SIDE = 448  # pixels of the square of a student that has none of its own
_SLUG = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, slots=True)
class Questions:
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
    questions: Questions, out: Path, form: Format = "png", progress: Progress | None = None
) -> Drawn:
    """Draw attention to every image of some questions, a panel for each source.

    Files are named `attention_LINE_ID`, with `_2` for a record's second image.

    Args:
        questions: the questions, and whose attention is drawn.
        out: folder for the figures; missing folders are made.
        form: of the files.
        progress: called with (steps done, steps in all).

    Raises:
        AnswersError: no record has an image, or there is no such folder of images.
        ManifestError: the manifest is broken.
        StudentError: a student cannot be loaded.
    """
    refuse_no_folder(questions.images)
    with_images = [record for record in read_manifest(questions.manifest) if record.images]
    if not with_images:
        raise AnswersError(f"{questions.manifest}: no record has an image to draw attention over")
    records = [with_images[number] for number in evenly(len(with_images), questions.samples)]
    students = attention_of_students(
        list(questions.sources.items()),
        records,
        questions.images,
        layer=questions.layer,
        progress=progress,
    )
    first = next(iter(questions.sources.values()))
    spec = first.spec()
    pictures = Pictures(questions.images, _SIDE, first.alpha, questions.cache)
    files, problems = [], []
    for record in records:
        for image in range(len(record.images)):
            path = out / f"{_stem(record, image)}.{form}"
            try:
                remarks = _overlay(record, image, students, pictures, spec, path)
                files.append(path)
            except (ManifestError, PixelsError, AnswersError) as error:
                remarks = [str(error)]
            problems += [f"record {record.id!r}: {remark}" for remark in remarks]
    return Drawn(tuple(files), tuple(problems))


def _overlay(
    record: Record,
    image: int,
    students: Sequence[StudentAttention],
    pictures: Pictures,
    spec: StudentSpec,
    path: Path,
) -> list[str]:
    """Draw one image of a record; return what is missing from the figure."""
    rgb = read_image(resolve_image(pictures.root, record.images[image]), alpha=pictures.alpha).rgb
    picture = pictures.of(record.images)[image]
    remarks = list(picture.remarks)
    maps = [] if picture.expert is None else [picture.expert]
    for student in students:
        attention = student.of(record.id, image, *rgb.shape[:2])
        if attention is None:
            remarks.append(f"{student.label}: {student.questions[record.id].problem}")
        else:
            maps.append(attention)
    if not maps:
        raise AnswersError("; ".join(remarks))
    first = maps[-1]  # a student's, where there is one: the figure shows the square that it sees
    drawn = [one for one in maps if _same_square(one, first)]
    remarks += [
        f"{one.label} sees a {one.geometry} square of {one.grid} patches, {first.label} a "
        f"{first.geometry} one of {first.grid}; `eval report` lays both over the image"
        for one in maps
        if not _same_square(one, first)
    ]
    attention_overlay(
        _square(rgb, first.geometry, spec),
        {one.label: one.values for one in drawn},
        first.grid,
        path,
        valid=first.valid,
        title=f"{Path(record.images[image]).name}: {question(record)}",
    )
    return remarks


def _same_square(one: AttentionMap, other: AttentionMap) -> bool:
    return (one.geometry, one.grid) == (other.geometry, other.grid)


def _square(rgb: Pixels, geometry: GeometryName, spec: StudentSpec) -> Pixels:
    if spec.sight.fixed_grid is None:
        return apply_geometry(rgb, geometry, _SIDE)
    return apply_geometry(rgb, geometry, spec.image_size, spec.square.fill)


def _stem(record: Record, image: int) -> str:
    slug = _SLUG.sub("_", record.id)[:80]
    return f"attention_{record.line}_{slug}" + f"_{image + 1}" * (image > 0)
