"""Print scores for people: a table for every group of metrics, and what is missing."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .clusters import FEW
from .compare import Compared, Comparison
from .metrics.definitions import Key, Unit
from .metrics.interval import Interval
from .predictions import AnswersError
from .score import NotComputed, Score, Scores, choose_metrics
from .score_files import ScoresFile

HEADLINE: frozenset[Key] = frozenset(
    {
        ("llava-med", "open_recall"),
        ("llava-med", "closed_accuracy"),
        ("strict", "closed_accuracy"),
        ("strict", "choice_accuracy"),
        ("strict", "overall_accuracy"),
        ("strict", "hallucination_rate"),
        *(
            ("medalign", name)
            for name in (
                "bleu",
                "rouge_l",
                "meteor",
                "bertscore_f1",
                "chexbert_similarity",
                "radgraph_combined",
                "ratescore",
            )
        ),
    }
)
"""(protocol, name) of what is shown before, or without, all the rest."""


def headline(metrics: Sequence[Score]) -> list[Score]:
    """Return the metrics that are shown first; all of them where none of the usual ones is."""
    return [each for each in metrics if (each.protocol, each.name) in HEADLINE] or list(metrics)


def labels(files: Sequence[Path], decoders: Sequence[str]) -> list[str]:
    """Return a name for every file: the decoder's, or the file's own where decoders repeat."""
    if len(set(decoders)) == len(decoders):
        return list(decoders)
    named = [f"{p.stem} ({d})" for p, d in zip(files, decoders, strict=True)]
    if len(set(named)) == len(named):
        return named
    return [f"{path} ({d})" for path, d in zip(files, decoders, strict=True)]


ALONE = "one cluster"
"""Stands where an interval would: nothing varies between samples that hang together."""


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
        console.print(_score_table(title, metrics))
    for line in not_computed(scores.not_computed):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in _score_remarks(scores, out):
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


def _score_table(title: str, metrics: Sequence[Score]) -> Table:
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
        cells = [_score_cell(found.get((name, protocol))) for protocol in protocols]
        table.add_row(shown[name], str(n), *cells)
    return table


def _score_cell(metric: Score | None) -> str:
    if metric is None:
        return "-"
    return escape(f"{value(metric.value, metric.unit)} {interval(metric.interval, metric.unit)}")


def _score_remarks(scores: Scores, out: Path) -> list[str]:
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
        console.print(_comparison_table(title, metrics, level))
    for line in (*not_computed(found.not_computed), *_comparison_remarks(found, out)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _settings(source: Mapping[str, Any]) -> str:
    said = ", ".join(f"{name} {value}" for name, value in source["settings"].items())
    return f" ({said})" if said else ""


def _comparison_table(title: str, metrics: Sequence[Compared], level: str) -> Table:
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


def _comparison_remarks(found: Comparison, out: Path | None) -> list[str]:
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


Format = Literal["markdown", "latex", "csv"]
"""What a table can be written as."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Scores of several files side by side.

    Attributes:
        columns: metric -> its score in one of the files that have it, for its name and unit.
        rows: label of a file -> its scores by metric; one that it lacks is left out.
        remarks: what has no value and why.
    """

    columns: Mapping[Key, Score]
    rows: Mapping[str, Mapping[Key, Score]]
    remarks: Sequence[str]

    @classmethod
    def read(cls, files: Sequence[Path], metrics: Sequence[str] = ()) -> "Overview":
        """Read scores files of one manifest.

        Args:
            files: what `eval score` wrote; rows keep their order.
            metrics: groups of metrics, of `task_scores.known_metrics`; if empty, the ones that
                are looked for first.

        Raises:
            AnswersError: a file cannot be read, is given twice, is of another task or manifest
                than the first, the task has no such metric, or no file has any of them.
        """
        true = [path.resolve() for path in files]
        if twice := [path for k, path in enumerate(files) if true[k] in true[:k]]:
            raise AnswersError(f"{twice[0]}: is given twice")
        read = [ScoresFile.read(path) for path in files]
        for file in read[1:]:
            _refuse_other(read[0], file)
        choose_metrics(read[0].scores.task, metrics)
        shown = [file.chosen(metrics) for file in read]
        found = [each.metrics if metrics else headline(each.metrics) for each in shown]
        columns: dict[Key, Score] = {}
        for each in found:
            for metric in each:
                columns.setdefault((metric.protocol, metric.name), metric)
        if not columns:
            raise AnswersError(f"{files[0]}: holds no value of {', '.join(metrics) or 'a metric'}")
        names = labels(files, [each.decoder for each in shown])
        return cls(
            columns=columns,
            rows={
                name: {(metric.protocol, metric.name): metric for metric in each}
                for name, each in zip(names, found, strict=True)
            },
            remarks=_overview_remarks(names, shown, columns),
        )

    def heading(self, key: Key, separator: str = ", ") -> str:
        """Return what a column is called: name, protocol and number of samples."""
        metric = self.columns[key]
        counts = {row[key].n for row in self.rows.values() if key in row}
        n = f"n={metric.n}" if len(counts) == 1 else f"n={min(counts)}..{max(counts)}"
        mark = f" {LOWER}" if metric.better == "lower" else ""
        return separator.join((f"{metric.name.replace('_', ' ')}{mark}", metric.protocol, n))

    def as_table(self, *, intervals: bool = True) -> Table:
        """Return the table for a terminal."""
        # Without lines between columns five of them fit a terminal of 80 columns.
        table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
        table.add_column("", overflow="fold")
        for key in self.columns:
            table.add_column(Text(self.heading(key, "\n")), justify="right", overflow="fold")
        for name, *values in self._cells(intervals):
            # Between value and interval: a narrow terminal would break the line anywhere.
            table.add_row(Text(name), *(Text(cell.replace(" [", "\n[")) for cell in values))
        return table

    def written_as(self, kind: Format, *, intervals: bool = True) -> str:
        """Return the table as text to paste or to read by machine.

        Args:
            kind: `markdown`; `latex`, for the package booktabs; or `csv`, which has every digit
                and a row for every value.
            intervals: write them behind the values; `csv` has them always.
        """
        writers: Mapping[Format, Callable[[bool], str]] = {
            "markdown": self._markdown,
            "latex": self._latex,
            "csv": self._csv,
        }
        return writers[kind](intervals)

    def _cells(self, intervals: bool) -> list[list[str]]:
        return [
            [name, *(_cell(row.get(key), intervals) for key in self.columns)]
            for name, row in self.rows.items()
        ]

    def _markdown(self, intervals: bool) -> str:
        def line(cells: Sequence[str]) -> str:
            return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

        lines = [
            line(["", *map(self.heading, self.columns)]),
            line(["---", *("---:" for _ in self.columns)]),
            *map(line, self._cells(intervals)),
        ]
        return "\n".join(lines) + "\n"

    def _latex(self, intervals: bool) -> str:
        def line(cells: Sequence[str]) -> str:
            return " & ".join(map(_escaped, cells)) + r" \\"

        lines = [
            rf"\begin{{tabular}}{{l{'r' * len(self.columns)}}}",
            r"\toprule",
            line(["", *map(self.heading, self.columns)]),
            r"\midrule",
            *map(line, self._cells(intervals)),
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return "\n".join(lines) + "\n"

    def _csv(self, _: bool) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "protocol", "metric", "unit", "n", "value", "low", "high"])
        for name, row in self.rows.items():
            for key in self.columns:
                if key in row:
                    m = row[key]
                    writer.writerow([name, *key, m.unit, m.n, m.value, *(m.interval or ("", ""))])
        return text.getvalue()


def _refuse_other(first: ScoresFile, file: ScoresFile) -> None:
    """Scores stand in one table if they are of one task and of the same questions."""
    ours, theirs = first.scores, file.scores
    if theirs.task != ours.task:
        raise AnswersError(
            f"{file.path}: are scores of task {theirs.task}, {first.path} of {ours.task}; make a "
            "table of each task"
        )
    if theirs.manifest["sha256"] != ours.manifest["sha256"]:
        raise AnswersError(
            f"{file.path}: was scored against {theirs.manifest['path']}, {first.path} against "
            f"{ours.manifest['path']}, and the two differ; score both against the same manifest"
        )


def _overview_remarks(
    names: Sequence[str], shown: Sequence[Scores], columns: Mapping[Key, Score]
) -> list[str]:
    lines = [
        f"{name}: {line}"
        for name, scores in zip(names, shown, strict=True)
        for line in not_computed(scores.not_computed)
    ]
    for scores in shown:
        said = scores.interval
        lines += few_clusters(list(columns.values()), said["clusters"], said["clustered_by"])
    if any(metric.better == "lower" for metric in columns.values()):
        lines.append(LOWER_NOTE)
    return list(dict.fromkeys(lines))


def _cell(metric: Score | None, intervals: bool) -> str:
    if metric is None:
        return "-"
    shown = value(metric.value, metric.unit)
    return f"{shown} {interval(metric.interval, metric.unit)}" if intervals else shown


def _escaped(text: str) -> str:
    """Return text whose special characters LaTeX prints."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
    special[LOWER] = r"$\downarrow$"
    return "".join(special.get(sign, sign) for sign in text)
