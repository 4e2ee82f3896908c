"""The tables of a report: scores with intervals, differences between files, definitions."""

from collections.abc import Sequence

from ..compare import Compared
from ..score import WITH_MODELS, Score
from ..score_files import ScoresFile
from ..tables import LOWER, LOWER_NOTE, few_clusters, interval, not_computed, table_of, value
from .gather import Answers, Gathered
from .markup import Markup, joined, tag

MANY = 4
"""More files than this have rows of their own, so that no table is wider than the page."""

_ENDS = "{} to {}"


def score_table(gathered: Gathered, metrics: Sequence[Score]) -> Markup:
    """Return metrics of every file with their intervals; names explain themselves on hover."""
    files = gathered.files
    found = {(k, m.protocol, m.name): m for k, f in enumerate(files) for m in f.scores.metrics}
    columns = [tag("th", file.label, scope="col") for file in files]
    head = tag("tr", tag("th", "metric", scope="col"), tag("th", "n", scope="col"), columns)
    bodies = []
    for title in dict.fromkeys(table_of(metric.group) for metric in metrics):
        rows = [
            tag(
                "tr",
                _name(metric),
                tag("td", str(metric.n)),
                [_cell(found.get((k, metric.protocol, metric.name))) for k in range(len(files))],
            )
            for metric in metrics
            if table_of(metric.group) == title
        ]
        band = tag("tr", tag("th", title, colspan=len(files) + 2, scope="colgroup"), class_="band")
        bodies.append(tag("tbody", band, rows))
    table = tag("table", tag("thead", head), bodies, class_="numbers")
    return _wide(table, "scores")


def comparison_table(gathered: Gathered, metrics: Sequence[Score]) -> Markup:
    """Return how every other file differs from the first."""
    by_file = [
        {(each.protocol, each.name): each for each in compared}
        for compared in gathered.compared.values()
    ]
    head = [tag("th", label, scope="col") for label in gathered.compared]
    rows = [
        tag(
            "tr",
            _name(metric),
            [_difference(file.get((metric.protocol, metric.name))) for file in by_file],
        )
        for metric in metrics
    ]
    table = tag(
        "table",
        tag("thead", tag("tr", tag("th", "metric", scope="col"), head)),
        tag("tbody", rows),
        class_="numbers",
    )
    return _wide(table, "differences")


def headline_tables(gathered: Gathered, metrics: Sequence[Score]) -> tuple[Markup, Markup | None]:
    """Return scores and differences of few metrics; a row for each file where files are many.

    The second is None where there is one file.
    """
    if len(gathered.files) <= MANY:
        compared = comparison_table(gathered, metrics) if gathered.compared else None
        return score_table(gathered, metrics), compared
    keys = [(metric.protocol, metric.name) for metric in metrics]
    scores = []
    for file in gathered.files:
        own = {(each.protocol, each.name): each for each in file.scores.metrics}
        scores.append(_file_row(file.label, [_cell(own.get(key)) for key in keys]))
    differences = []
    for label, found in gathered.compared.items():
        by_key = {(each.protocol, each.name): each for each in found}
        differences.append(_file_row(label, [_difference(by_key.get(key)) for key in keys]))
    return (
        _by_file(metrics, scores, "scores"),
        _by_file(metrics, differences, "differences"),
    )


def _file_row(label: str, cells: Sequence[Markup]) -> Markup:
    return tag("tr", tag("th", label, scope="row"), cells)


def _by_file(metrics: Sequence[Score], rows: Sequence[Markup], label: str) -> Markup:
    columns = [_name(metric, scope="col", n=True) for metric in metrics]
    head = tag("tr", tag("th", "file", scope="col"), columns)
    table = tag("table", tag("thead", head), tag("tbody", rows), class_="numbers by-file")
    return _wide(table, label)


