"""Everything in a manifest's records that would fail later, by line."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from ..manifest import Record, scan_records, shorten
from .finding import Check, first
from .leakage import normalised

Part = Literal["manifest", "records", "image files", "decoding", "image content"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of finding.

    Attributes:
        part: the check that it belongs to.
        severity: an error fails later, or gives a number that means nothing; a warning may.
        what: the finding in a few words.
        then: what comes of it, or what to do.
    """

    part: Part
    severity: Literal["error", "warning"]
    what: str
    then: str


KINDS: Final = {
    "manifest": Kind("manifest", "error", "broken record", "every command refuses the manifest"),
    "image-missing": Kind(
        "image files", "error", "image is missing", "is --images right? training skips the record"
    ),
    "image-outside": Kind(
        "image files", "error", "image leads out of the folder", "copy it into the folder"
    ),
    "image-unreadable": Kind(
        "decoding", "error", "image cannot be decoded", "training skips the record"
    ),
    "image-tiny": Kind(
        "image content", "warning", "image is tiny", "it is enlarged to the student's square"
    ),
    "image-constant": Kind(
        "image content", "warning", "image is of one colour", "nothing can be learnt from it"
    ),
    "mask-missing": Kind("image files", "error", "mask is missing", "mend or remove `mask`"),
    "mask-unreadable": Kind(
        "decoding", "error", "mask cannot be decoded", "mend or remove `mask`"
    ),
    "mask-size": Kind(
        "image content", "error", "mask is of another size", "it marks other pixels than meant"
    ),
    "no-answer": Kind(
        "records", "error", "no answer", "neither training nor scoring can use it"
    ),
    "empty-answer": Kind(
        "records", "error", "blank answer", "`eval score` refuses it, training learns silence"
    ),
    "options-malformed": Kind(
        "records", "error", "`options` are no list of two texts or more", "scoring refuses it"
    ),
    "options-repeated": Kind(
        "records", "error", "options repeat", "no answer can mean one of them alone"
    ),
    "answer-no-option": Kind(
        "records", "error", "answer is none of the options", "no answer can be right"
    ),
    "options-unseen": Kind(
        "records", "warning", "question lacks its options", "the student cannot know them"
    ),
    "closed-odd": Kind(
        "records", "warning", "CLOSED without options, and neither yes nor no",
        "LLaVA-Med's scorer counts every answer as wrong",
    ),
    "no-answer-type": Kind(
        "records", "warning", "no `answer_type`", "`--task vqa` scores it as CLOSED"
    ),
    "contradiction": Kind(
        "records", "warning", "other answers to the same images and question",
        "at most one of them can be scored as right",
    ),
    "duplicate": Kind("records", "warning", "repeats an earlier record", "it counts twice"),
}  # fmt: skip
"""Every kind of finding, the worst first in each matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One case; texts of questions, answers and reports are never part of it.

    Attributes:
        kind: one of `KINDS`.
        line: of the record; the number of the item in a JSON array.
        id: of the record; None where it could not be read.
        text: what is wrong there.
    """

    kind: str
    line: int
    id: str | None
    text: str


@dataclass(slots=True)
class Findings:
    """All findings of a manifest.

    Attributes:
        unit: what numbers count: "line", or "item" of a JSON array.
        all: in no order.
        records: records that could be read.
        images: distinct images that they name.
        decoded: images that were decoded.
    """

    unit: str = "line"
    all: list[Finding] = field(default_factory=list)
    records: int = 0
    images: int = 0
    decoded: int = 0

    def add(self, kind: str, line: int, id_: str | None, text: str) -> None:
        """Add one."""
        self.all.append(Finding(kind=kind, line=line, id=id_, text=text))

    def of(self, kind: str) -> list[Finding]:
        """The findings of a kind, by line."""
        return sorted((f for f in self.all if f.kind == kind), key=lambda f: f.line)

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(KINDS[finding.kind].severity == "error" for finding in self.all)

    def place(self, finding: Finding) -> str:
        """Name the record of a finding."""
        who = "" if finding.id is None else f", {shorten(finding.id)}"
        return f"{self.unit} {finding.line}{who}"

    def summary(self, part: Part, fine: str, advice: str) -> Check:
        """Sum up one part in one line, with its first cases.

        Args:
            part: of the manifest and its images.
            fine: the text when nothing is wrong.
            advice: what to do when something is.
        """
        grouped = {
            kind: cases
            for name, kind in KINDS.items()
            if kind.part == part and (cases := self.of(name))
        }
        if not grouped:
            return Check(part, "ok", fine)
        counts = ", ".join(f"{len(cases):,} x {kind.what}" for kind, cases in grouped.items())
        failed = any(kind.severity == "error" for kind in grouped)
        cases = [case for listed in grouped.values() for case in listed]
        # Of a file, its name says more than all the records that show it.
        named = part in ("manifest", "records")
        texts = (f"{self.place(case)}: {case.text}" if named else case.text for case in cases)
        distinct = list(dict.fromkeys(texts))
        return Check(part, "failed" if failed else "warning", counts, advice, first(distinct))


