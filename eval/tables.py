"""Print scores and comparisons for people, with remarks on what is missing or uncertain."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .clusters import FEW
from .compare import Compared, Comparison
from .metrics.definitions import Key, Unit
from .metrics.interval import Interval
from .score import NotComputed, Score, Scores

Metric = TypeVar("Metric", Score, Compared)

HEADLINE: frozenset[Key] = frozenset(
    {
        ("llava-med", "open_recall"),
        ("llava-med", "closed_accuracy"),
        ("strict", "closed_accuracy"),
        ("strict", "choice_accuracy"),
        ("strict", "overall_accuracy"),
        ("strict", "hallucination_rate"),
        ("medalign", "bleu"),
        ("medalign", "rouge_l"),
        ("medalign", "meteor"),
        ("medalign", "bertscore_f1"),
        ("medalign", "chexbert_similarity"),
        ("medalign", "radgraph_combined"),
        ("medalign", "ratescore"),
    }
)
"""(protocol, name) of the metrics that a table shows first, or alone."""

WORDS = frozenset({"bleu", "rouge_l", "meteor"})
"""Groups of report metrics that share a table."""

ANSWERS = frozenset({"open", "closed", "choice", "overall"})
"""Groups of VQA metrics that share a table."""

ALONE = "one cluster"
"""In the place of an interval: one cluster of samples shows no variation."""

LOWER = "\N{DOWNWARDS ARROW}"
"""Marks a metric of which less is better."""

LOWER_NOTE = f"{LOWER} lower is better"
"""Explains the mark."""


def print_scores(scores: Scores, out: Path) -> None:
    """Print tables and remarks to stdout."""
    console = Console()
    level = f"{100 * scores.interval['level']:g}%"
    console.print(
        f"{scores.task}, decoder {scores.decoder}: percent \\[{level} interval]", highlight=False
    )
    for title, metrics in grouped(scores.metrics).items():
        console.print(_table_of_scores(title, metrics))
    _print_lines(console, [*not_computed(scores.not_computed), *_remarks_on_scores(scores, out)])


def print_comparison(comparison: Comparison, out: Path | None) -> None:
    """Print tables and remarks to stdout."""
    console = Console()
    for letter, source in (("A", comparison.a), ("B", comparison.b)):
        line = f"{letter}: {source['path']}, decoder {source['decoder']}{_settings(source)}"
        _print_lines(console, [line])
    level = f"{100 * comparison.tests['level']:g}%"
    for title, metrics in grouped(comparison.metrics).items():
        console.print(_table_of_differences(title, metrics, level))
    remarks = [*not_computed(comparison.not_computed), *_remarks_on_differences(comparison)]
    if out is not None:
        remarks.append(f"definitions, versions and digests: {out}")
    _print_lines(console, remarks)


def headline(metrics: Sequence[Score]) -> list[Score]:
    """Return the metrics that a table shows first; all of them where it has none of these."""
    return [metric for metric in metrics if metric.key in HEADLINE] or list(metrics)


def grouped(metrics: Sequence[Metric]) -> dict[str, list[Metric]]:
    """Return the metrics of every table by its title, in order."""
    tables: dict[str, list[Metric]] = {}
    for metric in metrics:
        tables.setdefault(table_of(metric.group), []).append(metric)
    return tables


def table_of(group: str) -> str:
    """Return the title of the table that shows a group of metrics."""
    if group in WORDS:
        return "words"
    return "answers" if group in ANSWERS else group


def labels(files: Sequence[Path], decoders: Sequence[str]) -> list[str]:
    """Return a name for every file: its decoder, with the file's name where decoders repeat."""
    if len(set(decoders)) == len(decoders):
        return list(decoders)
    names = [f"{path.stem} ({decoder})" for path, decoder in zip(files, decoders, strict=True)]
    if len(set(names)) == len(names):
        return names
    return [f"{path} ({decoder})" for path, decoder in zip(files, decoders, strict=True)]


def value(number: float, unit: Unit, *, signed: bool = False) -> str:
    """Return a number with the digits of its unit; a rounded zero has no minus."""
    digits = 1 if unit == "percent" else 2
    return f"{round(number, digits) + 0.0:{'+' if signed else ''}.{digits}f}"


def interval(ends: Interval, unit: Unit, *, signed: bool = False, pattern: str = "[{}, {}]") -> str:
    """Return an interval as text.

    Args:
        ends: low and high, None where all samples are of one cluster.
        unit: of both.
        signed: write a plus, too.
        pattern: takes both ends.
    """
    if ends is None:
        return f"[{ALONE}]" if pattern.startswith("[") else ALONE
    return pattern.format(*(value(end, unit, signed=signed) for end in ends))


def not_computed(metrics: Sequence[NotComputed]) -> list[str]:
    """Return a line for every metric without a value."""
    return [f"{metric.name}: not computed: {metric.reason}" for metric in metrics]


