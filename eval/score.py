"""Score a predictions file against its manifest, with intervals and definitions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..pipeline.manifest import read_manifest
from .answers import Answer, AnswersError, Pair, Task, join, read_answers
from .clusters import cluster_records, clustered_by
from .metrics.definitions import Better, Unit
from .metrics.interval import LEVEL, RESAMPLES, SEED, Interval, bootstrap_interval
from .metrics.statistic import Int64
from .result_file import identify_file, package_version
from .task_scores import NotComputed, TaskScores, choose_metrics, task_scores

if TYPE_CHECKING:
    from .instruments.opened import Instruments
    from .instruments.places import InstrumentPaths


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Hold one metric: value and interval in its unit, and what they mean.

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
        group: what `--metrics` calls it and its neighbours.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Hold everything a scores file says.

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
        settings: of the decoder, as far as the predictions say.
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
        allow_missing: take records without an answer as answered with nothing, instead of refusing.
        metrics: which to compute, of `task_scores.known_metrics`; all if empty.
        paths: where the models are that metrics of reports need.

    Raises:
        AnswersError: the two do not fit, see `answers.read_answers` and `answers.join`, or a
            model cannot be used.
        ManifestError: the manifest is broken.
    """
    wanted = choose_metrics(task, metrics)
    answers, pairs = read_pairs(predictions, manifest, task, allow_missing=allow_missing)
    instruments = instruments_for(task, wanted, paths)
    scored = task_scores(pairs, task, wanted, instruments, named=bool(metrics))
    return summarise(predictions, manifest, task, answers, pairs, scored, instruments)


def summarise(
    predictions: Path,
    manifest: Path,
    task: Task,
    answers: Sequence[Answer],
    pairs: Sequence[Pair],
    scored: TaskScores,
    instruments: "Instruments | None",
) -> Scores:
    """Return what a scores file says of answers that were scored sample by sample.

    Args:
        predictions: the file they were read from.
        manifest: that they answer.
        task: "vqa" or "report".
        answers: of the file.
        pairs: the same, joined with the manifest.
        scored: what the pairs score.
        instruments: the models that were used.
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
    other = next((a for a in answers if a.settings != answers[0].settings), None)
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
    task: Task, wanted: Sequence[str], paths: "InstrumentPaths | None"
) -> "Instruments | None":
    """Open the models that the wanted metrics need; None for a task that needs none.

    Raises:
        AnswersError: a model cannot be used, or is given for a task that needs none.
    """
    from .instruments.places import InstrumentPaths

    if task == "vqa":
        if paths not in (None, InstrumentPaths()):
            raise AnswersError(
                "--task vqa has no metric that needs a model; leave out the models of reports"
            )
        return None
    from .instruments.opened import open_instruments

    return open_instruments(wanted, paths or InstrumentPaths())


def scale(unit: Unit) -> float:
    """Return what a statistic is multiplied with to be in a unit."""
    return 100.0 if unit == "percent" else 1.0


def _summarise(scored: TaskScores, clusters: Int64) -> list[Score]:
    found = []
    for (protocol, name), definition in scored.definitions.items():
        statistic = scored.statistics[protocol, name]
        times = scale(definition.unit)
        count = len(set(clusters[statistic.places].tolist()))
        low, high = bootstrap_interval(statistic, clusters)
        found.append(
            Score(
                name=name,
                protocol=protocol,
                value=times * statistic.value(),
                interval=(times * low, times * high) if count > 1 else None,
                unit=definition.unit,
                n=len(statistic.places),
                definition=definition.sentence,
                package=definition.package,
                version=package_version(definition.package),
                group=definition.group,
                clusters=count,
                better=definition.better,
            )
        )
    return found


def _counts(pairs: Sequence[Pair], answers: Sequence[Answer]) -> dict[str, int]:
    return {
        "records": len(pairs),
        "answers": len(answers),
        "missing": sum(pair.missing for pair in pairs),
        "blank_answers": sum(not answer.text.strip() for answer in answers),
    }
