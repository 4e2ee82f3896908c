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
    """As `medalign eval score` calls it."""

    value: float
    """In percent."""

    called: str
    """As the source calls it."""

    source: Literal["paper", "leaderboard"]
    """`paper`: a table of arXiv 2512.18554. `leaderboard`: wizwand.com's page of that paper, which
    does not name the student, so it is the best of the paper's rows."""

    table: str | None = None
    """Of the paper, where the source says it."""


class PaperSection(Section):
    """The row of the paper that a recipe reproduces.

    No run depends on it: `medalign recipes` makes commands and costs of it.
    """

    student: Literal["llava-med", "huatuo-vision"] | None = None
    """Family of the original checkpoint, as `medalign student convert --family` takes it."""

    data: DataName | None = None
    """Data set, as `medalign data prepare` takes it."""

    images_apart: bool = False
    """The data set comes without its images; `data prepare` is told their folder."""

    task: Literal["vqa", "report"] | None = None
    """How `medalign eval score` scores its answers."""

    decoders: Annotated[tuple[Literal["greedy", "beam", "nucleus"], ...], Strict(False)] = ()
    """How answers are decoded, one evaluation each."""

    beams: Positive | None = None
    """Hypotheses of beam search."""

    max_new_tokens: Positive | None = None
    """Longest answer."""

    train_conversations: Positive | None = None
    """Conversations to train on, as far as they are published."""

    train_images: Positive | None = None
    """Distinct images of these, which is how many rows the cache gets."""

    test_conversations: Positive | None = None
    """Questions or reports of the test split."""

    counted: str | None = None
    """What these three counts are of, and whether the paper says so."""

    assumed: dict[str, str] = Field(default={})
    """Dotted keys whose value no source states for this row, each with the reason for it."""

    numbers: Annotated[tuple[PaperNumber, ...], Strict(False)] = ()
    """Figures to compare with; empty where none could be had."""
