"""From a sample of a data set to a record of a manifest: what can be used, its fields, its id."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...runtime.progress import Progress
from ..manifest import IMAGE_PLACEHOLDER, ImageFolder, check_path, read_record, shorten
from .definition import Item, LeftOut, Sample, Split
from .formats import plain_words
from .prepare_report import LeftOuts, Listed

OPTIONS_PROMPT = " Please choose from the following options: "
"""What MedAlign puts between a question and its options."""
LEADS_OUT = "leads out of the image folder through a link"


def record_of(sample: Sample, *, id_: str, split: Split, licence: str) -> dict[str, Any]:
    """Return the manifest's record of a sample, without the fields that it does not have."""
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


class Ids:
    """Gives every record of a run an id that no other has.

    Attributes:
        repeated: ids of the set that it uses more than once, as they were made unique.
    """

    def __init__(self, name: str) -> None:
        """Take the name of the set, with which every id begins."""
        self._name = name
        self._uses = dict[str, int]()
        self.repeated = Listed()

    def __contains__(self, id_: object) -> bool:
        return id_ in self._uses

    def of(self, sample: Sample) -> str:
        """Return an id that no record has yet: the second of one id ends in _2, and so on."""
        own = f"{self._name}_{_content_id(sample) if sample.id is None else sample.id}"
        self._uses[own] = count = self._uses.get(own, 0) + 1
        if count == 1:
            return own
        unique = f"{own}_{count}"
        while unique in self._uses:
            count += 1
            unique = f"{own}_{count}"
        self._uses[unique] = 1
        if sample.id is not None:
            self.repeated.add(unique)
        return unique


def _content_id(sample: Sample) -> str:
    """Return an id that follows from images, question and answer: 16 hexadecimal digits."""
    content = [*sample.images, sample.question.strip(), sample.answer.strip()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


class Usable:
    """Separates samples that training can use from others; checks each image file once."""

    def __init__(self, images: Path, *, private: bool) -> None:
        """Take the image folder, and whether paths stay out of messages (they may hold text)."""
        self._images, self._private = images, private
        # By path: sets ask several questions about an image, and a look-up costs on a network disk.
        self._problems: dict[str, str | None] = {}

    def __call__(self, item: Item) -> Item:
        """Return a sample that can be used as it is, anything else as what is left out."""
        item = self._checked_text(item)
        return self._checked_images(item) if isinstance(item, Sample) else item

    def sort(self, items: Iterable[Item], left_out: LeftOuts, progress: Progress) -> list[Sample]:
        """Return the samples that can be used; count the other items."""
        samples = list(_samples(map(self._checked_text, items), left_out))
        paths = {path: None for sample in samples for path in sample.images} | self._problems
        with progress.stage("looking for images", total=len(paths), done=len(self._problems)):
            for path in paths:
                if path not in self._problems:
                    self._image_problem(path)
                    progress.advance(1)
        return list(_samples(map(self._checked_images, samples), left_out))

    def _checked_text(self, item: Item) -> Item:
        if isinstance(item, LeftOut):
            return item
        if not item.images or not all(path.strip() for path in item.images):
            return LeftOut(where=item.where, reason="it names no image")
        if problem := _text_problem(item):
            return LeftOut(where=item.where, reason=problem)
        try:
            for path in item.images:
                check_path("image", path)
        except ValueError:
            reason = "its image path must be relative, with / between folders and no `..`"
            return LeftOut(where=self._label(item, path), reason=reason, image=path)
        return item

    def _checked_images(self, sample: Sample) -> Item:
        for path in sample.images:
            if reason := self._image_problem(path):
                return LeftOut(where=self._label(sample, path), reason=reason, image=path)
        return sample

    def _image_problem(self, path: str) -> str | None:
        if path not in self._problems:
            problem = file_problem(self._images, path)
            self._problems[path] = None if problem is None else f"its image {problem}"
        return self._problems[path]

    def _label(self, sample: Sample, path: str) -> str:
        named = self._private or sample.where.endswith(path)
        return sample.where if named else f"{sample.where}: {shorten(path)}"


def _samples(items: Iterable[Item], left_out: LeftOuts) -> Iterator[Sample]:
    for item in items:
        if isinstance(item, Sample):
            yield item
        else:
            left_out.add(item)


def _text_problem(sample: Sample) -> str | None:
    """Return why a sample cannot become a record, or None; never with text of the sample.

    Image paths are not checked here.
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
    result = read_record(record | {"image": ["_"] * len(sample.images) if several else "_"}, 1)
    return "; ".join(result) if isinstance(result, list) else None


def file_problem(folder: Path, path: str) -> str | None:
    """Return why a file could not be opened, as the end of a sentence; it is not opened here."""
    absence = ImageFolder(folder).absence(path)
    if absence is None:
        return None
    if absence.outside:
        return LEADS_OUT
    return f"cannot be looked at: {absence.reason}" if absence.reason else "is not there"
