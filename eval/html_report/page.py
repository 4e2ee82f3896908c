"""The whole page: one HTML text with its own style and script, which asks no network."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from ... import __version__
from ..tables import headline
from .attention_maps import heat_gradient
from .gather import Answers, Gathered
from .images import Picture
from .markup import Markup, joined, opened, tag
from .overlay import shared
from .score_tables import (
    comparison_table,
    definitions,
    every_metric,
    headline_tables,
    level,
    remarks,
    score_table,
)

_ALTERNATIVES = {"vqa": "Answers to questions", "report": "Reports"}


def page(
    gathered: Gathered,
    cards: Sequence[Markup],
    pictures: Sequence[Picture],
    looks: Sequence[str],
    manifest: Path,
) -> str:
    """Return the page.

    Args:
        gathered: predictions and scores.
        cards: of the samples that are shown.
        pictures: that the cards refer to.
        looks: whose attention can be shown, in the order of their numbers; "" for one that cannot.
        manifest: that was answered.
    """
    title = f"{_ALTERNATIVES[gathered.task]}: {', '.join(file.label for file in gathered.files)}"
    body = joined(
        shared(pictures),
        tag("header", tag("h1", title), tag("p", _counts(gathered, cards, manifest))),
        tag("main", _scores(gathered), _samples(gathered, cards, looks)),
        tag("footer", tag("p", f"medalign {__version__}. Not for clinical use.")),
    )
    script, style = _resource("page.js"), _resource("page.css") + _rules(looks)
    head = joined(
        opened("meta", charset="utf-8"),
        opened("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        opened("meta", name="viewport", content="width=device-width, initial-scale=1"),
        opened("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    html = tag(
        "html", tag("head", head), tag("body", body, tag("script", Markup(script))), lang="en"
    )
    return f"<!DOCTYPE html>\n{html}\n"


def _scores(gathered: Gathered) -> Markup:
    notes = remarks(gathered)
    first = gathered.files[0].label
    metrics = headline(every_metric(gathered))
    scores, differences = headline_tables(gathered, metrics)
    difference = None
    if differences:
        caption = (
            f"Value minus that of {first}, with the {level(gathered)} interval of a paired "
            "bootstrap and p of a permutation test that swaps the files patient by patient or "
            "image by image. No p is corrected for looking at several metrics."
        )
        difference = tag(
            "details",
            tag("summary", f"How the others differ from {first}"),
            tag("p", caption, class_="note"),
            differences,
            open=True,
        )
    return tag(
        "section",
        tag("h2", "Scores"),
        tag(
            "p",
            f"Percent unless said otherwise, with the {level(gathered)} interval.",
            class_="note",
        ),
        scores,
        tag("ul", [tag("li", line) for line in notes], class_="note") if notes else None,
        difference,
        tag("details", tag("summary", "Every metric"), _everything(gathered)),
        tag("details", tag("summary", "What was answered, and with what"), _files(gathered.files)),
        tag("details", tag("summary", "Definitions and versions"), definitions(gathered)),
    )


def _everything(gathered: Gathered) -> Markup:
    metrics = every_metric(gathered)
    differences = comparison_table(gathered, metrics) if gathered.compared else None
    return joined(
        score_table(gathered, metrics),
        tag("h3", f"minus {gathered.files[0].label}") if differences else None,
        differences,
    )


def _files(answers: Sequence[Answers]) -> Markup:
    rows = []
    for file in answers:
        scores = file.scores
        settings = ", ".join(f"{name} {value}" for name, value in file.settings.items())
        seeds = ", ".join(map(str, scores.seeds))
        said = [scores.predictions["path"], f"sha256 {scores.predictions['sha256']}"]
        said += [f"decoder {scores.decoder}, seed {seeds}", settings or "settings not recorded"]
        rows.append(joined(tag("dt", file.label), [tag("dd", line) for line in said]))
    return tag("dl", rows)


def _samples(gathered: Gathered, cards: Sequence[Markup], looks: Sequence[str]) -> Markup:
    return tag(
        "section",
        tag("h2", "Samples"),
        _filters(gathered, looks),
        tag("p", "No sample fits the filters.", id="nothing", hidden=True),
        cards,
    )


def _filters(gathered: Gathered, looks: Sequence[str]) -> Markup:
    """Return the filters; they are shown by the script, without which they do nothing."""
    several = len(gathered.files) > 1
    verdicts = {"": "right or wrong", "any": "wrong in any" if several else "wrong"}
    if several:
        verdicts["every"] = "wrong in all"
        verdicts |= {str(k): f"wrong: {file.label}" for k, file in enumerate(gathered.files)}
    judged = any(file.right(0) is not None for file in gathered.files)
    kinds = {"": "all types"} | {k: k for k in ("OPEN", "CLOSED", "CHOICE")}
    seen = {"": "attention: none"} | {str(k): f"attention: {w}" for k, w in enumerate(looks) if w}
    differ = tag(
        "label", opened("input", type="checkbox", id="differ"), " only where answers differ"
    )
    search = tag(
        "label",
        "search ",
        opened("input", type="search", id="search", placeholder="words or id", autocomplete="off"),
    )
    return tag(
        "form",
        _select("verdict", "right or wrong", verdicts) if judged else None,
        differ if several else None,
        _select("type", "answer type", kinds) if gathered.task == "vqa" else None,
        search,
        _select("look", "attention on all samples", seen) if len(seen) > 1 else None,
        tag("output", id="shown", aria_live="polite"),
        id="filters",
        hidden=True,
        data_files=len(gathered.files),
    )


def _select(name: str, label: str, options: dict[str, str]) -> Markup:
    choices = [tag("option", text, value=value) for value, text in options.items()]
    return tag("select", choices, id=name, aria_label=label)


def _counts(gathered: Gathered, cards: Sequence[Markup], manifest: Path) -> str:
    records = len(gathered.records)
    if len(cards) == records:
        shown = "all are shown below"
    else:
        shown = f"{len(cards)} of them, evenly chosen, are shown below; scores are over all"
    return f"{manifest}: {records} records; {shown}."


def _rules(looks: Sequence[str]) -> str:
    """Return the style that shows the chosen map, and the colours of maps."""
    shown = [
        f'.card:has(.looks input[value="{k}"]:checked) .look-{k}{{display:block}}'
        for k, label in enumerate(looks)
        if label
    ]
    return f":root{{--heat:{heat_gradient()}}}\n" + "\n".join(shown) + "\n"


def _policy(script: str) -> str:
    """Return a policy that lets this page load nothing, and run its own script alone."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
