"""Everything that one predictions file scores: statistics, what they mean, what is missing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .answers import AnswersError, Pair, Task
from .metrics.definitions import VQA_METRICS, Definition, Key, vqa_definitions
from .metrics.report_definitions import REPORT_METRICS, report_definitions
from .metrics.statistic import Statistic
from .sample_scores import question_type, vqa_scores

if TYPE_CHECKING:
    from .instruments.opened import Instruments


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
    """Say which metric has no value, and why.

    Attributes:
        name: of the metric, or of all that `--metrics` calls by this name.
        reason: "needs X at Y", or what leaves it undefined.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScores:
    """Hold what one predictions file scores.

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


def known_metrics(task: Task) -> tuple[str, ...]:
    """Return what can be chosen of a task's metrics."""
    return VQA_METRICS if task == "vqa" else REPORT_METRICS


def choose_metrics(task: Task, names: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics to compute: the named ones, or all if none is named.

    Raises:
        AnswersError: the task has no such metric.
    """
    known = known_metrics(task)
    strange = [name for name in names if name not in known]
    if strange:
        raise AnswersError(f"--metrics {', '.join(strange)}: task {task} has {', '.join(known)}")
    return tuple(name for name in known if name in names) if names else known


def task_scores(
    pairs: Sequence[Pair],
    task: Task,
    wanted: Sequence[str],
    instruments: "Instruments | None",
    *,
    named: bool = False,
) -> TaskScores:
    """Score pairs.

    Args:
        pairs: in the order of the manifest.
        task: "vqa" or "report".
        wanted: of `known_metrics`.
        instruments: what reports need; None for questions.
        named: whether a user asked for `wanted`, and so is told of those without samples.
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
        scored = report_scores(pairs, wanted, instruments)
        statistics, counts, wordnet = dict(scored.samples), dict(scored.counts), scored.wordnet
        definitions = _report_definitions(wordnet, instruments)
        not_computed = [NotComputed(name=n, reason=why) for n, why in instruments.missing.items()]
    found = {
        key: definition
        for key, definition in definitions.items()
        if definition.group in wanted and key in statistics
    }
    if named:
        known = {of.group for of in found.values()} | {each.name for each in not_computed}
        not_computed += [
            NotComputed(name=group, reason=_NO_SAMPLES.get(group, "applies to no record"))
            for group in wanted
            if group not in known
        ]
    undefined = [key for key in found if math.isnan(statistics[key].value())]
    return TaskScores(
        statistics=statistics,
        definitions={key: of for key, of in found.items() if key not in undefined},
        counts=counts,
        wordnet=wordnet,
        not_computed=not_computed + [_undefined(key, statistics[key]) for key in undefined],
    )


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
        reason = "has samples whose value is not a number: what computes it is damaged"
    return NotComputed(name=f"{name} ({protocol})", reason=reason)
