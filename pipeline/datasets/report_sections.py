"""Take the findings out of a radiology report of MIMIC-CXR, or else the impression.

A report may have a preliminary part (wet read), then a line FINAL REPORT, then sections that begin
with a heading and a colon at the start of a line. Only headings that are known end a section:
findings often go on under headings of their own (LUNGS:, HEART:).
"""

import re
from typing import Final, Literal

Section = Literal["findings", "impression"]

_FINAL: Final = re.compile(r"^[ \t]*FINAL REPORT[ \t]*$", re.MULTILINE)
_IMPRESSION: Final = r"IMPRESSIONS?|CONCLUSIONS?"
_FINDINGS: Final = rf"FINDINGS?(?:[ ]*(?:AND|/|&)[ ]*(?:{_IMPRESSION}))?"
_OTHERS: Final = (
    r"EXAMS?|(?:TYPE OF )?EXAMINATIONS?|TYPE OF EXAM|STUDY|PROCEDURE|INDICATIONS?|"
    r"CLINICAL (?:INDICATION|HISTORY|INFORMATION)|(?:PATIENT )?HISTORY|"
    r"REASON FOR (?:EXAM|EXAMINATION|STUDY)|TECHNIQUE|COMPARISONS?(?: STUDY)?|"
    r"RECOMMENDATIONS?|NOTIFICATIONS?|WET READ"
)
_HEADING: Final = re.compile(
    # The words before it tell the view: "PORTABLE CHEST FINDINGS:".
    rf"^[ \t]*(?:(?:[A-Z,()-]+[ ]){{0,5}}(?=F)(?P<findings>(?i:{_FINDINGS}))[ \t]*:"
    rf"|(?=[A-Z])(?P<impression>(?i:{_IMPRESSION}))[ \t]*:"
    rf"|(?=[A-Z])(?i:{_OTHERS})[ \t]*:"
    r"|(?:FINAL )?ADDENDUM\b[^:\n]*:?)",
    re.MULTILINE,
)


def find_section(text: str) -> tuple[Section, str] | None:
    """Return the findings of a report, else its impression, with single blanks; None for neither.

    What stands before the last line FINAL REPORT counts only if nothing is found after it. Of
    several sections of one kind the first that holds text counts: an addendum's come later.
    """
    starts = [found.end() for found in _FINAL.finditer(text)] or [0]
    return next((found for start in reversed(starts) if (found := _find(text[start:]))), None)


def _find(body: str) -> tuple[Section, str] | None:
    headings = list(_HEADING.finditer(body))
    ends = [heading.start() for heading in headings[1:]] + [len(body)]
    found: dict[str, str] = {}
    for heading, end in zip(headings, ends[: len(headings)], strict=True):
        content = " ".join(body[heading.end() : end].split())
        if heading.lastgroup and content:
            found.setdefault(heading.lastgroup, content)
    for kind in ("findings", "impression"):
        if kind in found:
            return kind, found[kind]
    return None
