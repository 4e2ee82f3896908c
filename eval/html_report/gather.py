"""Read what a report shows: answers of several files, their scores, and how the files differ."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...pipeline.manifest import Record
from ..clusters import cluster_records
from ..compare import Compared, compare_scored, refuse_unmatched
from ..metric_models.locate import InstrumentPaths
from ..metrics.definitions import Key
from ..predictions import Answer, AnswersError, Pair, Task
from ..score import (
    WITH_MODELS,
    Scores,
    TaskScores,
    choose_metrics,
    instruments_for,
    read_pairs,
    summarise,
    task_scores,
)
from ..score_files import ScoresFile, match_scores
from ..tables import labels

VERDICT: Key = ("strict", "overall_accuracy")
"""The metric whose value of one question, 1 or 0, says whether its answer is right."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One predictions file, scored.

    Attributes:
        label: what the report calls it: its decoder, with the file's name where that is not
            enough.
        settings: of the decoder, as its first answer has them.
        pairs: one for each record, in the manifest's order.
        scored: what they score, sample by sample.
        scores: what a scores file says.
        known: the scores file that `scores` are of; None if they were computed.
    """

    label: str
    settings: Mapping[str, Any]
    pairs: Sequence[Pair]
    scored: TaskScores
    scores: Scores
    known: ScoresFile | None = None

    @cached_property
    def values(self) -> Mapping[Key, Mapping[int, float]]:
        """What every sample scores by itself: metric -> place in the manifest -> value in 0..1.

        A metric that only has a value over several samples, such as a macro F1, is left out.
        """
        return {
            key: {
                int(place): float(part / whole)
                for place, (part, whole) in zip(one.places, one.terms[:, 0], strict=True)
                if whole
            }
            for key, one in self.scored.statistics.items()
            if one.terms.shape[1] == 1
        }

    def right(self, place: int) -> bool | None:
        """Whether an answer is right; None where the task has no right and wrong."""
        found = self.values.get(VERDICT, {}).get(place)
        return None if found is None else found == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Everything a report says of its predictions files.

    Attributes:
        task: "vqa" or "report".
        records: of the manifest.
        files: the predictions, in the order given.
        compared: label -> every metric of that file against the first file; empty for one file.
    """

    task: Task
    records: Sequence[Record]
    files: Sequence[Answers]
    compared: Mapping[str, Sequence[Compared]]


def gather(
    predictions: Sequence[Path],
    manifest: Path,
    task: Task,
    *,
    allow_missing: bool = False,
    metrics: Sequence[str] = (),
    paths: InstrumentPaths | None = None,
    scores: Sequence[Path] = (),
) -> Gathered:
    """Read, join and score predictions files, and compare each with the first.

    No model runs on a file with scores of its own, so samples and differences of it have the
    metrics alone that need none.

    Args:
        predictions: at least one file.
        manifest: the manifest that they answer.
        task: "vqa" or "report".
        allow_missing: take records that no file answers as answered with nothing.
        metrics: which to compute; all if empty.
        paths: where the models are that metrics of reports need.
        scores: scores files of some of the predictions, or of all.

    Raises:
        AnswersError: no or the same file twice, answers that do not fit the manifest, a record
            that only some of the files answer, scores that do not fit (see `match_scores`), or
            models and nothing left to compute with them.
        ManifestError: the manifest is broken.
    """
    wanted = choose_metrics(task, metrics)
    read = _joined(predictions, manifest, task, allow_missing=allow_missing)
    given = match_scores(scores, predictions, manifest, task)
    plain = [name for name in wanted if name not in WITH_MODELS]
    if len(given) == len(predictions):
        if paths not in (None, InstrumentPaths()):
            raise AnswersError(
                "--scores are there for every predictions file, which leaves nothing to compute "
                "with the models that are given; leave out one or the other"
            )
        wanted = tuple(plain)
    instruments = instruments_for(task, wanted, paths)
    files = []
    names = labels(predictions, [answers[0].decoder for answers, _ in read])
    for path, label, (answers, pairs) in zip(predictions, names, read, strict=True):
        known = given.get(path)
        if known is None:
            scored = task_scores(pairs, task, wanted, instruments, named=bool(metrics))
            said = summarise(path, manifest, task, answers, pairs, scored, instruments)
        else:
            scored = task_scores(pairs, task, plain, instruments_for(task, plain, None))
            said = known.chosen(metrics)
        own = answers[0].settings
        files.append(
            Answers(label=label, settings=own, pairs=pairs, scored=scored, scores=said, known=known)
        )
    records = [pair.record for pair in files[0].pairs]
    clusters = cluster_records(records)
    return Gathered(
        task=task,
        records=records,
        files=files,
        compared={
            other.label: compare_scored(files[0].scored, other.scored, clusters)
            for other in files[1:]
        },
    )


def _joined(
    predictions: Sequence[Path], manifest: Path, task: Task, *, allow_missing: bool
) -> list[tuple[list[Answer], list[Pair]]]:
    """Read every predictions file; all of them answer the same records."""
    if not predictions:
        raise AnswersError("a report takes at least one predictions file")
    if twice := [path for path, times in Counter(predictions).items() if times > 1]:
        raise AnswersError(f"{twice[0]}: is given twice")
    read = [read_pairs(each, manifest, task, allow_missing=allow_missing) for each in predictions]
    for path, (answers, _) in zip(predictions[1:], read[1:], strict=True):
        refuse_unmatched(predictions[0], read[0][0], path, answers)
    return read
