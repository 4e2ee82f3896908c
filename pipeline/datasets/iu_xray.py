"""IU-Xray: yes/no questions (CARES) and reports (R2Gen) about the chest X-rays of Open-i.

Image paths name patient and study: CXR<patient>_IM-<study>...
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ..manifest import IMAGE_PLACEHOLDER
from .definition import (
    SPLITS,
    Choice,
    Counts,
    DataSet,
    DataSetError,
    Item,
    Layout,
    LeftOut,
    Published,
    Sample,
    Source,
    Split,
)
from .formats import as_text, fields_of, leading_yes_no, read_items, read_json, read_json_lines

ANNOTATION: Final = Layout(
    name="R2Gen annotation.json", files=("annotation.json",), images="images"
)
QUESTION: Final = Choice(
    name="question",
    # Our own words: MedAlign's instruction is not published.
    default="Describe the findings of this chest X-ray as a radiologist would report them.",
    values=(),
    help="the instruction in front of every report",
)
_OPEN_I: Final = Layout(name="list of open_i_ items", files=("test.json",), images="images")
_QUESTIONS: Final = "iuxray_factuality.jsonl"
_STUDY: Final = re.compile(r"(CXR\d+)_IM-[\d-]+")


def study_of(path: str) -> str | None:
    """Return the study that an image path or an id names, as "CXR1_IM-0001-3001"; else None.

    R2Gen has a folder a study, Open-i a file an image, whose last number tells the image.
    """
    folder, slash, name = path.rpartition("/")
    match = _STUDY.fullmatch(folder.rpartition("/")[2] if slash else name.removesuffix(".png"))
    return match[0] if match else None


def patient_of(study: str) -> str:
    """Return the patient's name: what comes before "_IM-"."""
    return study.partition("_")[0]


def read_annotation(path: Path, *, mimic: bool) -> Iterator[tuple[str, Split, Mapping[str, Any]]]:
    """Yield (label, split, item) of an annotation file.

    Args:
        path: the file.
        mimic: it must be the one of MIMIC-CXR, whose items name a `subject_id`; else the other.

    Raises:
        DataSetError: it is another file; the message holds no text of it.
    """
    content = read_json(path)
    names = [split for split in SPLITS if split in content] if isinstance(content, dict) else []
    if not names or not all(isinstance(content[split], list) for split in names):
        raise DataSetError(f"{path}: must be an object with lists train, val and test, as R2Gen's")
    for split in names:
        for number, item in enumerate(content[split], start=1):
            if not isinstance(item, dict):
                raise DataSetError(f"{path}: item {number} of {split} is no object")
            if ("subject_id" in item) != mimic:
                other = "iu-xray-report" if mimic else "mimic-cxr-report"
                raise DataSetError(f"{path}: is the annotation of the other set; prepare {other}")
            yield f"{path.name} {split} item {number}", split, item


def _read_questions(source: Source, _choices: Mapping[str, str]) -> Iterator[Item]:
    for label, item in read_json_lines(source.root / source.layout.files[0]):
        yield _question(item, label)


def _question(item: Mapping[str, Any], label: str) -> Item:
    image = as_text(item.get("image"))
    answer = leading_yes_no(as_text(item.get("answer")))
    if answer is None:
        return LeftOut(where=label, reason="its answer begins with neither yes nor no")
    study = study_of(image)
    if study is None:
        return LeftOut(where=label, reason="its image path names no study (CXRn_IM-m/0.png)")
    return Sample(
        where=label,
        split=None,
        images=(image,),
        # The placeholder stands last in the file; a manifest's question begins with it.
        question=as_text(item.get("question")).replace(IMAGE_PLACEHOLDER, " "),
        answer=answer,
        answer_type="CLOSED",
        modality="X-ray",
        patient=patient_of(study),
        study=study,
    )


