"""What each record of a manifest must keep beyond its form, to be trained on and scored."""

from collections.abc import Hashable, Sequence
from typing import Final

from ..records import Record
from .findings import Findings
from .side import normalised

_YES_NO: Final = ("yes", "no")


class RecordRules:
    """Looks at records one after the other; remembers digests of what was asked and answered."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._records: dict[int, int] = {}
        self._answers: dict[int, dict[int, int]] = {}

    def look(self, record: Record) -> None:
        """Find what is wrong with a record, by itself and beside those before it."""
        if self._answered(record):
            self._options(record)
            self._typed(record)
            self._repeated(record)

    def _answered(self, record: Record) -> bool:
        answers = [turn.text for turn in record.conversations if turn.role == "gpt"]
        if not answers:
            if _is_report(record):
                return True
            self._add("no-answer", record, "the conversation ends with the question")
        for number, answer in enumerate(answers, start=1):
            if not answer.strip():
                self._add("empty-answer", record, f"answer {number} of {len(answers)} is blank")
        return bool(answers) and bool(answers[0].strip())

    def _options(self, record: Record) -> None:
        given = record.fields.get("options")
        if given is None or given == []:
            return
        options = _texts(given)
        if len(options) < 2:
            self._add("options-malformed", record, "must be a list of at least two texts")
            return
        named = [normalised(option) for option in options]
        repeated = sorted({named.index(each) + 1 for each in named if named.count(each) > 1})
        if repeated:
            self._add("options-repeated", record, f"option {repeated[0]} of {len(named)} repeats")
        if normalised(_answer(record)) not in named:
            self._add("answer-no-option", record, f"is none of the {len(named)} options")
        question = f" {normalised(record.conversations[0].text)} "
        unseen = [number for number, name in enumerate(named, 1) if f" {name} " not in question]
        if unseen:
            listed = ", ".join(map(str, unseen))
            self._add("options-unseen", record, f"option {listed} of {len(named)} is not in it")

    def _typed(self, record: Record) -> None:
        if _is_report(record) or record.fields.get("options"):
            return
        if record.answer_type is None:
            self._add("no-answer-type", record, "is neither OPEN nor CLOSED")
        elif record.answer_type == "CLOSED" and normalised(_answer(record)) not in _YES_NO:
            self._add("closed-odd", record, "the answer is another one")

    def _repeated(self, record: Record) -> None:
        turns = tuple(turn.text.strip() for turn in record.conversations)
        line = self._records.setdefault(_digest((record.images, turns)), record.line)
        if line != record.line:
            self._add("duplicate", record, f"the same as {self._findings.unit} {line}")
            return
        if _is_report(record) or len(turns) != 2:
            return
        options = tuple(_texts(record.fields.get("options")))
        asked = _digest((record.images, normalised(turns[0]), options))
        known, said = self._answers.setdefault(asked, {}), _digest(normalised(turns[1]))
        others = [line for answer, line in known.items() if answer != said]
        known.setdefault(said, record.line)
        if others:
            self._add(
                "contradiction", record, f"answered otherwise on {self._findings.unit} {others[0]}"
            )

    def _add(self, kind: str, record: Record, text: str) -> None:
        self._findings.add(kind, record.line, record.id, text)


def _is_report(record: Record) -> bool:
    report = record.fields.get("report")
    return isinstance(report, str) and bool(report.strip())


def _answer(record: Record) -> str:
    return next(turn.text for turn in record.conversations if turn.role == "gpt")


def _texts(options: object) -> Sequence[str]:
    """Return options that are all texts; () for anything else."""
    if isinstance(options, list) and all(
        isinstance(each, str) and each.strip() for each in options
    ):
        return options
    return ()


def _digest(value: Hashable) -> int:
    # 64 bits: two of a million records agree by chance in one manifest of 30 million.
    return hash(value)
