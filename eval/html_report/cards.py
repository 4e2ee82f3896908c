"""One sample of a report: its images, question, reference, and every decoder's answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...pipeline.manifest import IMAGE_PLACEHOLDER, Record
from ..metrics.definitions import Key
from ..metrics.wording import strict_words
from ..predictions import reference
from .attention_maps import AttentionMap
from .gather import Answers, Gathered
from .images import EXPERT, Picture
from .markup import Markup, joined, opened, tag
from .overlay import figure
from .student_attention import StudentAttention

_INLINE = (
    ("strict", "open_recall"),
    ("medalign", "bleu"),
    ("medalign", "rouge_l"),
    ("medalign", "bertscore_f1"),
    ("medalign", "chexbert_similarity"),
    ("medalign", "radgraph_combined"),
    ("medalign", "ratescore"),
)
"""Values that are shown beside an answer; all others are below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a card shows beside the answers.

    Attributes:
        place: of the record in the manifest, from 0.
        record: the record.
        pictures: its images.
        students: whose attention is shown.
    """

    place: int
    record: Record
    pictures: Sequence[Picture]
    students: Sequence[StudentAttention]

    def looks(self) -> Iterator[tuple[Picture, dict[int, AttentionMap]]]:
        """Yield each picture with its maps, by their place among all looks of the report."""
        for image, picture in enumerate(self.pictures):
            if not picture.jpeg:
                continue
            maps = {} if picture.expert is None else {0: picture.expert}
            for place, student in enumerate(self.students, start=1):
                found = student.of(self.record.id, image, picture.height, picture.width)
                if found is not None:
                    maps[place] = found
            yield picture, maps

    def remarks(self) -> list[str]:
        """Return what is missing from the card, and why."""
        missing = [remark for picture in self.pictures for remark in picture.remarks]
        missing += [
            f"{self.record.id}: no attention of {student.label}: {problem}"
            for student in (self.students if self.pictures else ())
            if (problem := student.seen[self.record.id].problem)
        ]
        return list(dict.fromkeys(missing))


def card(sample: Sample, gathered: Gathered) -> Markup:
    """Return one sample as an article; its data attributes are what the filters read."""
    record, place = sample.record, sample.place
    wrong = [k for k, file in enumerate(gathered.files) if file.right(place) is False]
    looks = list(sample.looks())
    kind = answer_type(record) if gathered.task == "vqa" else None
    figures = [figure(picture, list(maps.values()), list(maps)) for picture, maps in looks]
    chosen = {p: each.label for _, maps in looks for p, each in maps.items()}
    side = tag(
        "div",
        figures,
        _picker(place, chosen) if chosen else None,
        [tag("p", remark, class_="missing") for remark in sample.remarks()],
        class_="side",
    )
    kind_shown = None if kind is None else tag("span", kind, class_="kind")
    head = joined(tag("span", record.id, class_="id"), kind_shown)
    said = tag(
        "div",
        tag("h3", head, id=f"s{place}"),
        tag("p", question(record), class_="question", dir="auto"),
        _options(record) if gathered.task == "vqa" else None,
        tag(
            "div",
            tag("span", "reference", class_="who"),
            tag("p", reference(record, gathered.task), class_="text", dir="auto"),
            class_="reference",
        ),
        [_answer(file, place) for file in gathered.files],
        _all_values(gathered.files, place),
        class_="said",
    )
    return tag(
        "article",
        side if sample.pictures else None,
        said,
        class_="card",
        aria_labelledby=f"s{place}",
        data_wrong=" ".join(map(str, wrong)),
        data_differ="1" if differ(gathered.files, place) else "",
        data_type=kind,
    )


def question(record: Record) -> str:
    """Return what is asked first, without the places of images."""
    return record.conversations[0].text.replace(IMAGE_PLACEHOLDER, "").strip()


def answer_type(record: Record) -> str:
    """Return the kind of a question, as the scores count it."""
    return "CHOICE" if record.fields.get("options") else record.answer_type or "CLOSED"


def differ(files: Sequence[Answers], place: int) -> bool:
    """Whether decoders answer a record in other words; case and punctuation do not count."""
    return len({tuple(strict_words(file.pairs[place].prediction)) for file in files}) > 1


def shown_value(value: float) -> str:
    """Return a value in 0..1 as percent."""
    return f"{100 * value:.0f}"


def _options(record: Record) -> Markup | None:
    options = record.fields.get("options")
    if not options:
        return None
    return tag("ol", [tag("li", option, dir="auto") for option in options], class_="options")


def _answer(file: Answers, place: int) -> Markup:
    pair = file.pairs[place]
    right = file.right(place)
    verdict = None
    if right is not None:
        mark = "\N{CHECK MARK} right" if right else "\N{MULTIPLICATION X} wrong"
        verdict = tag("span", mark, class_="right" if right else "wrong")
    values = [
        f"{name.removeprefix('open_').replace('_', ' ')} {shown_value(file.values[key][place])}"
        for key in _INLINE
        if place in file.values.get(key, {})
        for name in (key[1],)
    ]
    text = pair.prediction
    shown = tag("p", text, class_="text", dir="auto") if text.strip() else None
    empty = "no answer" if pair.missing else "an empty answer"
    return tag(
        "div",
        tag("span", file.label, class_="who"),
        shown or tag("p", empty, class_="text none"),
        tag("span", verdict, tag("span", " \N{MIDDLE DOT} ".join(values)), class_="verdict"),
        class_="answer",
    )


def _all_values(files: Sequence[Answers], place: int) -> Markup | None:
    known: dict[Key, None] = dict.fromkeys(key for f in files for key in f.scored.definitions)
    keys = [key for key in known if any(place in f.values.get(key, {}) for f in files)]
    if not keys:
        return None
    head = tag("tr", tag("th", "percent"), [tag("th", f.label, scope="col") for f in files])
    rows = [
        tag(
            "tr",
            tag("th", f"{name}, {protocol}", scope="row"),
            [tag("td", _value(file, (protocol, name), place)) for file in files],
        )
        for protocol, name in keys
    ]
    table = tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="wide")
    return tag("details", tag("summary", "every value of this sample"), table)


def _value(file: Answers, key: Key, place: int) -> str:
    found = file.values.get(key, {}).get(place)
    return "-" if found is None else shown_value(found)


def _picker(place: int, labels: dict[int, str]) -> Markup:
    """Return what chooses one map or none; it works without the script."""
    name = f"look-{place}"
    choices = {"": "none"} | {str(at): label for at, label in sorted(labels.items())}
    return tag(
        "fieldset",
        tag("legend", "attention"),
        [
            tag(
                "label",
                opened("input", type="radio", name=name, value=value, checked=not value),
                " ",
                EXPERT + " [cls]" if label == EXPERT else label,
            )
            for value, label in choices.items()
        ],
        class_="looks",
    )
