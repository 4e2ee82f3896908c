"""Read predicted answers and join them with a manifest, by id and never by order."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ..pipeline.manifest import IMAGE_PLACEHOLDER, Record

Task = Literal["vqa", "report"]
"""What is scored: short answers to questions, or whole reports."""

SHOWN = 5
"""How many lines or ids one error message names; it counts the others."""


class AnswersError(ValueError):
    """Say which predictions cannot be read, joined or scored, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Hold one line of a predictions file.

    Attributes:
        id: id of the record that was answered.
        prompt: the text that the model read.
        text: its answer.
        answer: the reference, copied from the manifest, so that stale predictions are noticed.
        decoder: name of the decoder.
        seed: seed of the decoder.
        new_tokens: how many tokens were generated.
        settings: of the decoder, by name; files of earlier versions have none.
    """

    id: str
    prompt: str
    text: str
    answer: str
    decoder: str
    seed: int
    new_tokens: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_line(self) -> bytes:
        """Return the answer as one line of JSON, with its line feed."""
        # ASCII only: no text can then break a line or fail to be encoded.
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return json.dumps(values).encode("ascii") + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Hold a record, its reference and what was predicted for it ("" where nothing was)."""

    record: Record
    reference: str
    prediction: str
    missing: bool


def reference(record: Record, task: Task) -> str:
    """Return the text a record's answer is compared with.

    vqa: the first turn from gpt. report: the field `report`, else the last turn from gpt.

    Raises:
        AnswersError: the record has none, it is blank, or `report` is no text.
    """
    turns = [turn.text for turn in record.conversations if turn.role == "gpt"]
    text: object = None
    if turns:
        text = turns[0] if task == "vqa" else turns[-1]
    if task == "report":
        text = record.fields.get("report") or text
    if isinstance(text, str) and text.strip():
        return text
    sources = "a turn from gpt" if task == "vqa" else "a field `report` or a turn from gpt"
    raise AnswersError(
        f"manifest line {record.line}: record {record.id!r} has no reference; --task {task} "
        f"compares with {sources} that is not blank"
    )


def gold(record: Record) -> str:
    """Return the reference to copy into an `Answer`: first gpt turn, else `report`, else ""."""
    turns = (turn.text for turn in record.conversations if turn.role == "gpt")
    return next(turns, None) or str(record.fields.get("report") or "")


