"""The whole page: one HTML text with its own style and script, which asks no network."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ... import __version__
from ..tables import grouped, interval, value
from .attention_maps import heat_gradient
from .cards import Card
from .gather import Gathered
from .images import EXPERT, Picture
from .score_tables import ScoreTables

# NUL, other control characters and halves of surrogate pairs may stand in JSON, not in HTML.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


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
