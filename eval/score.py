"""Score a predictions file against its manifest, with intervals and definitions."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..pipeline.manifest import read_manifest
from .clusters import cluster_records, clustered_by
from .metrics.definitions import (
    REPORT_METRICS,
    VQA_METRICS,
    Better,
    Definition,
    Key,
    Unit,
    report_definitions,
    vqa_definitions,
)
from .metrics.interval import LEVEL, RESAMPLES, SEED, Interval, bootstrap_interval
from .metrics.statistic import Int64, Statistic
from .predictions import Answer, AnswersError, Pair, Task, join, read_answers
from .result_file import identify_file, package_version, write_result
from .vqa_scores import question_type, vqa_scores

if TYPE_CHECKING:
    from .metric_models.locate import InstrumentPaths, Instruments

_NO_SAMPLES = {
    "open": "no record has answer_type OPEN",
    "closed": "every record has answer_type OPEN",
    "choice": "no record has `options`",
    "hallucination": "no reference is yes or no",
}
"""Why a group of VQA metrics can be without samples."""

WITH_MODELS = frozenset({"bertscore", "chexbert", "radgraph", "ratescore"})
"""Groups of report metrics that a model computes; all others need none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotComputed:
    """A metric without a value, and why it has none.

    Attributes:
        name: of the metric, or of a group of `--metrics`.
        reason: "needs X at Y", or what leaves it undefined.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScores:
    """What one predictions file scores.

    Attributes:
        statistics: metrics by (protocol, name).
        definitions: of these, in the order of tables.
        counts: by kind of sample.
        wordnet: version of the WordNet that METEOR used.
        not_computed: what has no value.
    """

    statistics: Mapping[Key, Statistic]
    definitions: Mapping[Key, Definition]
    counts: Mapping[str, int]
    wordnet: str | None
    not_computed: Sequence[NotComputed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One metric: value and interval in its unit, and what they mean.

    Attributes:
        name: of the metric.
        protocol: by which rules.
        value: over all samples it applies to.
        interval: of the value, see `Scores.interval`; None if all its samples are of one cluster.
        unit: "percent", or "per report".
        n: samples it applies to.
        definition: one sentence.
        package: distribution that computes it.
        version: of the package.
        group: name of `--metrics` for it and its neighbours.
        clusters: patients or images that the n samples belong to.
        better: which direction is better: "higher", "lower" or "neither".
    """

    name: str
    protocol: str
    value: float
    interval: Interval
    unit: Unit
    n: int
    definition: str
    package: str
    version: str
    group: str
    clusters: int
    better: Better

    @property
    def key(self) -> Key:
        """Protocol and name, which no two metrics share."""
        return self.protocol, self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Everything in a scores file.

    Attributes:
        task: "vqa" or "report".
        manifest: path and sha256 of the manifest.
        predictions: path and sha256 of the predictions.
        medalign: version that scored.
        decoder: decoder of the predictions.
        seeds: seeds of the predictions, sorted.
        wordnet: version of the WordNet that METEOR used; None for none, or for another task.
        counts: how many records, answers, ...
        interval: how the intervals were computed.
        metrics: the scores; a metric no sample applies to is left out.
        settings: of the decoder, as far as the predictions have them.
        not_computed: metrics without a value, and what they need.
        instruments: metric -> path and sha256 of the models and annotations it used.
    """

    task: Task
    manifest: Mapping[str, str]
    predictions: Mapping[str, str]
    medalign: str
    decoder: str
    seeds: Sequence[int]
    wordnet: str | None
    counts: Mapping[str, int]
    interval: Mapping[str, Any]
    metrics: Sequence[Score]
    settings: Mapping[str, Any] = field(default_factory=dict)
    not_computed: Sequence[NotComputed] = ()
    instruments: Mapping[str, Sequence[Mapping[str, str]]] = field(default_factory=dict)


def known_metrics(task: Task) -> tuple[str, ...]:
    """Return the groups of metrics that a task has."""
    return VQA_METRICS if task == "vqa" else REPORT_METRICS


def choose_metrics(task: Task, names: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics to compute: the named ones, or all if none is named.

    Raises:
        AnswersError: the task has no such metric.
    """
    known = known_metrics(task)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise AnswersError(f"--metrics {', '.join(unknown)}: task {task} has {', '.join(known)}")
    return tuple(name for name in known if name in names) if names else known