def few_clusters(
    metrics: Sequence[Score] | Sequence[Compared], clusters: int, clustered_by: str
) -> list[str]:
    """Return the number of clusters, with a warning where few of them make an interval rough."""
    line = f"clusters: {clusters} (by {clustered_by})"
    rough = f"below {FEW}, intervals are rough and rather too narrow"
    if clusters < FEW:
        return [f"{line}; {rough}"]
    few: dict[str, list[int]] = {}
    for metric in metrics:
        if metric.clusters < FEW:
            few.setdefault(table_of(metric.group), []).append(metric.clusters)
    if not few:
        return [line]
    ranges = [
        f"{min(n)} of {title}" if len(set(n)) == 1 else f"{min(n)} to {max(n)} of {title}"
        for title, n in few.items()
    ]
    return [f"{line}; fewer under some metrics: {', '.join(ranges)}; {rough}"]


def lower_note(metrics: Iterable[Score] | Iterable[Compared]) -> list[str]:
    """Return what the mark means, if one of the metrics has it."""
    return [LOWER_NOTE] if any(metric.better == "lower" for metric in metrics) else []


def _print_lines(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _name(metric: Score | Compared) -> str:
    """Return a metric's name without its table's, marked if lower is better."""
    name = metric.name.removeprefix(f"{metric.group}_")
    if metric.group in WORDS | ANSWERS:
        name = metric.name
    head, colon, kind = name.partition(": ")
    name = f"  of {kind}" if colon else head
    return f"{name} {LOWER}" if metric.better == "lower" else name


def _table_of_scores(title: str, metrics: Sequence[Score]) -> Table:
    """Return one row per metric and one column per protocol."""
    table = Table(title=title, title_justify="left")
    protocols = list(dict.fromkeys(metric.protocol for metric in metrics))
    table.add_column("metric")
    table.add_column("n", justify="right")
    for protocol in protocols:
        table.add_column(protocol, justify="right", no_wrap=True)
    by_key = {metric.key: metric for metric in metrics}
    for name, last in {metric.name: metric for metric in metrics}.items():
        cells = [_score_cell(by_key.get((protocol, name))) for protocol in protocols]
        table.add_row(_name(last), str(last.n), *cells)
    return table


def _score_cell(metric: Score | None) -> str:
    if metric is None:
        return "-"
    return escape(f"{value(metric.value, metric.unit)} {interval(metric.interval, metric.unit)}")


def _remarks_on_scores(scores: Scores, out: Path) -> list[str]:
    counts = ", ".join(f"{name} {count}" for name, count in scores.counts.items() if count)
    clusters = scores.interval
    lines = [
        f"counts: {counts}",
        *lower_note(scores.metrics),
        *few_clusters(scores.metrics, clusters["clusters"], clusters["clustered_by"]),
    ]
    if any(metric.group == "meteor" for metric in scores.metrics):
        wordnet = f"WordNet {scores.wordnet}" if scores.wordnet else "no WordNet found, no synonyms"
        lines.append(f"METEOR: {wordnet}")
    return [*lines, f"definitions, versions and digests: {out}"]


def _settings(source: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} {setting}" for name, setting in source["settings"].items())
    return f" ({settings})" if settings else ""


def _table_of_differences(title: str, metrics: Sequence[Compared], level: str) -> Table:
    # Without lines between columns it fits a terminal of 80 columns.
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("metric", overflow="fold")
    for column in ("n", "A", "B", rf"B - A \[{level}]", "p", "A : B"):
        table.add_column(column, justify="right", no_wrap=True)
    for protocol in dict.fromkeys(metric.protocol for metric in metrics):
        table.add_section()
        table.add_row(f"[bold]{protocol}[/bold]")
        for metric in metrics:
            if metric.protocol == protocol:
                table.add_row(*_difference_row(metric))
    return table


def _difference_row(metric: Compared) -> list[str]:
    test, unit = metric.mcnemar, metric.unit
    difference = value(metric.difference, unit, signed=True)
    return [
        _name(metric),
        str(metric.n),
        value(metric.a, unit),
        value(metric.b, unit),
        escape(f"{difference} {interval(metric.interval, unit, signed=True)}"),
        "<0.001" if metric.p < 0.001 else f"{metric.p:.3f}",
        "" if test is None else f"{test.only_a} : {test.only_b}",
    ]


def _remarks_on_differences(comparison: Comparison) -> list[str]:
    lines, counts, tests = [], comparison.counts, comparison.tests
    if comparison.a["sha256"] == comparison.b["sha256"]:  # rarely meant
        lines.append("A and B are the same file, byte for byte: every difference is 0")
    if counts["missing"]:
        lines.append(
            f"missing {counts['missing']} of {counts['records']} records: neither file answers "
            "them, and both score as empty answers"
        )
    lines += few_clusters(comparison.metrics, tests["clusters"], tests["clustered_by"])
    lines.append(
        "p: two-sided permutation test by cluster, each metric by itself; not corrected for "
        f"there being {len(comparison.metrics)}"
    )
    if any(metric.mcnemar is not None for metric in comparison.metrics):
        lines.append(
            "A : B: samples that count in A only and in B only; McNemar's p of these: --out, --json"
        )
    return lines + lower_note(comparison.metrics)
