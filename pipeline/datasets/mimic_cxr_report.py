"""MIMIC-CXR reports: chest X-rays with their findings, as R2Gen or PhysioNet hand them out.

No text of a report leaves this file but inside a sample: what is said about an item (where,
reason, errors, progress) is a file, a number or an id.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from .chest_report import QUESTION
from .dataset import Choice, Counts, DataSet, Published, Source
from .json_source import as_text
from .physionet import (
    LAYOUTS,
    Shot,
    find_texts,
    is_dicom_id,
    is_number,
    read_shots,
    read_text,
)
from .r2gen import ANNOTATION, read_annotation
from .report_sections import find_section
from .sample import Item, LeftOut, Sample, Split
from .seeded_sample import SAMPLE, SAMPLE_SEED, take

_FRONTAL: Final = ("AP", "PA")


def _read(source: Source, choices: Mapping[str, str]) -> Iterator[Item]:
    if source.layout is ANNOTATION:
        yield from _from_annotation(source, choices)
    else:
        yield from _from_physionet(source, choices)


def _from_annotation(source: Source, choices: Mapping[str, str]) -> Iterator[Item]:
    train = defaultdict[str, list[Item]](list)
    for where, split, item in read_annotation(source.root / "annotation.json", mimic=True):
        found = _annotated(where, split, item, choices["question"])
        if split == "train":
            train[as_text(item.get("subject_id"))].append(found)
        else:
            yield found
    yield from take(train, iter, choices, source.usable)


def _annotated(where: str, split: Split, item: Mapping[str, Any], question: str) -> Item:
    paths = item.get("image_path")
    report = " ".join(as_text(item.get("report")).split())
    if not report:
        return LeftOut(where=where, reason="its report is blank")
    own, patient, study = (as_text(item.get(each)) for each in ("id", "subject_id", "study_id"))
    # Ids are told; text of a report that stands in their place must not be.
    numbers = all(is_number(each) for each in (patient, study) if each)
    if not numbers or (own and not is_dicom_id(own)):
        return LeftOut(where=where, reason="its id, subject_id or study_id is none of MIMIC-CXR")
    return Sample(
        where=where,
        id=own or None,
        split=split,
        images=tuple(as_text(path) for path in (paths if isinstance(paths, list) else [paths])),
        question=question,
        answer=report,
        report=report,
        modality="X-ray",
        patient=patient or None,
        study=study or None,
    )


def _from_physionet(source: Source, choices: Mapping[str, str]) -> Iterator[Item]:
    texts = find_texts(source.root, choices["texts"])
    views = _FRONTAL if choices["views"] == "frontal" else ()
    patients: dict[Split, dict[str, list[Shot]]] = {"train": {}, "val": {}, "test": {}}
    for found in read_shots(source.root, source.layout, views=views):
        if isinstance(found, LeftOut):
            yield found
        else:
            patients[found.split].setdefault(found.patient, []).append(found)
    total = sum(len(shots) for named in patients.values() for shots in named.values())
    read = partial(_of_patient, texts, choices["question"])
    with source.progress.stage("reading reports", total=total):
        for split, named in patients.items():
            asked = choices if split == "train" else {**choices, SAMPLE.name: SAMPLE.default}
            for item in take(named, read, asked, source.usable):
                yield item
                source.progress.advance(1)


def _of_patient(texts: Path, question: str, shots: Sequence[Shot]) -> Iterator[Item]:
    """Yield an item for each image of one patient; each text is read once."""
    known: dict[str, tuple[str, str] | LeftOut] = {}
    for shot in shots:
        if shot.text not in known:
            known[shot.text] = _section(texts, shot)
        yield _shown(shot, known[shot.text], question)


def _section(texts: Path, shot: Shot) -> tuple[str, str] | LeftOut:
    text = read_text(texts, shot.text)
    if isinstance(text, LeftOut):
        return text
    why = "its report has neither findings nor an impression"
    return find_section(text) or LeftOut(where=shot.text, reason=why, by_rule=True)


def _shown(shot: Shot, found: tuple[str, str] | LeftOut, question: str) -> Item:
    if isinstance(found, LeftOut):
        return found
    section, report = found
    return Sample(
        where=shot.image,
        id=shot.dicom,
        split=shot.split,
        images=(shot.image,),
        question=question,
        answer=report,
        report=report,
        modality="X-ray",
        patient=shot.patient,
        study=shot.study,
        extra={"section": section},
    )


MIMIC_CXR_REPORT: Final = DataSet(
    name="mimic-cxr-report",
    title="MIMIC-CXR reports",
    licence="PhysioNet-Credentialed-Health-Data-1.5.0",
    terms="credentialed access: neither images, reports nor these manifests may be passed on",
    layouts=(ANNOTATION, *LAYOUTS),
    published=(
        Published(
            name="R2Gen",
            source="images in the R2Gen paper",
            counts={
                "train": Counts(records=270790),
                "val": Counts(records=2130),
                "test": Counts(records=3858),
            },
            layouts=(ANNOTATION.name,),
            choices={"sample": "all"},
        ),
        Published(
            name="PhysioNet",
            source="images of the split table, before any is left out",
            counts={
                "train": Counts(images=368960),
                "val": Counts(images=2991),
                "test": Counts(images=5159),
            },
            layouts=tuple(layout.name for layout in LAYOUTS),
            choices={"sample": "all", "views": "all"},
        ),
    ),
    split_rule="official; MedAlign trains on a subset that is not published, see --choose sample=",
    id_rule="mimic-cxr-report_<dicom_id>",
    read=_read,
    choices=(
        Choice(
            name="views",
            default="frontal",
            values=("frontal", "all"),
            help="frontal keeps ViewPosition AP and PA; R2Gen's file does not tell views",
        ),
        Choice(
            name="texts",
            default="auto",
            values=(),
            help="folder of PhysioNet's reports, which holds p10 to p19",
        ),
        SAMPLE,
        SAMPLE_SEED,
        QUESTION,
    ),
    private=True,
)
