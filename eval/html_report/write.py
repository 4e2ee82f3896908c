"""Write a report: gather, run students for their attention, make every card, write one file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...teacher_cache.reader import TeacherCache
from ..metric_models.locate import InstrumentPaths
from ..predictions import AnswersError, Task
from ..result_file import write_result
from ..source import Source
from ..tables import not_computed
from .cards import make_card
from .gather import Gathered, gather
from .images import EXPERT, Pictures
from .page import page
from .student_attention import StudentAttention, layer_of_runs, student_attention

SAMPLES = 200
"""How many samples a report shows unless said otherwise."""

SIDE = 448
"""Longest side of a picture in a report unless said otherwise, in pixels."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written.

    Attributes:
        out: the file.
        size_bytes: of it.
        records: in the manifest.
        shown: samples that the file shows.
        problems: what is missing from them, or has no value though it was asked for, and why.
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
        layer: of students without an adapter, see `student_attention`; if None, that of the runs
            among the sources, where they have one in common.
        samples: how many to show, evenly chosen in the manifest's order; 0 for all.
        side: longest side of a picture in pixels.
        allow_missing: take records that no file answers as answered with nothing.
        metrics: which to show; all if empty.
        paths: where the models are that metrics of reports need.
        scores: scores files of some of the predictions, or of all, shown and not computed again.
        progress: told how many steps are done, and of how many.

    Raises:
        AnswersError: predictions or scores do not fit, or `out` cannot be written.
        ManifestError: the manifest is broken.
        StudentError: a student cannot be loaded.
    """
    annotations = () if paths is None else paths.annotations
    read = (*predictions, manifest, *scores, *annotations)
    if out.resolve() in {path.resolve() for path in read}:
        raise AnswersError(f"{out}: --out would overwrite what is shown; choose another file")
    if not images.is_dir():
        raise AnswersError(f"--images {images} is no folder")
    gathered = gather(
        predictions,
        manifest,
        task,
        allow_missing=allow_missing,
        metrics=metrics,
        paths=paths,
        scores=scores,
    )
    places = evenly(len(gathered.records), samples)
    records = [gathered.records[place] for place in places]
    if layer is None:
        layer = layer_of_runs([source for _, source in sources])
    steps = Steps(progress, len(records) * (1 + len(sources)))
    students: list[StudentAttention] = []
    for label, source in sources:
        found = student_attention(
            source, label, records, images, layer=layer, progress=steps.within
        )
        students.append(found)
        steps.end(len(records))
    alpha = sources[0][1].alpha if sources else "black"
    pictures = Pictures(images, side, alpha, cache)
    cards, problems = [], _without_value(gathered, metrics)
    for place, record in zip(places, records, strict=True):
        cards.append(make_card(place, gathered, pictures.of(record.images), students))
        problems += cards[-1].remarks
        steps.within(len(cards), len(records))
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
    """Say which of the metrics that were asked for a file has no value of."""
    missing = [each for file in gathered.files for each in file.scores.not_computed]
    return not_computed([each for each in missing if each.name in metrics])


def evenly(count: int, wanted: int) -> list[int]:
    """Return `wanted` of the numbers below `count`, evenly spaced from the first; 0 means all."""
    if not 0 < wanted < count:
        return list(range(count))
    return [place * count // wanted for place in range(wanted)]


class Steps:
    """Adds up the steps of several stages."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._before = progress, total, 0

    def within(self, done: int, of: int) -> None:
        """Tell that a stage is at `done`."""
        del of
        if self._progress is not None:
            self._progress(self._before + done, self._total)

    def end(self, steps: int) -> None:
        """Count a whole stage as done."""
        self._before += steps
