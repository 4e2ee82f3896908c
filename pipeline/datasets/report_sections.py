"""Take the findings out of a radiology report of MIMIC-CXR, or else the impression.

A report may have a preliminary part (wet read), then a line FINAL REPORT, then sections that begin
with a heading and a colon: at the start of a line, or in capitals after the end of a sentence. Only
headings that are known end a section: findings often go on under headings of their own (LUNGS:,
HEART:), and those that stand before findings in a report do so in capitals only, since "Study:" or
"Comparison:" within findings is text.
"""

import re
from typing import Final, Literal

Section = Literal["findings", "impression"]

_FINAL: Final = re.compile(r"^[ \t]*FINAL REPORT[ \t]*$", re.MULTILINE)
_IMPRESSION: Final = r"(?:IMPRESSION|CONCLUSION)(?:S|\(S\))?"
_FINDINGS: Final = rf"FINDING(?:S|\(S\))?(?:[ ]*(?:AND|/|&)[ ]*(?:{_IMPRESSION}))?"
_BEFORE: Final = (
    r"(?:EXAM|(?:TYPE OF )?EXAMINATION|TYPE OF EXAM|STUDY|PROCEDURE|(?:CLINICAL )?INDICATION|"
    r"CLINICAL (?:HISTORY|INFORMATION)|(?:PATIENT )?HISTORY|REASON FOR (?:EXAM|EXAMINATION|STUDY)|"
    r"TECHNIQUE|COMPARISONS?(?: (?:STUDY|EXAM|FILM))?|REFERENCE EXAM)(?:S|\(S\))?"
)
_AFTER: Final = r"(?:RECOMMENDATION|NOTIFICATION)(?:S|\(S\))?|SUMMARY|WET READ"
_HEADING: Final = re.compile(
    # The words before it tell the view: "PORTABLE CHEST FINDINGS:".
    rf"^[ \t]*(?:(?:[A-Z,()-]+[ ]){{0,5}}(?=F)(?P<findings>(?i:{_FINDINGS}))[ \t]*:"
    rf"|(?=[A-Z])(?P<impression>(?i:{_IMPRESSION}))[ \t]*:"
    rf"|(?=[A-Z])(?i:{_AFTER})[ \t]*:"
    rf"|(?:{_BEFORE})[ \t]*:"
    r"|(?:FINAL )?ADDENDUM\b[^:\n]*:?"
    r"|DR\.(?:[ \t]+[A-Z_.,-]+)*[ \t]*$)"  # who signed
    r"|(?<=[.?!_])[ \t]+(?:"
    rf"(?P<findings_>{_FINDINGS})|(?P<impression_>{_IMPRESSION})|{_AFTER}|{_BEFORE})[ \t]*:",
    re.MULTILINE,
)


def find_section(text: str) -> tuple[Section, str] | None:
    """Return the findings of a report, else its impression, with single blanks; None for neither.

    What stands before the last line FINAL REPORT counts only if nothing is found after it. Of
    several sections of one kind the first that holds text counts: an addendum's come later.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    starts = [found.end() for found in _FINAL.finditer(text)] or [0]
    return next((found for start in reversed(starts) if (found := _find(text[start:]))), None)


def _find(body: str) -> tuple[Section, str] | None:
    headings = list(_HEADING.finditer(body))
    ends = [heading.start() for heading in headings[1:]] + [len(body)]
    found: dict[str, str] = {}
    for heading, end in zip(headings, ends[: len(headings)], strict=True):
        content = " ".join(body[heading.end() : end].split())
        if heading.lastgroup and content:
            found.setdefault(heading.lastgroup.rstrip("_"), content)
    for kind in ("findings", "impression"):
        if kind in found:
            return kind, found[kind]
    return None