def score(
    predictions: Path,
    manifest: Path,
    task: Task,
    *,
    allow_missing: bool = False,
    metrics: Sequence[str] = (),
    paths: "InstrumentPaths | None" = None,
) -> Scores:
    """Score predictions against a manifest; the order of either file does not matter.

    Args:
        predictions: predictions file, JSON Lines.
        manifest: the manifest they answer.
        task: "vqa" or "report".
        allow_missing: score records without an answer as empty answers, instead of refusing.
        metrics: which to compute, of `known_metrics`; all if empty.
        paths: where the models are that metrics of reports need.

    Raises:
        AnswersError: the two do not fit, see `read_answers` and `join`, or a model cannot be used.
        ManifestError: the manifest is broken.
    """
    chosen = choose_metrics(task, metrics)
    answers, pairs = read_pairs(predictions, manifest, task, allow_missing=allow_missing)
    instruments = instruments_for(task, chosen, paths)
    scored = task_scores(pairs, task, chosen, instruments, named=bool(metrics))
    return summarise(predictions, manifest, task, answers, pairs, scored, instruments)


def task_scores(
    pairs: Sequence[Pair],
    task: Task,
    metrics: Sequence[str],
    instruments: "Instruments | None",
    *,
    named: bool = False,
) -> TaskScores:
    """Score pairs.

    Args:
        pairs: in the order of the manifest.
        task: "vqa" or "report".
        metrics: which to compute, of `known_metrics`.
        instruments: models of reports; None for questions.
        named: whether the user named the metrics; those without samples are then reported.
    """
    wordnet, not_computed = None, []
    if task == "vqa":
        statistics, counts = vqa_scores(pairs)
        kinds = {kind for pair in pairs if (kind := question_type(pair)) is not None}
        definitions = vqa_definitions(kinds)
    else:
        # Inside: nltk and torch take seconds to import, which VQA scores need not pay.
        from .report_scores import report_scores

        assert instruments is not None
        scored = report_scores(pairs, metrics, instruments)
        statistics, counts, wordnet = dict(scored.samples), dict(scored.counts), scored.wordnet
        definitions = _report_definitions(wordnet, instruments)
        not_computed = [NotComputed(name=n, reason=why) for n, why in instruments.missing.items()]
    applied = {
        key: definition
        for key, definition in definitions.items()
        if definition.group in metrics and key in statistics
    }
    if named:
        known = {definition.group for definition in applied.values()}
        known |= {absent.name for absent in not_computed}
        not_computed += [
            NotComputed(name=group, reason=_NO_SAMPLES.get(group, "applies to no record"))
            for group in metrics
            if group not in known
        ]
    undefined = [key for key in applied if math.isnan(statistics[key].value())]
    return TaskScores(
        statistics=statistics,
        definitions={key: value for key, value in applied.items() if key not in undefined},
        counts=counts,
        wordnet=wordnet,
        not_computed=not_computed + [_undefined(key, statistics[key]) for key in undefined],
    )


def summarise(
    predictions: Path,
    manifest: Path,
    task: Task,
    answers: Sequence[Answer],
    pairs: Sequence[Pair],
    scored: TaskScores,
    instruments: "Instruments | None",
) -> Scores:
    """Return the scores file of answers that were scored sample by sample.

    Args:
        predictions: file of the answers.
        manifest: that they answer.
        task: "vqa" or "report".
        answers: of the file.
        pairs: the same, joined with the manifest.
        scored: what the pairs score.
        instruments: models that were used.
    """
    records = [pair.record for pair in pairs]
    clusters = cluster_records(records)
    return Scores(
        task=task,
        manifest=identify_file(manifest),
        predictions=identify_file(predictions),
        medalign=__version__,
        decoder=answers[0].decoder,
        seeds=sorted({answer.seed for answer in answers}),
        wordnet=scored.wordnet,
        counts=_counts(pairs, answers) | dict(scored.counts),
        interval={
            "level": LEVEL,
            "method": "percentile bootstrap over clusters of samples",
            "resamples": RESAMPLES,
            "seed": SEED,
            "clustered_by": clustered_by(records),
            "clusters": int(clusters.max()) + 1,
        },
        metrics=_summarise(scored, clusters),
        settings=answers[0].settings,
        not_computed=scored.not_computed,
        instruments={} if instruments is None else instruments.files,
    )


