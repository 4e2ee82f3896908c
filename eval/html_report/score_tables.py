"""What the tables of a report hold: scores with intervals, differences between files, remarks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from ..compare import Compared
from ..metrics.definitions import Key
from ..score import WITH_MODELS, Score
from ..score_files import ScoresFile
from ..tables import few_clusters, grouped, headline, lower_note, not_computed
from .gather import Answers, Gathered

MANY = 4
"""More files than this have rows of their own, so that no table is wider than the page."""

_COUNTS = ("missing", "blank_answers", "choice_reference_not_an_option")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTables:
    """Scores of all files, by metric.

    Attributes:
        level: of the intervals, in percent.
        every: every metric that any file has, once, in the order of the tables.
        first: those of them that are shown before the rest.
        scores: label of a file -> its scores.
        differences: label of every other file -> how it differs from the first.
        notes: what a reader of the tables must know.
        by_file: whether each file has a row in the tables of the first metrics.
    """

    level: str
    every: Sequence[Score]
    first: Sequence[Score]
    scores: Mapping[str, Mapping[Key, Score]]
    differences: Mapping[str, Mapping[Key, Compared]]
    notes: Sequence[str]
    by_file: bool

    @classmethod
    def of(cls, gathered: Gathered) -> Self:
        """Return what the tables of a report hold."""
        scores = {
            file.label: {metric.key: metric for metric in file.scores.metrics}
            for file in gathered.files
        }
        distinct: dict[Key, Score] = {}
        for own in scores.values():
            distinct |= {key: metric for key, metric in own.items() if key not in distinct}
        every = [m for group in grouped(list(distinct.values())).values() for m in group]
        return cls(
            level=f"{100 * gathered.files[0].scores.interval['level']:g}%",
            every=every,
            first=headline(every),
            scores=scores,
            differences={
                label: {metric.key: metric for metric in compared}
                for label, compared in gathered.compared.items()
            },
            notes=_notes(gathered, every),
            by_file=len(gathered.files) > MANY,
        )


def _notes(gathered: Gathered, metrics: Sequence[Score]) -> list[str]:
    notes = []
    for file in gathered.files:
        clusters = file.scores.interval
        notes += few_clusters(file.scores.metrics, clusters["clusters"], clusters["clustered_by"])
        notes += not_computed(file.scores.not_computed)
        notes += [
            f"{file.label}: {name.replace('_', ' ')}: {count}"
            for name, count in file.scores.counts.items()
            if count and name in _COUNTS
        ]
        if file.known is not None:
            notes += [f"{file.label}: {note}" for note in _scores_file_notes(file, file.known)]
    return list(dict.fromkeys([*notes, *lower_note(metrics)]))


def _scores_file_notes(file: Answers, known: ScoresFile) -> list[str]:
    """Name the file that the scores are of, and what is not known of single samples then."""
    note = f"scores as in {known.path}"
    if any(metric.group in WITH_MODELS for metric in file.scores.metrics):
        note += "; its samples and differences have the metrics alone that need no model"
    return [note, *known.differences(file.scored)]
