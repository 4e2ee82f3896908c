"""What a recipe reproduces: a row of the paper, its numbers, which settings are assumed."""

from typing import Annotated, Literal

from pydantic import Field, Strict

from .sections import Positive, Section

DataName = Literal[
    "slake",
    "vqa-rad",
    "pathvqa",
    "omnimedvqa",
    "iu-xray-vqa",
    "iu-xray-report",
    "mimic-cxr-report",
]


class PaperNumber(Section):
    """One figure to compare with."""

    metric: str
    """Name in `medalign eval score`."""

    value: float
    """In percent."""

    called: str
    """Name in the source."""

    source: Literal["paper", "leaderboard"]
    """`paper`: a table of arXiv 2512.18554. `leaderboard`: wizwand.com's page of that paper, which
    names no student, so the figure is the best of the paper's rows."""

    table: str | None = None
    """Table of the paper, if the source names it."""


class PaperSection(Section):
    """The row of the paper that a recipe reproduces.

    No run depends on it; `medalign recipes` derives commands and costs from it.
    """

    student: Literal["llava-med", "huatuo-vision"] | None = None
    """Family of the original checkpoint, as `medalign student convert --family` takes it."""

    data: DataName | None = None
    """Data set, as `medalign data prepare` takes it."""

    images_apart: bool = False
    """The data set comes without its images; `data prepare` needs their folder."""

    task: Literal["vqa", "report"] | None = None
    """Task of `medalign eval score`."""

    decoders: Annotated[tuple[Literal["greedy", "beam", "nucleus"], ...], Strict(False)] = ()
    """Decoders of the answers, one evaluation each."""

    beams: Positive | None = None
    """Beams of beam search."""

    max_new_tokens: Positive | None = None
    """Longest answer, in tokens."""

    train_conversations: Positive | None = None
    """Conversations to train on, if published."""

    train_images: Positive | None = None
    """Their distinct images: the rows of the cache."""

    test_conversations: Positive | None = None
    """Questions or reports of the test split."""

    counted: str | None = None
    """Source of these three counts."""

    assumed: dict[str, str] = Field(default={})
    """Dotted keys whose value no source states for this row, each with the reason for ours."""

    numbers: Annotated[tuple[PaperNumber, ...], Strict(False)] = ()
    """Figures to compare with; empty if there are none."""
