"""The report of a preparation: what was found, beside what was published."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ... import __version__
from ...runtime.text import plural
from ..manifest import shorten
from .definition import SPLITS, Counts, DataSet, LeftOut, Published, Sample, Split
from .split import Cut

REPORT = "report.json"
"""Its name in the output folder."""

_EXAMPLES = 20
_LABEL_LENGTH = 300  # a file, an item and the path of an image


@dataclass(slots=True)
class Listed:
    """Count occurrences and the images they are about, and list the first 20 of them."""

    count: int = 0
    first: list[Any] = field(default_factory=list)
    images: set[str] = field(default_factory=set)

    def add(self, example: Any, image: str | None = None) -> None:
        """Count one more."""
        self.count += 1
        if image is not None:
            self.images.add(image)
        if len(self.first) < _EXAMPLES:
            self.first.append(example)

    def to_json(self) -> dict[str, Any]:
        """Return count, number of distinct images where there are any, and examples."""
        images = {"images": len(self.images)} if self.images else {}
        return {"count": self.count, **images, "first": self.first}


@dataclass(slots=True)
class LeftOuts:
    """Count the items that became no record, by reason."""

    by_rule: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    unusable: dict[str, Listed] = field(default_factory=lambda: defaultdict(Listed))

    def add(self, item: LeftOut) -> None:
        """Count one more."""
        if item.by_rule:
            self.by_rule[item.reason] += 1
        else:
            self.unusable[item.reason].add(shorten(item.where, _LABEL_LENGTH), item.image)

    def listed(self) -> str:
        """Return each reason with its count and first item, on an indented line of its own."""
        lines = [
            f"{plural(items.count, 'item')}: {why} ({items.first[0]})"
            for why, items in self.unusable.items()
        ]
        lines += [f"{plural(count, 'item')}: {why}" for why, count in self.by_rule.items()]
        return "".join(f"\n  {line}" for line in lines)


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


@dataclass(slots=True)
class _OfSplit:
    records: int = 0
    open: int = 0
    closed: int = 0
    images: set[str] = field(default_factory=set)


class Tally:
    """Counts the records of a run, and finds those that repeat or contradict one another."""

    def __init__(self) -> None:
        self._splits: dict[Split, _OfSplit] = defaultdict(_OfSplit)
        # Digests, not texts: a set may have hundreds of thousands of reports.
        self._triplets: dict[bytes, tuple[str, Split]] = {}
        self._answers: dict[bytes, tuple[str, bytes]] = {}
        self._licences = Counter[str]()
        self.same = Listed()
        self.same_across = Listed()
        self.contradictions = Listed()

    def add(self, sample: Sample, split: Split, id_: str, licence: str) -> None:
        """Count a record."""
        self._licences[licence] += 1
        counts = self._splits[split]
        counts.records += 1
        counts.open += sample.answer_type == "OPEN"
        counts.closed += sample.answer_type == "CLOSED"
        counts.images.update(sample.images)
        self._count_repeat(sample, split, id_)
        if sample.report is None:
            self._count_contradiction(sample, id_)

    def counts(self) -> Iterator[tuple[str, Counts]]:
        """Yield (split, its counts) of the splits that have records, then of all together."""
        for split in SPLITS:
            if split in self._splits:
                yield split, self.joined([split])
        yield "total", self.joined(SPLITS)

    def licences(self) -> dict[str, int]:
        """Return how many records each licence has, by name."""
        return dict(sorted(self._licences.items()))

    def joined(self, splits: Iterable[Split]) -> Counts:
        """Return the counts of several splits together."""
        parts = [self._splits[split] for split in splits if split in self._splits]
        return Counts(
            records=sum(part.records for part in parts),
            open=sum(part.open for part in parts),
            closed=sum(part.closed for part in parts),
            images=len(set[str]().union(*(part.images for part in parts))),
        )

    def _count_repeat(self, sample: Sample, split: Split, id_: str) -> None:
        triplet = _digest((*sample.images, sample.question.strip(), sample.answer.strip()))
        first, first_split = self._triplets.setdefault(triplet, (id_, split))
        if first != id_:
            (self.same if first_split == split else self.same_across).add([first, id_])

    def _count_contradiction(self, sample: Sample, id_: str) -> None:
        question = _digest((*sample.images, _plain(sample.question), *sample.options))
        answer = _digest((_plain(sample.answer),))
        first, first_answer = self._answers.setdefault(question, (id_, answer))
        if first_answer != answer:
            self.contradictions.add([first, id_])


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".?! ")


def _digest(texts: tuple[str, ...]) -> bytes:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).digest()


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
    counts = dict(tally.counts())
    # What the set calls train is train and val together where val was cut out of it.
    official = {**counts, "train": tally.joined(("train", "val"))} if facts.cut.of_train else counts
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
        "splits": _splits(facts, counts),
        "counts": {split: asdict(numbers) for split, numbers in counts.items()},
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


def _splits(facts: Facts, counts: Mapping[str, Counts]) -> dict[str, Any]:
    cut = None
    if facts.cut.fractions:
        cut = {
            "seed": facts.made_from["options"]["seed"],
            "fractions": dict(facts.cut.fractions),
            "groups": facts.cut.groups,
            "of": "train" if facts.cut.of_train else "all",
            "rule": "by a hash of seed and group (patient, else study, else content of an image)",
        }
    absent = [split for split in SPLITS if split not in counts]
    return {"rule": facts.data_set.split_rule, "cut": cut, "absent": absent}


def _published(facts: Facts, counts: Mapping[str, Counts]) -> Iterator[dict[str, Any]]:
    for published in facts.data_set.published:
        if published.fits(facts.made_from["layout"], facts.choices):
            yield {
                "name": published.name,
                "source": published.source,
                "counts": {split: _known(numbers) for split, numbers in published.counts.items()},
                "found_minus_published": _differences(published, counts),
            }


def _differences(published: Published, counts: Mapping[str, Counts]) -> dict[str, dict[str, int]]:
    nothing = asdict(Counts(records=0, open=0, closed=0, images=0))
    return {
        split: {
            name: (asdict(counts[split]) if split in counts else nothing)[name] - count
            for name, count in _known(numbers).items()
        }
        for split, numbers in published.counts.items()
    }


def _known(counts: Counts) -> dict[str, int]:
    return {name: count for name, count in asdict(counts).items() if count is not None}
