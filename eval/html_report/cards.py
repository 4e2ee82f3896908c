"""One sample of a report: its images, question, reference, and every decoder's answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...pipeline.manifest import IMAGE_PLACEHOLDER, Record
from ..metrics.definitions import Key
from ..metrics.wording import strict_words
from ..predictions import reference
from .attention_maps import AttentionMap
from .gather import Answers, Gathered
from .images import Figure, Picture, lay_out
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
class CardAnswer:
    """One answer on a card.

    Attributes:
        label: what the report calls its file.
        text: of the answer.
        missing: whether the file has none.
        right: whether it is right; None where the task has no right and wrong.
        values: the few that are shown beside it, with their names.
    """

    label: str
    text: str
    missing: bool
    right: bool | None
    values: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a card shows.

    Attributes:
        index: of the record in the manifest, from 0.
        record: the record.
        kind: type of the question, as the scores count it; None of a report.
        reference: the text that answers are compared with.
        options: of a multiple-choice question.
        figures: of the images that could be read.
        remarks: what is missing from the card, and why.
        answers: of every file, in their order.
        differ: whether answers differ in words; case and punctuation do not count.
        values: of every metric, the text of its value in each file.
    """

    index: int
    record: Record
    kind: str | None
    reference: str
    options: Sequence[str]
    figures: Sequence[Figure]
    remarks: Sequence[str]
    answers: Sequence[CardAnswer]
    differ: bool
    values: Mapping[Key, Sequence[str]]

    @property
    def question(self) -> str:
        """What is asked, without image placeholders."""
        return question(self.record)

    @property
    def wrong(self) -> list[int]:
        """Numbers of the files whose answer is wrong."""
        return [number for number, answer in enumerate(self.answers) if answer.right is False]

    @property
    def looks(self) -> dict[int, str]:
        """Whose attention can be chosen, by its number among all looks of the report."""
        layers = (item for figure in self.figures for item in figure.layers.items())
        return {number: layer.map.label for number, layer in sorted(layers, key=lambda i: i[0])}


def make_card(
    index: int,
    gathered: Gathered,
    pictures: Sequence[Picture],
    students: Sequence[StudentAttention],
) -> Card:
    """Return the card of one record.

    Args:
        index: of the record in the manifest, from 0.
        gathered: predictions and scores.
        pictures: the record's images.
        students: whose attention is shown.
    """
    record, vqa = gathered.records[index], gathered.task == "vqa"
    return Card(
        index=index,
        record=record,
        kind=_answer_type(record) if vqa else None,
        reference=reference(record, gathered.task),
        options=record.fields.get("options") or () if vqa else (),
        figures=[
            lay_out(picture, _maps(record, image, picture, students))
            for image, picture in enumerate(pictures)
            if picture.jpeg
        ],
        remarks=_remarks(record, pictures, students),
        answers=[_answer(file, index) for file in gathered.files],
        differ=_differ(gathered.files, index),
        values=_values(gathered.files, index),
    )


def question(record: Record) -> str:
    """Return what is asked first, without image placeholders."""
    return record.conversations[0].text.replace(IMAGE_PLACEHOLDER, "").strip()


def _answer_type(record: Record) -> str:
    return "CHOICE" if record.fields.get("options") else record.answer_type or "CLOSED"


def _maps(
    record: Record, image: int, picture: Picture, students: Sequence[StudentAttention]
) -> dict[int, AttentionMap]:
    """Return the maps of one image: 0 is the expert's, students count from 1."""
    attention = [
        picture.expert,
        *(student.of(record.id, image, picture.height, picture.width) for student in students),
    ]
    return {number: one for number, one in enumerate(attention) if one is not None}


def _remarks(
    record: Record, pictures: Sequence[Picture], students: Sequence[StudentAttention]
) -> list[str]:
    remarks = [remark for picture in pictures for remark in picture.remarks]
    remarks += [
        f"{record.id}: no attention of {student.label}: {problem}"
        for student in (students if pictures else ())
        if (problem := student.questions[record.id].problem)
    ]
    return list(dict.fromkeys(remarks))


def _answer(file: Answers, index: int) -> CardAnswer:
    pair = file.pairs[index]
    values = {key: file.values[key][index] for key in _INLINE if index in file.values.get(key, {})}
    return CardAnswer(
        label=file.label,
        text=pair.prediction,
        missing=pair.missing,
        right=file.right(index),
        values=[
            f"{name.removeprefix('open_').replace('_', ' ')} {_percent(value)}"
            for (_, name), value in values.items()
        ],
    )


def _differ(files: Sequence[Answers], index: int) -> bool:
    return len({tuple(strict_words(file.pairs[index].prediction)) for file in files}) > 1


def _values(files: Sequence[Answers], index: int) -> dict[Key, list[str]]:
    keys = dict.fromkeys(key for file in files for key in file.scored.definitions)
    rows = {key: [file.values.get(key, {}).get(index) for file in files] for key in keys}
    return {
        key: ["-" if value is None else _percent(value) for value in row]
        for key, row in rows.items()
        if any(value is not None for value in row)
    }


def _percent(value: float) -> str:
    return f"{100 * value:.0f}"
