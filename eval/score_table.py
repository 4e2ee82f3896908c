"""Print scores for people: a table for every group of metrics, and what is missing."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .clusters import FEW
from .score import Score, Scores
from .shown_numbers import interval, value
from .task_scores import NotComputed

if TYPE_CHECKING:
    from .compare import Compared

WORDS = frozenset({"bleu", "rouge_l", "meteor"})
"""Groups of report metrics that share a table."""

ANSWERS = frozenset({"open", "closed", "choice", "overall"})
"""Groups of VQA metrics that share a table."""

LOWER = "\N{DOWNWARDS ARROW}"
"""Marks a metric of which less is better."""

LOWER_NOTE = f"{LOWER} lower is better"
"""What the mark of a name means."""


def print_scores(scores: Scores, out: Path) -> None:
    """Print tables and remarks to stdout."""
    console = Console()
    level = f"{100 * scores.interval['level']:g}%"
    console.print(
        f"{scores.task}, decoder {scores.decoder}: percent \\[{level} interval]", highlight=False
    )
    for title, metrics in grouped(scores.metrics).items():
        console.print(_table(title, metrics))
    for line in not_computed(scores.not_computed):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in _remarks(scores, out):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def table_of(group: str) -> str:
    """Return the title of the table that a group of metrics is shown in."""
    if group in WORDS:
        return "words"
    return "answers" if group in ANSWERS else group


def grouped(metrics: Sequence[Score]) -> dict[str, list[Score]]:
    """Return the metrics of every table, in order."""
    tables: dict[str, list[Score]] = {}
    for metric in metrics:
        tables.setdefault(table_of(metric.group), []).append(metric)
    return tables


def not_computed(missing: Sequence[NotComputed]) -> list[str]:
    """Return a line for every metric without a value."""
    return [f"{each.name}: not computed: {each.reason}" for each in missing]


def few_clusters(
    metrics: "Sequence[Score] | Sequence[Compared]", clusters: int, clustered_by: str
) -> list[str]:
    """Say how many clusters there are, and where few of them make an interval rough."""
    said = f"clusters: {clusters} (by {clustered_by})"
    rough = f"below {FEW}, intervals are rough and rather too narrow"
    if clusters < FEW:
        return [f"{said}; {rough}"]
    few: dict[str, list[int]] = {}
    for each in metrics:
        if each.clusters < FEW:
            few.setdefault(table_of(each.group), []).append(each.clusters)
    if not few:
        return [said]
    ranges = [
        f"{min(n)} of {title}" if len(set(n)) == 1 else f"{min(n)} to {max(n)} of {title}"
        for title, n in few.items()
    ]
    return [f"{said}; fewer under some metrics: {', '.join(ranges)}; {rough}"]


def shown_name(metric: "Score | Compared") -> str:
    """Return a metric's name without its table's, marked if lower is better."""
    name = metric.name.removeprefix(f"{metric.group}_")
    if metric.group in WORDS | ANSWERS:
        name = metric.name
    head, colon, kind = name.partition(": ")
    name = f"  of {kind}" if colon else head
    return f"{name} {LOWER}" if metric.better == "lower" else name


def _table(title: str, metrics: Sequence[Score]) -> Table:
    """Return one row per metric and one column per protocol."""
    table = Table(title=title, title_justify="left")
    protocols = list(dict.fromkeys(metric.protocol for metric in metrics))
    table.add_column("metric")
    table.add_column("n", justify="right")
    for protocol in protocols:
        table.add_column(protocol, justify="right", no_wrap=True)
    found = {(metric.name, metric.protocol): metric for metric in metrics}
    shown = {metric.name: shown_name(metric) for metric in metrics}
    for name, n in {metric.name: metric.n for metric in metrics}.items():
        cells = [_cell(found.get((name, protocol))) for protocol in protocols]
        table.add_row(shown[name], str(n), *cells)
    return table


def _cell(metric: Score | None) -> str:
    if metric is None:
        return "-"
    return escape(f"{value(metric.value, metric.unit)} {interval(metric.interval, metric.unit)}")


def _remarks(scores: Scores, out: Path) -> list[str]:
    counts = ", ".join(f"{name} {count}" for name, count in scores.counts.items() if count)
    lines = [f"counts: {counts}"]
    if any(metric.better == "lower" for metric in scores.metrics):
        lines.append(LOWER_NOTE)
    lines += few_clusters(
        scores.metrics, scores.interval["clusters"], scores.interval["clustered_by"]
    )
    if any(metric.group == "meteor" for metric in scores.metrics):
        used = f"WordNet {scores.wordnet}" if scores.wordnet else "no WordNet found, no synonyms"
        lines.append(f"METEOR: {used}")
    lines.append(f"definitions, versions and digests: {out}")
    return lines
