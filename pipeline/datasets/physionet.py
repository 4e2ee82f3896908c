"""MIMIC-CXR as PhysioNet hands it out: tables, and one text file a study.

No text of a report is told to anybody: what cannot be read is named by its file.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO, cast

from ..manifest import ManifestError, resolve_image
from .dataset import DataSetError, Layout
from .sample import LeftOut, Split

_SPLIT, _METADATA = "mimic-cxr-2.0.0-split.csv*", "mimic-cxr-2.0.0-metadata.csv*"
_SPLITS: Final[Mapping[str, Split]] = {"train": "train", "validate": "val", "test": "test"}
_DICOM_ID: Final = re.compile(r"[0-9A-Za-z-]+")
_TEXTS: Final = ("mimic-cxr-reports/files", "mimic-cxr/files", "mimic-cxr/2*/files")


def _tree(version: str) -> Layout:
    folder = f"mimic-cxr-jpg/{version}"
    return Layout(
        name=f"PhysioNet, both folders, mimic-cxr-jpg {version}",
        files=(f"{folder}/{_SPLIT}", f"{folder}/{_METADATA}"),
        images=f"{folder}/files",
    )


LAYOUTS: Final = (
    _tree("2.0.0"),
    _tree("2.1.0"),
    Layout(name="PhysioNet, mimic-cxr-jpg alone", files=(_SPLIT, _METADATA), images="files"),
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


def read_shots(root: Path, layout: Layout, *, views: Sequence[str]) -> Iterator[Shot | LeftOut]:
    """Yield the rows of the split table.

    Args:
        root: the set's folder.
        layout: one of `LAYOUTS`.
        views: values of ViewPosition that are kept; () keeps all.

    Raises:
        DataSetError: a table lacks a column, or is there twice.
    """
    split, metadata = (_only(root, pattern) for pattern in layout.files)
    kept = None
    if views:
        rows = _rows(metadata, "dicom_id", "ViewPosition")
        kept = {dicom for _, (dicom, view) in rows if view in views}
    for line, row in _rows(split, "dicom_id", "study_id", "subject_id", "split"):
        dicom, study, patient, name = row
        where = f"{split.name} line {line}"
        ids = is_number(study) and is_number(patient) and is_dicom_id(dicom)
        if name not in _SPLITS or not ids:
            yield LeftOut(where=where, reason="its row in the split table is not as it should be")
        elif kept is not None and dicom not in kept:
            yield LeftOut(where=where, reason=f"its view is not {' or '.join(views)}", by_rule=True)
        else:
            yield Shot(dicom, study, patient, _SPLITS[name])


def is_number(text: str) -> bool:
    """Return whether a text can be the number of a patient or a study."""
    return text.isascii() and text.isdecimal()


def is_dicom_id(text: str) -> bool:
    """Return whether a text can be the id of an image."""
    return _DICOM_ID.fullmatch(text) is not None


def find_texts(root: Path, asked: str) -> Path:
    """Return the folder of the texts, which holds p10 to p19.

    Args:
        root: the set's folder.
        asked: that folder, or "auto" to look in `root` and in the two folders around it.

    Raises:
        DataSetError: it is not there.
    """
    if asked != "auto":
        if Path(asked).is_dir():
            return Path(asked)
        looked = asked
    else:
        for base in (root, *root.absolute().parents[:2]):
            if found := [path for each in _TEXTS for path in sorted(base.glob(each))]:
                return found[-1]
        looked = f"{' or '.join(_TEXTS)} in {root} or around it"
    raise DataSetError(
        f"{looked}: no such folder; reports are a download of their own (mimic-cxr, or "
        "mimic-cxr-reports.zip): pass --choose texts=DIR with the folder that holds p10 to p19"
    )


def read_text(texts: Path, relative: str) -> str | LeftOut:
    """Return a report, or why it cannot be read."""
    where = relative
    try:
        return resolve_image(texts, relative).read_bytes().decode("utf-8")
    except ManifestError:
        return LeftOut(where=where, reason="its report leads out of their folder through a link")
    except FileNotFoundError:
        return LeftOut(where=where, reason="its report is not there")
    except OSError as error:
        reason = (error.strerror or "no reason given").lower()
        return LeftOut(where=where, reason=f"its report cannot be read: {reason}")
    except UnicodeDecodeError:
        return LeftOut(where=where, reason="its report is not UTF-8")


def _only(root: Path, pattern: str) -> Path:
    found = sorted(
        path
        for path in root.glob(pattern)
        if path.suffix in (".csv", ".gz") and path.name[0] != "."
    )
    if len(found) != 1:
        raise DataSetError(f"{root / pattern}: must be one file, found {len(found)}")
    return found[0]


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