_YES_NO: Final = ("yes", "no")


class RecordRules:
    """Looks at records one after the other; remembers digests of questions and answers.

    Args:
        findings: what is wrong is added here.
    """

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
        value = record.fields.get("options")
        if value is None or value == []:
            return
        options = [normalised(option) for option in _texts(value)]
        if len(options) < 2:
            self._add("options-malformed", record, "must be a list of at least two texts")
            return
        count = len(options)
        repeated = [number for number, name in enumerate(options, 1) if options.count(name) > 1]
        if repeated:
            self._add("options-repeated", record, f"option {repeated[0]} of {count} repeats")
        if normalised(_answer(record)) not in options:
            self._add("answer-no-option", record, f"is none of the {count} options")
        question = f" {normalised(record.conversations[0].text)} "
        unseen = [
            str(number) for number, name in enumerate(options, 1) if f" {name} " not in question
        ]
        if unseen:
            text = f"option {', '.join(unseen)} of {count} is not in it"
            self._add("options-unseen", record, text)

    def _typed(self, record: Record) -> None:
        if _is_report(record) or record.fields.get("options"):
            return
        if record.answer_type is None:
            self._add("no-answer-type", record, "is neither OPEN nor CLOSED")
        elif record.answer_type == "CLOSED" and normalised(_answer(record)) not in _YES_NO:
            self._add("closed-odd", record, "the answer is another one")

    def _repeated(self, record: Record) -> None:
        unit = self._findings.unit
        turns = tuple(turn.text.strip() for turn in record.conversations)
        line = self._records.setdefault(_digest((record.images, turns)), record.line)
        if line != record.line:
            self._add("duplicate", record, f"the same as {unit} {line}")
            return
        if _is_report(record) or len(turns) != 2:
            return
        options = tuple(_texts(record.fields.get("options")))
        question = _digest((record.images, normalised(turns[0]), options))
        answers, answer = self._answers.setdefault(question, {}), _digest(normalised(turns[1]))
        others = [line for other, line in answers.items() if other != answer]
        answers.setdefault(answer, record.line)
        if others:
            self._add("contradiction", record, f"answered otherwise on {unit} {others[0]}")

    def _add(self, kind: str, record: Record, text: str) -> None:
        self._findings.add(kind, record.line, record.id, text)


def _is_report(record: Record) -> bool:
    report = record.fields.get("report")
    return isinstance(report, str) and bool(report.strip())


def _answer(record: Record) -> str:
    return next(turn.text for turn in record.conversations if turn.role == "gpt")


def _texts(options: object) -> Sequence[str]:
    """Return options that are all texts; () for anything else."""
    if not isinstance(options, list):
        return ()
    sound = all(isinstance(option, str) and option.strip() for option in options)
    return options if sound else ()


def _digest(value: Hashable) -> int:
    # 64 bits: two of a million records agree by chance in one manifest of 30 million.
    return hash(value)


def checked_by_rules(manifest: Path, findings: Findings) -> Iterator[Record]:
    """Yield the records that can be read; everything that is wrong goes to `findings`.

    Raises:
        ManifestError: the file is no manifest at all.
    """
    rules = RecordRules(findings)
    for name, line, record in scan_records(manifest):
        findings.unit = name.partition(" ")[0]
        if isinstance(record, Record):
            findings.records += 1
            rules.look(record)
            yield record
        else:
            for problem in record:
                findings.add("manifest", line, None, problem)
