"""Read what a report shows: answers of several files, their scores, and how the files differ."""

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
from ..predictions import Answer, AnswersError, Pair, Task, first_repeated
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
"""The metric whose value for one question, 1 or 0, decides whether its answer is right."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One predictions file, scored.

    Attributes:
        label: its name in the report: the decoder, with the file's name where decoders repeat.
        settings: of the decoder, as its first answer has them.
        pairs: one for each record, in the manifest's order.
        scored: their scores, sample by sample.
        scores: content of their scores file.
        known: the scores file that `scores` come from; None if they were computed.
    """

    label: str
    settings: Mapping[str, Any]
    pairs: Sequence[Pair]
    scored: TaskScores
    scores: Scores
    known: ScoresFile | None = None

    @cached_property
    def values(self) -> Mapping[Key, Mapping[int, float]]:
        """What every sample scores by itself: metric -> its number in the manifest -> 0..1.

        A metric that only has a value over several samples, such as a macro F1, is left out.
        """
        return {
            key: {
                int(sample): float(part / whole)
                for sample, (part, whole) in zip(
                    statistic.samples, statistic.terms[:, 0], strict=True
                )
                if whole
            }
            for key, statistic in self.scored.statistics.items()
            if statistic.terms.shape[1] == 1
        }

    def right(self, sample: int) -> bool | None:
        """Whether an answer is right; None where the task has no right and wrong."""
        value = self.values.get(VERDICT, {}).get(sample)
        return None if value is None else value == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Everything that a report shows of its predictions files.

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

    No model runs on a file with scores of its own, so its samples and differences have only the
    metrics that need no model.

    Args:
        predictions: at least one file.
        manifest: the manifest that they answer.
        task: "vqa" or "report".
        allow_missing: score records that no file answers as empty answers.
        metrics: which to compute; all if empty.
        paths: where the models are that metrics of reports need.
        scores: scores files of some of the predictions, or of all.

    Raises:
        AnswersError: no or the same file twice, answers that do not fit the manifest, a record
            that only some of the files answer, scores that do not fit (see `match_scores`), or
            models and nothing left to compute with them.
        ManifestError: the manifest is broken.
    """
    chosen = choose_metrics(task, metrics)
    joined = _joined(predictions, manifest, task, allow_missing=allow_missing)
    known = match_scores(scores, predictions, manifest, task)
    plain = [name for name in chosen if name not in WITH_MODELS]
    if len(known) == len(predictions):
        if paths not in (None, InstrumentPaths()):
            raise AnswersError(
                "every predictions file has --scores, so no model has anything to compute; leave "
                "out --scores or the options of models"
            )
        chosen = tuple(plain)
    instruments = instruments_for(task, chosen, paths)
    names = labels(predictions, [answers[0].decoder for answers, _ in joined])
    files = []
    for path, label, (answers, pairs) in zip(predictions, names, joined, strict=True):
        file = known.get(path)
        if file is None:
            scored = task_scores(pairs, task, chosen, instruments, named=bool(metrics))
            summary = summarise(path, manifest, task, answers, pairs, scored, instruments)
        else:
            scored = task_scores(pairs, task, plain, instruments_for(task, plain, None))
            summary = file.chosen(metrics)
        files.append(
            Answers(
                label=label,
                settings=answers[0].settings,
                pairs=pairs,
                scored=scored,
                scores=summary,
                known=file,
            )
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
    if repeated := first_repeated(predictions):
        raise AnswersError(f"{repeated}: is given twice")
    joined = [read_pairs(path, manifest, task, allow_missing=allow_missing) for path in predictions]
    for path, (answers, _) in zip(predictions[1:], joined[1:], strict=True):
        refuse_unmatched(predictions[0], joined[0][0], path, answers)
    return joined