def remarks(gathered: Gathered) -> list[str]:
    """Return what a reader of the tables must know."""
    lines = []
    for file in gathered.files:
        said = file.scores.interval
        lines += few_clusters(file.scores.metrics, said["clusters"], said["clustered_by"])
        lines += not_computed(file.scores.not_computed)
        for name, count in file.scores.counts.items():
            if count and name in ("missing", "blank_answers", "choice_reference_not_an_option"):
                lines.append(f"{file.label}: {name.replace('_', ' ')}: {count}")
        if file.known is not None:
            lines += [f"{file.label}: {line}" for line in _read_again(file, file.known)]
    if any(metric.better == "lower" for metric in every_metric(gathered)):
        lines.append(LOWER_NOTE)
    return list(dict.fromkeys(lines))


def _read_again(file: Answers, known: ScoresFile) -> list[str]:
    """Say that scores come from a file, and what cannot be told of single samples then."""
    line = f"scores as in {known.path}"
    if any(metric.group in WITH_MODELS for metric in file.scores.metrics):
        line += "; its samples and differences have the metrics alone that need no model"
    return [line, *known.differences(file.scored)]


def definitions(gathered: Gathered) -> Markup:
    """Return what every metric means, and which package of which version computed it."""
    return tag(
        "dl",
        [
            joined(
                tag("dt", f"{metric.name}, {metric.protocol}"),
                tag("dd", f"{metric.definition} ({metric.package} {metric.version})"),
            )
            for metric in every_metric(gathered)
        ],
    )


def every_metric(gathered: Gathered) -> list[Score]:
    """Return every metric that any file has, once, in the order of the tables."""
    found: dict[tuple[str, str], Score] = {}
    for file in gathered.files:
        for metric in file.scores.metrics:
            found.setdefault((metric.protocol, metric.name), metric)
    titles = list(dict.fromkeys(table_of(metric.group) for metric in found.values()))
    return sorted(found.values(), key=lambda metric: titles.index(table_of(metric.group)))


def _name(metric: Score, *, scope: str = "row", n: bool = False) -> Markup:
    title = f"{metric.definition}; {metric.package} {metric.version}"
    name = tag("abbr", metric.name, f" {LOWER}" if metric.better == "lower" else None, title=title)
    said = f"{metric.protocol}, n {metric.n}" if n else metric.protocol
    return tag("th", name, " ", tag("small", said), scope=scope)


def _cell(metric: Score | None) -> Markup:
    if metric is None:
        return tag("td", "-")
    ends = tag("small", interval(metric.interval, metric.unit, pattern=_ENDS))
    return tag("td", tag("b", value(metric.value, metric.unit)), " ", ends, _bar(metric))


def _bar(metric: Score) -> Markup | None:
    """Draw value and interval on a line from 0 to 100; None for what is no percentage."""
    if metric.unit != "percent":
        return None
    low, high = metric.interval or (metric.value, metric.value)
    parts = [
        tag("line", class_="ruler", x1=0, x2=100, y1=4, y2=4),
        tag("line", class_="interval", x1=low, x2=high, y1=4, y2=4),
        tag("circle", cx=metric.value, cy=4, r=3),
    ]
    return tag("svg", parts, class_="bar", viewBox="-4 0 108 8", aria_hidden="true")


def _difference(metric: Compared | None) -> Markup:
    if metric is None:
        return tag("td", "-")
    unit = metric.unit
    ends = interval(metric.interval, unit, signed=True, pattern=_ENDS)
    p = "p < 0.001" if metric.p < 0.001 else f"p {metric.p:.3f}"
    test = metric.mcnemar
    title = (
        None
        if test is None
        else f"counts in the first file only: {test.only_a}, in this one only: {test.only_b}; "
        f"McNemar's exact p {test.p:.3g}"
    )
    return tag(
        "td",
        tag("b", value(metric.difference, unit, signed=True)),
        " ",
        tag("small", f"{ends}, {p}"),
        title=title,
    )


def _wide(table: Markup, label: str) -> Markup:
    """Return a table that scrolls by itself where it is wider than the page."""
    return tag("div", table, class_="wide", tabindex=0, role="region", aria_label=label)


def level(gathered: Gathered) -> str:
    """Return the level of the intervals, in percent."""
    return f"{100 * gathered.files[0].scores.interval['level']:g}%"