def read_pairs(
    predictions: Path, manifest: Path, task: Task, *, allow_missing: bool
) -> tuple[list[Answer], list[Pair]]:
    """Read and join a predictions file and its manifest.

    Raises:
        AnswersError: as `score`.
        ManifestError: the manifest is broken.
    """
    answers = read_answers(predictions)
    other = next((answer for answer in answers if answer.settings != answers[0].settings), None)
    if other is not None:
        raise AnswersError(
            f"{predictions}: answers {answers[0].id!r} and {other.id!r} come from different "
            "settings of the decoder; score each setting's file by itself"
        )
    records = read_manifest(manifest)
    try:
        return answers, join(answers, records, task, allow_missing=allow_missing)
    except AnswersError as error:
        raise AnswersError(f"{predictions} against {manifest}: {error}") from None


def instruments_for(
    task: Task, metrics: Sequence[str], paths: "InstrumentPaths | None"
) -> "Instruments | None":
    """Open the models that metrics need; None for a task that needs none.

    Raises:
        AnswersError: a model cannot be used, or is given for a task that needs none.
    """
    if task == "vqa":
        if paths is not None and paths != type(paths)():
            raise AnswersError(
                "--task vqa has no metric that needs a model; leave out the models of reports"
            )
        return None
    from .metric_models.locate import InstrumentPaths, open_instruments

    return open_instruments(metrics, paths or InstrumentPaths())


def scale(unit: Unit) -> float:
    """Return the factor that brings a statistic into a unit."""
    return 100.0 if unit == "percent" else 1.0


def write_texts(predictions: Sequence[Path], manifest: Path, out: Path) -> int:
    """Write every distinct predicted and reference report that is not blank, as a JSON array.

    Args:
        predictions: files that answer the manifest.
        manifest: holds the references.
        out: file to write.

    Returns:
        How many texts were written.

    Raises:
        AnswersError: as `score`; a record without an answer is left out.
        ManifestError: the manifest is broken.
    """
    from .metrics.report_text import PROTOCOLS, clinical_text

    texts: set[str] = set()
    for path in predictions:
        _, pairs = read_pairs(path, manifest, "report", allow_missing=True)
        texts |= {pair.reference for pair in pairs}
        texts |= {clinical_text(pair.prediction, p) for pair in pairs for p in PROTOCOLS}
    distinct = sorted(text for text in texts if text.strip())
    write_result(out, json.dumps(distinct, indent=1, ensure_ascii=False) + "\n")
    return len(distinct)


def _report_definitions(wordnet: str | None, instruments: "Instruments") -> dict[Key, Definition]:
    bertscore, radgraph = instruments.bertscore, instruments.radgraph
    return report_definitions(
        wordnet,
        "" if bertscore is None else bertscore.label,
        "medalign" if radgraph is None else radgraph.package,
    )


def _undefined(key: Key, statistic: Statistic) -> NotComputed:
    protocol, name = key
    reason = "is undefined: nothing to count"
    if np.isnan(statistic.terms).any():
        reason = "has samples whose value is not a number: the model that computes it is damaged"
    return NotComputed(name=f"{name} ({protocol})", reason=reason)


def _summarise(scored: TaskScores, clusters: Int64) -> list[Score]:
    summary = []
    for (protocol, name), definition in scored.definitions.items():
        statistic = scored.statistics[protocol, name]
        times = scale(definition.unit)
        count = len(set(clusters[statistic.samples].tolist()))
        low, high = bootstrap_interval(statistic, clusters)
        summary.append(
            Score(
                name=name,
                protocol=protocol,
                value=times * statistic.value(),
                interval=(times * low, times * high) if count > 1 else None,
                unit=definition.unit,
                n=len(statistic.samples),
                definition=definition.sentence,
                package=definition.package,
                version=package_version(definition.package),
                group=definition.group,
                clusters=count,
                better=definition.better,
            )
        )
    return summary


def _counts(pairs: Sequence[Pair], answers: Sequence[Answer]) -> dict[str, int]:
    return {
        "records": len(pairs),
        "answers": len(answers),
        "missing": sum(pair.missing for pair in pairs),
        "blank_answers": sum(not answer.text.strip() for answer in answers),
    }