def read_answers(path: Path) -> list[Answer]:
    """Read a predictions file: JSON Lines, one `Answer` each; other fields are ignored.

    Raises:
        AnswersError: the file cannot be read, is empty, mixes decoders, repeats an id, or holds
            lines that are no answers; the message names the first few.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AnswersError(f"{path}: cannot be read: {reason_of(error)}") from None
    answers = parse_answers(data, path)
    if not answers:
        raise AnswersError(f"{path}: holds no answers; `eval generate` writes them")
    decoders = sorted({answer.decoder for answer in answers})
    if len(decoders) > 1:
        raise AnswersError(
            f"{path}: holds answers of several decoders ({', '.join(decoders)}); "
            "score each decoder's file by itself"
        )
    return answers


def parse_answers(data: bytes, path: Path) -> list[Answer]:
    """Return the answers in the bytes of a predictions file; `path` serves the messages.

    Raises:
        AnswersError: as `read_answers`, except for an empty file and mixed decoders.
    """
    answers: list[Answer] = []
    problems: list[str] = []
    lines: dict[str, int] = {}
    cut = 0 if data.endswith(b"\n") else data.count(b"\n") + 1
    for number, line in _lines(data):
        try:
            answer = _answer(line)
        except ValueError as error:
            hint = "; it was cut short, run `eval generate` again" if number == cut else ""
            problems.append(f"line {number}: {error}{hint}")
            continue
        first = lines.setdefault(answer.id, number)
        if first != number:
            problems.append(f"line {number}: id {answer.id!r} was answered before, on line {first}")
        answers.append(answer)
    if problems:
        count = f"{len(problems)} problems: " if len(problems) > 1 else ""
        raise AnswersError(f"{path}: {count}{listed(problems, '; ')}")
    return answers


def join(
    answers: Iterable[Answer], records: Sequence[Record], task: Task, *, allow_missing: bool = False
) -> list[Pair]:
    """Return one pair per record, in the manifest's order, whatever the order of the answers.

    Args:
        answers: the predictions, ids unique.
        records: the manifest, ids unique.
        task: which reference counts.
        allow_missing: score a record without a prediction as an empty answer, which is wrong.

    Raises:
        AnswersError: an answer belongs to no record, a record has no answer (unless allowed) or no
            reference, or an answer's copy of the reference or of the question is not the
            manifest's.
    """
    if task not in get_args(Task):
        raise AnswersError(f"task is {task!r}, known are {' and '.join(get_args(Task))}")
    by_id = {answer.id: answer for answer in answers}
    known = {record.id for record in records}
    _refuse(
        [id_ for id_ in by_id if id_ not in known], "answers belong to no record of the manifest"
    )
    if not allow_missing:
        refuse_absent(record.id for record in records if record.id not in by_id)
    stale = [r.id for r in records if r.id in by_id and by_id[r.id].answer not in _references(r)]
    _refuse(
        stale,
        "answers carry another reference than the manifest; it changed since, generate again",
    )
    _refuse(
        changed_questions({answer.id: answer.prompt for answer in by_id.values()}, records),
        "answers were given to another question than the manifest's; it changed since, generate "
        "again",
    )
    return [_pair(record, by_id.get(record.id), task) for record in records]


def refuse_absent(ids: Iterable[str]) -> None:
    """Refuse records without an answer.

    Raises:
        AnswersError: there are some; it names the first few.
    """
    _refuse(list(ids), "records have no answer; finish `eval generate` or pass --allow-missing")


def changed_questions(prompts: Mapping[str, str], records: Sequence[Record]) -> list[str]:
    """Return the ids of records whose question is surely not the one that was answered.

    A prompt holds the question inside a chat template, but files made elsewhere may hold anything.
    So a prompt without its record's question counts only where most prompts of the file have
    theirs; blanks, line ends, upper case and the positions of images do not matter.

    Args:
        prompts: the student's prompt by id of the record; blank where it is not known.
        records: the manifest.
    """
    prompted = [r for r in records if r.conversations and prompts.get(r.id, "").strip()]
    changed = [record.id for record in prompted if not _holds(prompts[record.id], record)]
    return changed if 2 * len(changed) < len(prompted) else []


def _holds(prompt: str, record: Record) -> bool:
    inside = _plain(prompt)
    pieces = record.conversations[0].text.split(IMAGE_PLACEHOLDER)
    return all(_plain(piece) in inside for piece in pieces)


def _plain(text: str) -> str:
    return "".join(text.casefold().split())


def _pair(record: Record, answer: Answer | None, task: Task) -> Pair:
    return Pair(
        record=record,
        reference=reference(record, task),
        prediction=answer.text if answer else "",
        missing=answer is None,
    )


def _references(record: Record) -> set[str]:
    """Return every reference a predictions file may carry: `generate` does not know the task."""
    last = [turn.text for turn in record.conversations if turn.role == "gpt"][-1:]
    report = record.fields.get("report")
    # Only a text can be carried, and another value need not be hashable.
    return {gold(record), *last, *([report] if isinstance(report, str) else [])}


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    # Not str.splitlines: that also cuts at characters that JSON may hold unescaped.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _answer(line: bytes) -> Answer:
    try:
        value: Any = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("is not JSON; an answer is one object per line") from None
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object; an answer is one object per line")
    settings = value.get("settings", {})
    if not isinstance(settings, dict):
        raise ValueError("`settings` is not an object")
    plain = [one for one in fields(Answer) if one.name != "settings"]
    values: dict[str, Any] = {one.name: value.get(one.name) for one in plain}
    if isinstance(values["id"], int) and not isinstance(values["id"], bool):
        values["id"] = str(values["id"])
    # type(), not isinstance: true is an int.
    wrong = [
        f"`{one.name}` is missing or not {'text' if one.type is str else 'a whole number'}"
        for one in plain
        if type(values[one.name]) is not one.type
    ]
    if wrong:
        raise ValueError(", ".join(wrong))
    return Answer(**values, settings=settings)


def refuse_no_folder(images: Path) -> None:
    """Refuse a folder of images that is not there.

    Raises:
        AnswersError: it is no folder.
    """
    if not images.is_dir():
        raise AnswersError(f"--images {images} is no folder")


def first_repeated(paths: Sequence[Path]) -> Path | None:
    """Return the first path of a file or folder that an earlier one names too."""
    true = [path.resolve() for path in paths]
    return next((path for k, path in enumerate(paths) if true[k] in true[:k]), None)


def listed(items: Iterable[str], separator: str = ", ") -> str:
    """Return the first few items as text, and how many more there are."""
    items = list(items)
    more = len(items) - SHOWN
    tail = [f"and {more} more"] if more > 0 else []
    return separator.join(items[:SHOWN] + tail)


def reason_of(error: OSError) -> str:
    """Return the system's reason for an error, without the path."""
    return (error.strerror or "error").lower()


def _refuse(ids: Sequence[str], rule: str) -> None:
    if ids:
        raise AnswersError(f"{len(ids)} {rule}: {listed(map(repr, ids))}")
