"""What a check of a manifest finds: kinds, how bad each is, and where each occurs."""

from dataclasses import dataclass, field
from typing import Final, Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Hold one kind of finding.

    Attributes:
        severity: an error fails later, or gives a number that means nothing; a warning may.
        what: what is found, in a few words.
        then: what would come of it, or what to do.
    """

    severity: Severity
    what: str
    then: str


KINDS: Final = {
    "manifest": Kind(
        severity="error", what="broken record", then="every command refuses the manifest"
    ),
    "image-missing": Kind(
        severity="error", what="image is not there", then="is --images right? training skips it"
    ),
    "image-outside": Kind(
        severity="error", what="image leads out of the folder", then="copy it into the folder"
    ),
    "image-unreadable": Kind(
        severity="error", what="image cannot be decoded", then="training skips the record"
    ),
    "image-tiny": Kind(
        severity="warning", what="image is tiny", then="it is enlarged to the student's square"
    ),
    "image-constant": Kind(
        severity="warning", what="image is of one colour", then="nothing can be learnt from it"
    ),
    "mask-missing": Kind(severity="error", what="mask is not there", then="mend or remove `mask`"),
    "mask-unreadable": Kind(
        severity="error", what="mask cannot be decoded", then="mend or remove `mask`"
    ),
    "mask-size": Kind(
        severity="error", what="mask is of another size", then="it marks other places than meant"
    ),
    "no-answer": Kind(
        severity="error", what="no answer", then="neither training nor scoring can use it"
    ),
    "empty-answer": Kind(
        severity="error", what="blank answer", then="`eval score` refuses, training learns silence"
    ),
    "options-malformed": Kind(
        severity="error", what="`options` are no list of two texts or more", then="scoring refuses"
    ),
    "options-repeated": Kind(
        severity="error", what="options repeat", then="no answer can be told to mean one of them"
    ),
    "answer-no-option": Kind(
        severity="error", what="answer is none of the options", then="no answer can be right"
    ),
    "options-unseen": Kind(
        severity="warning", what="question lacks its options", then="the student cannot know them"
    ),
    "closed-odd": Kind(
        severity="warning",
        what="CLOSED without options, and neither yes nor no",
        then="LLaVA-Med's scorer counts every answer as wrong",
    ),
    "no-answer-type": Kind(
        severity="warning", what="no `answer_type`", then="`--task vqa` scores it as CLOSED"
    ),
    "contradiction": Kind(
        severity="warning",
        what="other answers to the same images and question",
        then="at most one of them can be scored as right",
    ),
    "duplicate": Kind(
        severity="warning", what="repeats an earlier record", then="it counts twice"
    ),
}  # fmt: skip
"""Every kind of finding, the worst first in each matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Hold one finding; texts of questions, answers and reports are never part of it.

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
    """Hold all findings of a manifest.

    Attributes:
        unit: what numbers count: "line", or "item" of a JSON array.
        found: in no order.
        records: records that could be read.
        images: distinct images that they name.
        decoded: images that were decoded.
    """

    unit: str = "line"
    found: list[Finding] = field(default_factory=list)
    records: int = 0
    images: int = 0
    decoded: int = 0

    def add(self, kind: str, line: int, id_: str | None, text: str) -> None:
        """Add one."""
        self.found.append(Finding(kind=kind, line=line, id=id_, text=text))

    def of(self, kind: str) -> list[Finding]:
        """The findings of a kind, by line."""
        return sorted((f for f in self.found if f.kind == kind), key=lambda f: f.line)

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(KINDS[each.kind].severity == "error" for each in self.found)
