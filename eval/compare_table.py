"""Print a comparison for people: both values, their difference, and how sure it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .compare import Compared, Comparison
from .score_table import LOWER_NOTE, few_clusters, not_computed, shown_name, table_of
from .shown_numbers import interval, value


def print_comparison(found: Comparison, out: Path | None) -> None:
    """Print tables and remarks to stdout."""
    console = Console()
    for letter, source in (("A", found.a), ("B", found.b)):
        line = f"{letter}: {source['path']}, decoder {source['decoder']}{_settings(source)}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    level = f"{100 * found.tests['level']:g}%"
    tables: dict[str, list[Compared]] = {}
    for metric in found.metrics:
        tables.setdefault(table_of(metric.group), []).append(metric)
    for title, metrics in tables.items():
        console.print(_table(title, metrics, level))
    for line in (*not_computed(found.not_computed), *_remarks(found, out)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _settings(source: Mapping[str, Any]) -> str:
    said = ", ".join(f"{name} {value}" for name, value in source["settings"].items())
    return f" ({said})" if said else ""


def _table(title: str, metrics: Sequence[Compared], level: str) -> Table:
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
                table.add_row(*_row(metric))
    return table


def _row(metric: Compared) -> list[str]:
    test, unit = metric.mcnemar, metric.unit
    difference = value(metric.difference, unit, signed=True)
    return [
        shown_name(metric),
        str(metric.n),
        value(metric.a, unit),
        value(metric.b, unit),
        escape(f"{difference} {interval(metric.interval, unit, signed=True)}"),
        "<0.001" if metric.p < 0.001 else f"{metric.p:.3f}",
        "" if test is None else f"{test.only_a} : {test.only_b}",
    ]


def _same_file(found: Comparison) -> list[str]:
    """Say that a file was compared with itself, which is rarely meant."""
    if found.a["sha256"] != found.b["sha256"]:
        return []
    return ["A and B are the same file, byte for byte: every difference is 0 by itself"]


def _missing(counts: Mapping[str, int]) -> list[str]:
    if not counts["missing"]:
        return []
    return [
        f"missing {counts['missing']} of {counts['records']} records: neither file answers them, "
        "both count as answering nothing"
    ]


def _remarks(found: Comparison, out: Path | None) -> list[str]:
    lines = [
        *_same_file(found),
        *_missing(found.counts),
        *few_clusters(found.metrics, found.tests["clusters"], found.tests["clustered_by"]),
        "p: two-sided permutation test by cluster, each metric by itself; not corrected for "
        f"there being {len(found.metrics)}",
    ]
    if any(metric.mcnemar is not None for metric in found.metrics):
        lines.append(
            "A : B: samples that count in A only and in B only; McNemar's p of these: --out, --json"
        )
    if any(metric.better == "lower" for metric in found.metrics):
        lines.append(LOWER_NOTE)
    return [*lines, f"definitions, versions and digests: {out}"] if out is not None else lines
