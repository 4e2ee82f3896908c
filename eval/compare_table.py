"""Print a comparison for people: both values, their difference, and how sure it is."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .compare import Compared, Comparison
from .score_table import few_clusters, not_computed, table_of


def print_comparison(found: Comparison, out: Path | None) -> None:
    """Print tables and remarks to stdout."""
    console = Console()
    for letter, source in (("A", found.a), ("B", found.b)):
        line = f"{letter}: {source['path']}, decoder {source['decoder']}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    level = f"{100 * found.tests['level']:g}%"
    tables: dict[str, list[Compared]] = {}
    for metric in found.metrics:
        tables.setdefault(table_of(metric.group), []).append(metric)
    for title, metrics in tables.items():
        console.print(_table(title, metrics, level))
    for line in (*not_computed(found.not_computed), *_remarks(found, out)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(title: str, metrics: Sequence[Compared], level: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for column in ("n", "A", "B", rf"B - A \[{level}]", "p", "right only in A : B"):
        table.add_column(column, justify="right", no_wrap=column != "right only in A : B")
    protocol = ""
    for metric in sorted(metrics, key=lambda each: each.protocol, reverse=True):
        if metric.protocol != protocol:
            protocol = metric.protocol
            table.add_section()
            table.add_row(f"[bold]{protocol}[/bold]")
        table.add_row(*_row(metric))
    return table


def _row(metric: Compared) -> list[str]:
    digits = 1 if metric.unit == "percent" else 2
    low, high = metric.interval
    difference = f"{metric.difference:+.{digits}f}"
    return [
        metric.name,
        str(metric.n),
        f"{metric.a:.{digits}f}",
        f"{metric.b:.{digits}f}",
        rf"{difference} \[{low:+.{digits}f}, {high:+.{digits}f}]",
        _p(metric.p),
        _mcnemar(metric),
    ]


def _mcnemar(metric: Compared) -> str:
    test = metric.mcnemar
    return "" if test is None else f"{test.only_a} : {test.only_b}, p {_p(test.p)}"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _remarks(found: Comparison, out: Path | None) -> list[str]:
    lines = [
        few_clusters(found.tests["clusters"], found.tests["clustered_by"]),
        f"p: permutation of A and B by cluster, each of {len(found.metrics)} metrics by itself; "
        "after the colon McNemar's exact p, which takes samples as independent",
    ]
    return [*lines, f"definitions, versions and digests: {out}"] if out is not None else lines
