"""What both sets of chest X-ray reports share: the instruction in front of a report."""

from typing import Final

from .dataset import Choice

QUESTION: Final = Choice(
    name="question",
    # Our own words: MedAlign's instruction is not published.
    default="Describe the findings of this chest X-ray as a radiologist would report them.",
    values=(),
    help="the instruction in front of every report",
)
