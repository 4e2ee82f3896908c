"""Write a report: gather, run students for their attention, make every card, write one file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...teacher_cache.reader import TeacherCache
from ..metric_models.locate import InstrumentPaths
from ..predictions import AnswersError, Task, refuse_no_folder
from ..result_file import write_result
from ..source import Source
from ..tables import not_computed
from .cards import make_card
from .gather import Gathered, gather
from .images import EXPERT, Pictures
from .page import page
from .student_attention import Progress, attention_of_students

SAMPLES = 200
"""Default number of samples in a report."""

SIDE = 448
"""Default of the longest side of a picture in a report, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written.

    Attributes:
        out: the file.
        size_bytes: of it.
        records: in the manifest.
        shown: samples that the file shows.
        problems: what is missing from them, named metrics without a value, and why.
    """

    out: Path
    size_bytes: int
    records: int
    shown: int
    problems: tuple[str, ...]


def write_report(
    predictions: Sequence[Path],
    manifest: Path,
    images: Path,
    task: Task,
    out: Path,
    *,
    cache: TeacherCache | None = None,
    sources: Sequence[tuple[str, Source]] = (),
    layer: int | None = None,
    samples: int = SAMPLES,
    side: int = SIDE,
    allow_missing: bool = False,
    metrics: Sequence[str] = (),
    paths: InstrumentPaths | None = None,
    scores: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Written:
    """Write one HTML file with scores, differences, and samples; equal input gives equal bytes.

    Args:
        predictions: files to show; the others are compared with the first.
        manifest: the manifest that they answer.
        images: folder of its images.
        task: "vqa" or "report".
        out: file to write; missing folders are made.
        cache: whose attention to show as the expert's; None for none.
        sources: name and student, each of whose attention is shown.
        layer: of students without an adapter, see `attention_of_students`.
        samples: how many to show, evenly chosen in the manifest's order; 0 for all.
        side: longest side of a picture in pixels.
        allow_missing: score records that no file answers as empty answers.
        metrics: which to show; all if empty.
        paths: where the models are that metrics of reports need.
        scores: scores files of some of the predictions, or of all, shown and not computed again.
        progress: called with (steps done, steps in all).

    Raises:
        AnswersError: predictions or scores do not fit, or `out` cannot be written.
        ManifestError: the manifest is broken.
        StudentError: a student cannot be loaded.
    """
    annotations = () if paths is None else paths.annotations
    inputs = (*predictions, manifest, *scores, *annotations)
    if out.resolve() in {path.resolve() for path in inputs}:
        raise AnswersError(f"{out}: --out would overwrite an input; choose another file")
    refuse_no_folder(images)
    gathered = gather(
        predictions,
        manifest,
        task,
        allow_missing=allow_missing,
        metrics=metrics,
        paths=paths,
        scores=scores,
    )
    numbers = evenly(len(gathered.records), samples)
    records = [gathered.records[number] for number in numbers]
    # A step is a record of one student, or a card.
    steps = len(records) * (len(sources) + 1)

    def count(done: int, _of: int = 0) -> None:
        if progress is not None:
            progress(done, steps)

    students = attention_of_students(sources, records, images, layer=layer, progress=count)
    alpha = sources[0][1].alpha if sources else "black"
    pictures = Pictures(images, side, alpha, cache)
    cards, problems = [], _without_value(gathered, metrics)
    for number, record in zip(numbers, records, strict=True):
        cards.append(make_card(number, gathered, pictures.of(record.images), students))
        problems += cards[-1].remarks
        count(len(records) * len(sources) + len(cards))
    looks = {} if cache is None else {0: EXPERT}
    looks |= {number: label for number, (label, _) in enumerate(sources, start=1)}
    html = page(gathered, cards, pictures.every(), looks, manifest)
    write_result(out, html)
    return Written(
        out=out,
        size_bytes=len(html.encode("utf-8")),
        records=len(gathered.records),
        shown=len(cards),
        problems=tuple(dict.fromkeys(problems)),
    )


def _without_value(gathered: Gathered, metrics: Sequence[str]) -> list[str]:
    """Return a line for every metric that the user named and a file has no value of."""
    absent = [metric for file in gathered.files for metric in file.scores.not_computed]
    return not_computed([metric for metric in absent if metric.name in metrics])


def evenly(count: int, samples: int) -> list[int]:
    """Return `samples` of the numbers below `count`, evenly spaced from 0; 0 means all."""
    if not 0 < samples < count:
        return list(range(count))
    return [number * count // samples for number in range(samples)]
