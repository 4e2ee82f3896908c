"""From a sample to a line of a manifest that our own reader accepts."""

import hashlib
import json
from typing import Any

from ..records import IMAGE_PLACEHOLDER, read_record
from .sample import Sample, Split
from .wording import plain_words

OPTIONS_PROMPT = " Please choose from the following options: "
"""What MedAlign puts between a question and its options."""


def record_of(sample: Sample, *, id_: str, split: Split, licence: str) -> dict[str, Any]:
    """Return the manifest's record of a sample; fields that it does not have are left away."""
    question, answer = sample.question.strip(), sample.answer.strip()
    if sample.options:
        question += OPTIONS_PROMPT + ", ".join(sample.options)
    placeholders = f"{IMAGE_PLACEHOLDER}\n" * len(sample.images)
    several = len(sample.images) > 1
    record = {
        "id": id_,
        "image": list(sample.images) if several else sample.images[0],
        "conversations": [
            {"from": "human", "value": placeholders + question},
            {"from": "gpt", "value": answer},
        ],
        "answer_type": sample.answer_type,
        "options": list(sample.options) or None,
        # LLaVA-Med's multiple-choice score takes this as it is; the turn from gpt it lower-cases.
        "answer": answer if sample.options else None,
        "report": sample.report,
        "split": split,
        "modality": sample.modality,
        "patient": sample.patient,
        "study": sample.study,
        "mask": sample.mask,
        "licence": sample.licence or licence,
    }
    known = {name: value for name, value in record.items() if value is not None}
    return known | {name: value for name, value in sample.extra.items() if name not in record}


def line_of(record: dict[str, Any]) -> bytes:
    """Return a record as one line of UTF-8 JSON, with its line feed.

    Raises:
        ValueError: a field holds NaN, an infinity or half a character.
    """
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def problem_of(sample: Sample) -> str | None:
    """Return why a sample cannot become a record, or None; never with text of the sample.

    Image paths are not looked at.
    """
    for name, text in (("question", sample.question), ("answer", sample.answer)):
        if not text.strip():
            return f"the {name} is blank"
        if IMAGE_PLACEHOLDER in text:
            return f"the {name} holds {IMAGE_PLACEHOLDER}"
    if len(sample.options) == 1 or not all(option.strip() for option in sample.options):
        return "its options are fewer than two, or blank"
    if len({plain_words(option) for option in sample.options}) < len(sample.options):
        return "two of its options are the same"
    record = record_of(sample, id_=sample.id or "_", split="train", licence="_")
    try:
        line_of(record)
    except UnicodeEncodeError:
        return "a field holds half a character (a lone surrogate)"
    except ValueError:
        return "a field holds NaN or an infinity, which JSON does not know"
    several = len(sample.images) > 1
    found = read_record(record | {"image": ["_"] * len(sample.images) if several else "_"}, 1)
    return "; ".join(found) if isinstance(found, list) else None


def content_id(sample: Sample) -> str:
    """Return an id that follows from what a sample says: 16 hexadecimal digits."""
    said = [*sample.images, sample.question.strip(), sample.answer.strip()]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
