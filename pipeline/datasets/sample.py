"""What a preparer hands over: samples, and what it had to leave out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")
"""In the order in which they are written and shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Hold one question and its answer as the data set has them; blanks at both ends do not count.

    Attributes:
        where: file and item, for messages ("train.json item 12"); never text of the sample.
        split: None leaves it to the seeded cut.
        images: paths relative to the image folder, at least one.
        question: without `<image>`; options are appended to it from `options`.
        answer: what the model shall say.
        id: the set's own id, unique in it; None gives a hash of images, question and answer.
        answer_type: None where it means nothing (reports).
        options: of a multiple-choice question, in order; () for any other question.
        patient: samples of one patient never lie on both sides of a seeded cut.
        study: as `patient`, where the set names studies only.
        mask: path of a mask of the first image, relative to the image folder.
        licence: of this sample, where samples of one set differ; None is the set's.
        report: the reference of a report, for `eval score --task report`.
        extra: further fields of the set that are kept in the manifest under their own names.
    """

    where: str
    split: Split | None
    images: tuple[str, ...]
    question: str
    answer: str
    id: str | None = None
    answer_type: Literal["OPEN", "CLOSED"] | None = None
    options: tuple[str, ...] = ()
    modality: str | None = None
    patient: str | None = None
    study: str | None = None
    mask: str | None = None
    licence: str | None = None
    report: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Say that one item of the source becomes no sample.

    Attributes:
        where: file and item; never text of the sample.
        reason: the same words for the same reason, since they are counted by it; no path.
        by_rule: the set's rule asks for it (another language); otherwise something is wrong with
            the item, and the command ends with exit code 1.
        image: path of the image at fault; distinct ones are counted, and it is not shown.
    """

    where: str
    reason: str
    by_rule: bool = False
    image: str | None = None


Item = Sample | LeftOut
