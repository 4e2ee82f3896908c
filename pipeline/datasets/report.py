"""The report of a preparation: what was found, beside what was published."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from .dataset import Counts, DataSet, Published
from .sample import SPLITS
from .split import Cut
from .tally import LeftOuts, Listed, Tally

REPORT = "report.json"
"""Its name in the output folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Hold what is known before the records are written.

    Attributes:
        data_set: the set.
        root: its folder.
        images: folder that the manifests' image paths are relative to.
        written: whether this run wrote the images.
        made_from: what the outputs follow from.
        choices: the set's choices.
        cut: how samples came to their splits.
        left_out: what did not become a record.
    """

    data_set: DataSet
    root: Path
    images: Path
    written: bool
    made_from: Mapping[str, Any]
    choices: Mapping[str, str]
    cut: Cut
    left_out: LeftOuts


def report_of(
    facts: Facts, tally: Tally, repeated: Listed, outputs: Mapping[str, str]
) -> dict[str, Any]:
    """Return the report; the same sources, options and folders give the same report.

    Args:
        facts: what was known before.
        tally: counts and duplicates.
        repeated: ids that the set uses more than once, as they were made unique.
        outputs: SHA-256 of the manifests, by name.
    """
    data_set = facts.data_set
    found = dict(tally.counts())
    # What the set calls train is train and val together where val was cut out of it.
    official = {**found, "train": tally.joined(("train", "val"))} if facts.cut.of_train else found
    return {
        "data_set": data_set.name,
        "title": data_set.title,
        "made_from": {"medalign": __version__, **facts.made_from},
        "folder": str(facts.root.absolute()),
        "images": str(facts.images.absolute()),
        "outputs": dict(outputs),
        "licence": {
            "name": data_set.licence,
            "terms": data_set.terms,
            "records": tally.licences(),
        },
        "splits": _splits(facts, found),
        "counts": {split: asdict(counts) for split, counts in found.items()},
        "published": list(_published(facts, official)),
        "left_out": {
            "by_rule": dict(facts.left_out.by_rule),
            "unusable": {
                reason: listed.to_json() for reason, listed in facts.left_out.unusable.items()
            },
        },
        "duplicates": {
            "same_in_a_split": tally.same.to_json(),
            "same_across_splits": tally.same_across.to_json(),
            "contradictions": tally.contradictions.to_json(),
        },
        "ids": {"rule": data_set.id_rule, "repeated": repeated.to_json()},
    }


def report_text(report: Mapping[str, Any]) -> bytes:
    """Return a report as the bytes of its file."""
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    # Names of files that are no UTF-8 hold half characters: \udc80, as JSON writes them too.
    return text.encode(errors="backslashreplace")


def _splits(facts: Facts, found: Mapping[str, Counts]) -> dict[str, Any]:
    cut = None
    if facts.cut.fractions:
        cut = {
            "seed": facts.made_from["options"]["seed"],
            "fractions": dict(facts.cut.fractions),
            "groups": facts.cut.groups,
            "of": "train" if facts.cut.of_train else "all",
            "rule": "by a hash of seed and group (patient, else study, else content of an image)",
        }
    absent = [split for split in SPLITS if split not in found]
    return {"rule": facts.data_set.split_rule, "cut": cut, "absent": absent}


def _published(facts: Facts, found: Mapping[str, Counts]) -> Iterator[dict[str, Any]]:
    for published in facts.data_set.published:
        if published.fits(facts.made_from["layout"], facts.choices):
            yield {
                "name": published.name,
                "source": published.source,
                "counts": {split: _known(counts) for split, counts in published.counts.items()},
                "found_minus_published": _differences(published, found),
            }


def _differences(published: Published, found: Mapping[str, Counts]) -> dict[str, dict[str, int]]:
    nothing = asdict(Counts(records=0, open=0, closed=0, images=0))
    return {
        split: {
            name: (asdict(found[split]) if split in found else nothing)[name] - count
            for name, count in _known(counts).items()
        }
        for split, counts in published.counts.items()
    }


def _known(counts: Counts) -> dict[str, int]:
    return {name: count for name, count in asdict(counts).items() if count is not None}
