"""The whole page: one HTML text with its own style and script, which asks no network."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Self

from jinja2 import Environment, PackageLoader, StrictUndefined

from ... import __version__
from ..compare import Compared
from ..metrics.definitions import Key
from ..score import WITH_MODELS, Score
from ..score_files import ScoresFile
from ..tables import few_clusters, grouped, headline, interval, lower_note, not_computed, value
from .attention_maps import heat_gradient
from .cards import Card
from .gather import Answers, Gathered
from .images import EXPERT, Picture

MANY = 4
"""More files than this have rows of their own, so that no table is wider than the page."""

_COUNTS = ("missing", "blank_answers", "choice_reference_not_an_option")  # named in the notes
# NUL, other control characters and halves of surrogate pairs may stand in JSON, not in HTML.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTables:
    """Scores of all files, by metric.

    Attributes:
        level: of the intervals, in percent.
        every: every metric that any file has, once, in the order of the tables.
        first: those of them that are shown before the rest.
        scores: label of a file -> its scores.
        differences: label of every other file -> how it differs from the first.
        notes: what a reader of the tables must know.
        by_file: whether each file has a row in the tables of the first metrics.
    """

    level: str
    every: Sequence[Score]
    first: Sequence[Score]
    scores: Mapping[str, Mapping[Key, Score]]
    differences: Mapping[str, Mapping[Key, Compared]]
    notes: Sequence[str]
    by_file: bool

    @classmethod
    def of(cls, gathered: Gathered) -> Self:
        """Return what the tables of a report hold."""
        scores = {
            file.label: {metric.key: metric for metric in file.scores.metrics}
            for file in gathered.files
        }
        distinct: dict[Key, Score] = {}
        for own in scores.values():
            distinct |= {key: metric for key, metric in own.items() if key not in distinct}
        every = [m for group in grouped(list(distinct.values())).values() for m in group]
        return cls(
            level=f"{100 * gathered.files[0].scores.interval['level']:g}%",
            every=every,
            first=headline(every),
            scores=scores,
            differences={
                label: {metric.key: metric for metric in compared}
                for label, compared in gathered.compared.items()
            },
            notes=_notes(gathered, every),
            by_file=len(gathered.files) > MANY,
        )


@cache
def environment() -> Environment:
    """Return the templates of a report; text that a template prints never becomes a tag.

    Characters that no HTML file may hold are shown as the replacement character.
    """
    templates = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        finalize=_printed,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    templates.filters["data_uri"] = _data_uri
    templates.globals |= {
        "ends": partial(interval, pattern="{} to {}"),
        "expert": EXPERT,
        "grouped": grouped,
        "value": value,
    }
    return templates


def page(
    gathered: Gathered,
    cards: Sequence[Card],
    pictures: Sequence[Picture],
    looks: Mapping[int, str],
    manifest: Path,
) -> str:
    """Return the page.

    Args:
        gathered: predictions and scores.
        cards: of the samples that are shown.
        pictures: that the cards refer to.
        looks: whose attention can be shown, by the numbers that the cards use.
        manifest: that was answered.
    """
    script, style = _source("page.js"), _source("page.css")
    # The policy lets the page load nothing, and run the one script with this digest.
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    html = environment().get_template("page.html")
    return html.render(
        gathered=gathered,
        cards=cards,
        pictures=pictures,
        looks=looks,
        manifest=str(manifest),
        tables=ScoreTables.of(gathered),
        judged=any(file.right(0) is not None for file in gathered.files),
        verdicts=_verdicts([file.label for file in gathered.files]),
        heat=heat_gradient(),
        script=script,
        script_digest=base64.b64encode(digest).decode("ascii"),
        style=style,
        version=__version__,
    )


def _notes(gathered: Gathered, metrics: Sequence[Score]) -> list[str]:
    notes = []
    for file in gathered.files:
        clusters = file.scores.interval
        notes += few_clusters(file.scores.metrics, clusters["clusters"], clusters["clustered_by"])
        notes += not_computed(file.scores.not_computed)
        notes += [
            f"{file.label}: {name.replace('_', ' ')}: {count}"
            for name, count in file.scores.counts.items()
            if count and name in _COUNTS
        ]
        if file.known is not None:
            notes += [f"{file.label}: {note}" for note in _scores_file_notes(file, file.known)]
    return list(dict.fromkeys([*notes, *lower_note(metrics)]))


def _scores_file_notes(file: Answers, known: ScoresFile) -> list[str]:
    """Name the file that the scores are of, and what is not known of single samples then."""
    note = f"scores as in {known.path}"
    if any(metric.group in WITH_MODELS for metric in file.scores.metrics):
        note += "; its samples and differences have the metrics alone that need no model"
    return [note, *known.differences(file.scored)]


def _verdicts(labels: Sequence[str]) -> dict[str, str]:
    """Return the choices of the filter by verdict, as `page.js` reads them."""
    if len(labels) == 1:
        return {"": "right or wrong", "any": "wrong"}
    by_file = {str(number): f"wrong: {label}" for number, label in enumerate(labels)}
    return {"": "right or wrong", "any": "wrong in any", "every": "wrong in all"} | by_file


def _source(name: str) -> str:
    """Return a file as it is; a style sheet is no template."""
    templates = environment()
    assert templates.loader is not None
    return templates.loader.get_source(templates, name)[0]


def _printed(content: object) -> object:
    """Make what a template prints fit for HTML; escaping follows."""
    if isinstance(content, float):
        return f"{content:g}"
    if isinstance(content, str) and not hasattr(content, "__html__"):  # no markup
        return _UNFIT.sub("\N{REPLACEMENT CHARACTER}", content)
    return content


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
