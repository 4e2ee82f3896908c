"""MIMIC-CXR reports: chest X-rays with their findings, as R2Gen or PhysioNet hand them out.

No text of a report leaves this file but inside a sample: labels, reasons, errors and progress
hold files, numbers and ids only.
"""

import csv
import gzip
import re
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TextIO, cast

from ..manifest import ManifestError, resolve_image
from .definition import (
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
from .formats import as_text
from .iu_xray import ANNOTATION, QUESTION, read_annotation
from .split import SAMPLE, SAMPLE_SEED, take

Section = Literal["findings", "impression"]

_SPLIT_TABLE, _METADATA = "mimic-cxr-2.0.0-split.csv*", "mimic-cxr-2.0.0-metadata.csv*"
_SPLITS: Final[Mapping[str, Split]] = {"train": "train", "validate": "val", "test": "test"}
_FRONTAL: Final = ("AP", "PA")
_DICOM_ID: Final = re.compile(r"[0-9A-Za-z-]+")
_TEXTS: Final = ("mimic-cxr-reports/files", "mimic-cxr/files", "mimic-cxr/2*/files")


def _tree(version: str) -> Layout:
    folder = f"mimic-cxr-jpg/{version}"
    return Layout(
        name=f"PhysioNet, both folders, mimic-cxr-jpg {version}",
        files=(f"{folder}/{_SPLIT_TABLE}", f"{folder}/{_METADATA}"),
        images=f"{folder}/files",
    )


_PHYSIONET: Final = (
    _tree("2.0.0"),
    _tree("2.1.0"),
    Layout(name="PhysioNet, mimic-cxr-jpg alone", files=(_SPLIT_TABLE, _METADATA), images="files"),
)

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
    # The words before it name the view: "PORTABLE CHEST FINDINGS:".
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


@dataclass(frozen=True, slots=True)
class Shot:
    """Hold one row of the split table: ids of the image, its study and patient, and the split."""

    dicom: str
    study: str
    patient: str
    split: Split

    @property
    def folder(self) -> str:
        """The patient's folder, for images and texts alike."""
        return f"p{self.patient[:2]}/p{self.patient}"

    @property
    def image(self) -> str:
        """Path of the image."""
        return f"{self.folder}/s{self.study}/{self.dicom}.jpg"

    @property
    def text(self) -> str:
        """Path of the study's text."""
        return f"{self.folder}/s{self.study}.txt"


def _read(source: Source, choices: Mapping[str, str]) -> Iterator[Item]:
    if source.layout is ANNOTATION:
        yield from _from_annotation(source, choices)
    else:
        yield from _from_physionet(source, choices)


def _from_annotation(source: Source, choices: Mapping[str, str]) -> Iterator[Item]:
    train = defaultdict[str, list[Item]](list)
    for label, split, item in read_annotation(source.root / "annotation.json", mimic=True):
        sample = _annotated(label, split, item, choices["question"])
        if split == "train":
            train[as_text(item.get("subject_id"))].append(sample)
        else:
            yield sample
    yield from take(train, iter, choices, source.usable)


def _annotated(label: str, split: Split, item: Mapping[str, Any], question: str) -> Item:
    paths = item.get("image_path")
    report = " ".join(as_text(item.get("report")).split())
    if not report:
        return LeftOut(where=label, reason="its report is blank")
    own, patient, study = (as_text(item.get(name)) for name in ("id", "subject_id", "study_id"))
    # Messages show ids; text of a report that stands in their place must stay out of them.
    numbers = all(_is_number(text) for text in (patient, study) if text)
    if not numbers or (own and not _DICOM_ID.fullmatch(own)):
        return LeftOut(where=label, reason="its id, subject_id or study_id is none of MIMIC-CXR")
    return Sample(
        where=label,
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
    texts = _find_texts(source.root, choices["texts"])
    views = _FRONTAL if choices["views"] == "frontal" else ()
    patients: dict[Split, dict[str, list[Shot]]] = {"train": {}, "val": {}, "test": {}}
    for shot in _read_shots(source.root, source.layout, views=views):
        if isinstance(shot, LeftOut):
            yield shot
        else:
            patients[shot.split].setdefault(shot.patient, []).append(shot)
    total = sum(len(shots) for groups in patients.values() for shots in groups.values())
    read = partial(_of_patient, texts, choices["question"])
    with source.progress.stage("reading reports", total=total):
        for split, groups in patients.items():
            sampled = choices if split == "train" else {**choices, SAMPLE.name: SAMPLE.default}
            for item in take(groups, read, sampled, source.usable):
                yield item
                source.progress.advance(1)


def _of_patient(texts: Path, question: str, shots: Sequence[Shot]) -> Iterator[Item]:
    """Yield an item for each image of one patient; each text is read once."""
    sections: dict[str, tuple[Section, str] | LeftOut] = {}
    for shot in shots:
        if shot.text not in sections:
            sections[shot.text] = _read_section(texts, shot.text)
        section = sections[shot.text]
        yield section if isinstance(section, LeftOut) else _sample(shot, *section, question)


def _sample(shot: Shot, section: Section, report: str, question: str) -> Sample:
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


def _read_shots(root: Path, layout: Layout, *, views: Sequence[str]) -> Iterator[Shot | LeftOut]:
    """Yield the rows of the split table.

    Args:
        root: the set's folder.
        layout: one of `_PHYSIONET`.
        views: values of ViewPosition to read; () reads all.

    Raises:
        DataSetError: a table lacks a column, or is there twice.
    """
    split, metadata = (_only(root, pattern) for pattern in layout.files)
    of_views = None
    if views:
        rows = _rows(metadata, "dicom_id", "ViewPosition")
        of_views = {dicom for _, (dicom, view) in rows if view in views}
    for line, row in _rows(split, "dicom_id", "study_id", "subject_id", "split"):
        dicom, study, patient, name = row
        label = f"{split.name} line {line}"
        ids = _is_number(study) and _is_number(patient) and _DICOM_ID.fullmatch(dicom)
        if name not in _SPLITS or not ids:
            yield LeftOut(where=label, reason="its row in the split table is not as it should be")
        elif of_views is not None and dicom not in of_views:
            yield LeftOut(where=label, reason=f"its view is not {' or '.join(views)}", by_rule=True)
        else:
            yield Shot(dicom, study, patient, _SPLITS[name])


def _is_number(text: str) -> bool:
    """Return whether a text can be the number of a patient or a study."""
    return text.isascii() and text.isdecimal()


def _only(root: Path, pattern: str) -> Path:
    paths = [
        path
        for path in root.glob(pattern)
        if path.suffix in (".csv", ".gz") and path.name[0] != "."
    ]
    if len(paths) != 1:
        raise DataSetError(f"{root / pattern}: must be one file, found {len(paths)}")
    return paths[0]


def _rows(path: Path, *columns: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, values of some columns) of a table, which may be compressed."""
    with _open(path) as file:
        try:
            table = csv.DictReader(file)
            lacking = [name for name in columns if name not in (table.fieldnames or ())]
            if lacking:
                raise DataSetError(f"{path}: lacks the column {lacking[0]}; is it PhysioNet's?")
            for row in table:
                yield table.line_num, [row[name] or "" for name in columns]
        except (csv.Error, EOFError, UnicodeDecodeError, gzip.BadGzipFile, zlib.error):
            raise DataSetError(f"{path}: is cut short or damaged; download it again") from None


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return path.open(encoding="utf-8-sig", newline="")


def _find_texts(root: Path, choice: str) -> Path:
    """Return the folder of the texts, which holds p10 to p19.

    Args:
        root: the set's folder.
        choice: that folder, or "auto" to look in `root` and in the two folders around it.

    Raises:
        DataSetError: it is not there.
    """
    if choice != "auto":
        if Path(choice).is_dir():
            return Path(choice)
        looked = choice
    else:
        for base in (root, *root.absolute().parents[:2]):
            if folders := [path for pattern in _TEXTS for path in sorted(base.glob(pattern))]:
                return folders[-1]  # the newest version
        looked = f"{' or '.join(_TEXTS)} in {root} or around it"
    raise DataSetError(
        f"{looked}: no such folder; reports are a download of their own (mimic-cxr, or "
        "mimic-cxr-reports.zip): pass --choose texts=DIR with the folder that holds p10 to p19"
    )


def _read_section(texts: Path, path: str) -> tuple[Section, str] | LeftOut:
    """Return the findings or impression of a study's text, or why there are none."""
    try:
        text = resolve_image(texts, path).read_bytes().decode("utf-8")
    except ManifestError:
        reason = "its report leads out of their folder through a link"
    except FileNotFoundError:
        reason = "its report is not there"
    except OSError as error:
        reason = f"its report cannot be read: {(error.strerror or 'no reason given').lower()}"
    except UnicodeDecodeError:
        reason = "its report is not UTF-8"
    else:
        none = "its report has neither findings nor an impression"
        return find_section(text) or LeftOut(where=path, reason=none, by_rule=True)
    return LeftOut(where=path, reason=reason)


def find_section(text: str) -> tuple[Section, str] | None:
    """Return the findings of a report, else its impression, with single blanks; None for neither.

    What stands before the last line FINAL REPORT counts only if nothing is found after it. Of
    several sections of one kind the first that holds text counts: an addendum's come later.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    starts = [line.end() for line in _FINAL.finditer(text)] or [0]
    sections = (_first_section(text[start:]) for start in reversed(starts))
    return next((section for section in sections if section), None)


def _first_section(body: str) -> tuple[Section, str] | None:
    headings = list(_HEADING.finditer(body))
    ends = [heading.start() for heading in headings[1:]] + [len(body)]
    contents: dict[str, str] = {}
    for heading, end in zip(headings, ends[: len(headings)], strict=True):
        content = " ".join(body[heading.end() : end].split())
        if heading.lastgroup and content:
            contents.setdefault(heading.lastgroup.rstrip("_"), content)
    for kind in ("findings", "impression"):
        if kind in contents:
            return kind, contents[kind]
    return None


MIMIC_CXR_REPORT: Final = DataSet(
    name="mimic-cxr-report",
    title="MIMIC-CXR reports",
    licence="PhysioNet-Credentialed-Health-Data-1.5.0",
    terms="credentialed access: neither images, reports nor these manifests may be passed on",
    layouts=(ANNOTATION, *_PHYSIONET),
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
            layouts=tuple(layout.name for layout in _PHYSIONET),
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
            help="frontal keeps ViewPosition AP and PA; R2Gen's file names no views",
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
