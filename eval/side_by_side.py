"""Scores of several files side by side: for a terminal, as Markdown, LaTeX or CSV."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from .metrics.definitions import Key
from .predictions import AnswersError, first_repeated
from .score import Score, Scores, choose_metrics
from .score_files import ScoresFile
from .tables import LOWER, few_clusters, headline, interval, labels, lower_note, not_computed, value

Format = Literal["markdown", "latex", "csv"]
"""Formats of a table."""


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
            metrics: groups of metrics, of `known_metrics`; if empty, those of `HEADLINE`.

        Raises:
            AnswersError: a file cannot be read, is given twice, is of another task or manifest
                than the first, the task has no such metric, or no file has any of them.
        """
        if repeated := first_repeated(files):
            raise AnswersError(f"{repeated}: is given twice")
        scores_files = [ScoresFile.read(path) for path in files]
        for file in scores_files[1:]:
            _refuse_other(scores_files[0], file)
        choose_metrics(scores_files[0].scores.task, metrics)
        scores = [file.chosen(metrics) for file in scores_files]
        rows = [
            {m.key: m for m in (own.metrics if metrics else headline(own.metrics))}
            for own in scores
        ]
        columns: dict[Key, Score] = {}
        for row in rows:
            columns |= {key: metric for key, metric in row.items() if key not in columns}
        if not columns:
            raise AnswersError(f"{files[0]}: holds no value of {', '.join(metrics) or 'a metric'}")
        names = labels(files, [own.decoder for own in scores])
        return cls(
            columns=columns,
            rows=dict(zip(names, rows, strict=True)),
            remarks=_remarks(names, scores, columns),
        )

    def heading(self, key: Key, separator: str = ", ") -> str:
        """Return the heading of a column: name, protocol and number of samples."""
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
    """Refuse scores of another task, or of other questions: one table compares its rows."""
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


def _remarks(
    names: Sequence[str], scores: Sequence[Scores], columns: Mapping[Key, Score]
) -> list[str]:
    lines = [
        f"{name}: {line}"
        for name, own in zip(names, scores, strict=True)
        for line in not_computed(own.not_computed)
    ]
    metrics = list(columns.values())
    for own in scores:
        lines += few_clusters(metrics, own.interval["clusters"], own.interval["clustered_by"])
    return list(dict.fromkeys([*lines, *lower_note(metrics)]))


def _cell(metric: Score | None, intervals: bool) -> str:
    if metric is None:
        return "-"
    number = value(metric.value, metric.unit)
    return f"{number} {interval(metric.interval, metric.unit)}" if intervals else number


def _escaped(text: str) -> str:
    """Return text whose special characters LaTeX prints."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
    special[LOWER] = r"$\downarrow$"
    return "".join(special.get(sign, sign) for sign in text)