def _read_reports(source: Source, choices: Mapping[str, str]) -> Iterator[Item]:
    path = source.root / source.layout.files[0]
    if source.layout is _OPEN_I:
        for label, item in read_items(path):
            images = _paths(item.get("image"))
            yield from _reports(item, label, "test", images, "findings", choices)
        return
    for label, split, item in read_annotation(path, mimic=False):
        images = _paths(item.get("image_path"))
        yield from _reports(item, label, split, images, "report", choices)


def _reports(
    item: Mapping[str, Any],
    label: str,
    split: Split,
    images: tuple[str, ...],
    field: str,
    choices: Mapping[str, str],
) -> Iterator[Item]:
    study = study_of(images[0]) if images else None
    if study is None:
        yield LeftOut(where=label, reason="its image path names no study (CXRn_IM-m)")
        return
    # R2Gen numbers the images of a study; 0.png is the one that is trained on.
    first = next((path for path in images if path.endswith("/0.png")), images[0])
    own, report = as_text(item.get("id")), as_text(item.get(field)).strip()
    for path in images if choices["views"] == "each" else (first,):
        name = path.rpartition("/")[2].removesuffix(".png")
        yield Sample(
            where=label,
            id=own if path == first else f"{own}_{name}",
            split=split,
            images=(path,),
            question=choices["question"],
            answer=report,
            report=report,
            modality="X-ray",
            patient=patient_of(study),
            study=own or study,
            extra=fields_of(item, ("impression",)),
        )


def _paths(value: object) -> tuple[str, ...]:
    paths = value if isinstance(value, list) else [value]
    return tuple(text for path in paths if (text := as_text(path)))


IU_XRAY_VQA: Final = DataSet(
    name="iu-xray-vqa",
    title="IU-Xray VQA of CARES",
    licence="CC-BY-4.0 (questions); CC-BY-NC-ND-4.0 (images)",
    terms="questions CC BY 4.0 by CARES; images and reports behind them under Open-i's terms",
    layouts=(
        Layout(name="CARES data/IU-Xray", files=(_QUESTIONS,), images="images"),
        Layout(
            name="CARES repository",
            files=(f"data/IU-Xray/{_QUESTIONS}",),
            images="data/IU-Xray/images",
        ),
    ),
    published=(
        Published(
            name="CARES",
            source="lines of the released file; some are left out here for want of an answer",
            counts={"total": Counts(records=2573, images=587)},
        ),
    ),
    split_rule=(
        "none is published (all are R2Gen's test studies), MedAlign's own is not either: "
        "cut by patient"
    ),
    id_rule="iu-xray-vqa_<hash of image, question and answer>; question_id is 0 in every line",
    read=_read_questions,
    fractions={"test": 0.2},
)

IU_XRAY_REPORT: Final = DataSet(
    name="iu-xray-report",
    title="IU-Xray reports",
    licence="CC-BY-NC-ND-4.0",
    terms="CC BY-NC-ND 4.0 (Open-i): not for commercial use, no changed copies passed on",
    layouts=(ANNOTATION, _OPEN_I),
    published=(
        Published(
            name="R2Gen",
            source="studies of the released annotation.json",
            counts={
                "train": Counts(records=2069, images=2069),
                "val": Counts(records=296, images=296),
                "test": Counts(records=590, images=590),
            },
            layouts=(ANNOTATION.name,),
            choices={"views": "one"},
        ),
        Published(
            name="MedEvalKit",
            source="items of its test file",
            counts={"test": Counts(records=296)},
            layouts=(_OPEN_I.name,),
            choices={"views": "one"},
        ),
    ),
    split_rule="official: R2Gen's lists train, val and test",
    id_rule="iu-xray-report_<id>; further views of a study end in their file's name",
    read=_read_reports,
    choices=(
        Choice(
            name="views",
            default="one",
            values=("one", "each"),
            help="one image a study (0.png), or a record for each of its images",
        ),
        QUESTION,
    ),
)
