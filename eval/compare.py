"""Compare two predictions files over one manifest, metric by metric, with paired tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from .clusters import cluster_records, clustered_by
from .metrics.definitions import Better, Key, Unit
from .metrics.interval import LEVEL, RESAMPLES, SEED, Interval
from .metrics.paired import SWAPS, McNemar, compare_statistics
from .metrics.statistic import Int64
from .predictions import Answer, AnswersError, Task, listed, refuse_absent
from .result_file import identify_file, package_version
from .score import (
    NotComputed,
    TaskScores,
    choose_metrics,
    instruments_for,
    read_pairs,
    scale,
    task_scores,
)

if TYPE_CHECKING:
    from .metric_models.locate import InstrumentPaths


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One metric of two files.

    Attributes:
        name: of the metric.
        protocol: by which rules.
        group: name of `--metrics` for it and its neighbours.
        unit: of values and difference.
        n: samples it applies to, the same in both files.
        clusters: patients or images they belong to.
        a: value of the first file.
        b: value of the second.
        difference: b - a.
        interval: paired bootstrap interval of the difference; None if all samples are of one
            cluster.
        p: of the permutation test.
        exact: whether that made all swaps, or a random sample of them.
        mcnemar: of a metric that counts every sample as one or not at all.
        better: which direction is better: "higher", "lower" or "neither".
        definition: of the metric.
        package: that computes it.
        version: of the package.
    """

    name: str
    protocol: str
    group: str
    unit: Unit
    n: int
    clusters: int
    a: float
    b: float
    difference: float
    interval: Interval
    p: float
    exact: bool
    mcnemar: McNemar | None
    better: Better
    definition: str
    package: str
    version: str

    @property
    def key(self) -> Key:
        """Protocol and name, which no two metrics share."""
        return self.protocol, self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything in a comparison file.

    Attributes:
        task: "vqa" or "report".
        manifest: path and sha256.
        a: path, sha256, decoder, its settings and seeds of the first predictions.
        b: of the second.
        counts: how many records, answers in each file, and records that neither answers.
        medalign: version that compared.
        tests: how intervals and p-values were computed.
        metrics: what was compared.
        not_computed: metrics without a value, and what they need.
        instruments: metric -> path and sha256 of the models and annotations it used.
    """

    task: Task
    manifest: Mapping[str, str]
    a: Mapping[str, Any]
    b: Mapping[str, Any]
    counts: Mapping[str, int]
    medalign: str
    tests: Mapping[str, Any]
    metrics: Sequence[Compared]
    not_computed: Sequence[NotComputed]
    instruments: Mapping[str, Sequence[Mapping[str, str]]]


def compare(
    a: Path,
    b: Path,
    manifest: Path,
    task: Task,
    *,
    allow_missing: bool = False,
    metrics: Sequence[str] = (),
    paths: "InstrumentPaths | None" = None,
) -> Comparison:
    """Compare two predictions files; answers are joined by id, whatever their order.

    Args:
        a: first predictions file.
        b: second.
        manifest: the manifest both answer.
        task: "vqa" or "report".
        allow_missing: score records that neither file answers as empty answers.
        metrics: which to compare; all if empty.
        paths: where the models are that metrics of reports need.

    Raises:
        AnswersError: a record is answered in one file only, or as `score`.
        ManifestError: the manifest is broken.
    """
    chosen = choose_metrics(task, metrics)
    answers_a, pairs_a = read_pairs(a, manifest, task, allow_missing=True)
    answers_b, pairs_b = read_pairs(b, manifest, task, allow_missing=True)
    refuse_unmatched(a, answers_a, b, answers_b)
    if not allow_missing:
        try:
            refuse_absent(pair.record.id for pair in pairs_a if pair.missing)
        except AnswersError as error:
            raise AnswersError(f"{a} and {b} against {manifest}: {error}") from None
    instruments = instruments_for(task, chosen, paths)
    scored_a = task_scores(pairs_a, task, chosen, instruments, named=bool(metrics))
    scored_b = task_scores(pairs_b, task, chosen, instruments, named=bool(metrics))
    records = [pair.record for pair in pairs_a]
    clusters = cluster_records(records)
    not_computed = {one.name: one for scored in (scored_a, scored_b) for one in scored.not_computed}
    return Comparison(
        task=task,
        manifest=identify_file(manifest),
        a=_source(a, answers_a),
        b=_source(b, answers_b),
        counts={
            "records": len(pairs_a),
            "answers": len(answers_a),
            "missing": sum(pair.missing for pair in pairs_a),
        },
        medalign=__version__,
        tests={
            "level": LEVEL,
            "interval": "paired percentile bootstrap over clusters of samples",
            "resamples": RESAMPLES,
            "p": "two-sided permutation test, the two files swapped by cluster",
            "swaps": SWAPS,
            "seed": SEED,
            "clustered_by": clustered_by(records),
            "clusters": int(clusters.max()) + 1,
            "corrected_for_several_metrics": False,
        },
        metrics=compare_scored(scored_a, scored_b, clusters),
        not_computed=list(not_computed.values()),
        instruments={} if instruments is None else instruments.files,
    )


def compare_scored(a: TaskScores, b: TaskScores, clusters: Int64) -> list[Compared]:
    """Compare what two files score, metric by metric.

    Args:
        a: of the first file.
        b: of the second, over the same samples in the same order.
        clusters: [samples] cluster of every sample.
    """
    compared = []
    for key, definition in a.definitions.items():
        if key not in b.definitions:  # undefined there, and named among what is not computed
            continue
        paired = compare_statistics(
            a.statistics[key], b.statistics[key], clusters, binary=definition.binary
        )
        times = scale(definition.unit)
        low, high = paired.interval
        protocol, name = key
        compared.append(
            Compared(
                name=name,
                protocol=protocol,
                group=definition.group,
                unit=definition.unit,
                n=len(a.statistics[key].samples),
                clusters=paired.clusters,
                a=times * paired.a,
                b=times * paired.b,
                difference=times * paired.difference,
                interval=(times * low, times * high) if paired.clusters > 1 else None,
                p=paired.p,
                exact=paired.exact,
                mcnemar=paired.mcnemar,
                better=definition.better,
                definition=definition.sentence,
                package=definition.package,
                version=package_version(definition.package),
            )
        )
    return compared


def refuse_unmatched(
    a: Path, answers_a: Sequence[Answer], b: Path, answers_b: Sequence[Answer]
) -> None:
    """Refuse two files if one answers a record that the other does not.

    Raises:
        AnswersError: names the first few such records.
    """
    ids_a, ids_b = {x.id for x in answers_a}, {x.id for x in answers_b}
    for path, own, other, theirs in ((a, ids_a, b, ids_b), (b, ids_b, a, ids_a)):
        only = sorted(own - theirs)
        if only:
            raise AnswersError(
                f"{len(only)} ids are answered in {path} and not in {other}: "
                f"{listed(map(repr, only))}; a paired comparison takes answers to the same records"
            )


def _source(path: Path, answers: Sequence[Answer]) -> dict[str, Any]:
    first, seeds = answers[0], sorted({answer.seed for answer in answers})
    own = {"decoder": first.decoder, "settings": first.settings, "seeds": seeds}
    return identify_file(path) | own
