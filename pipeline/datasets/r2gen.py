"""R2Gen's `annotation.json`: lists of studies by split, each with its report and image paths."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from .dataset import DataSetError, Layout
from .json_source import read_json
from .sample import SPLITS, Split

ANNOTATION: Final = Layout(
    name="R2Gen annotation.json", files=("annotation.json",), images="images"
)


def read_annotation(path: Path, *, mimic: bool) -> Iterator[tuple[str, Split, Mapping[str, Any]]]:
    """Yield (where, split, item) of an annotation file.

    Args:
        path: the file.
        mimic: it must be the one of MIMIC-CXR, whose items name a `subject_id`; else the other.

    Raises:
        DataSetError: it is another file. No text of it is ever told.
    """
    found = read_json(path)
    lists = [found[each] for each in SPLITS if each in found] if isinstance(found, dict) else []
    if not lists or not all(isinstance(each, list) for each in lists):
        raise DataSetError(f"{path}: must be an object with lists train, val and test, as R2Gen's")
    for split in SPLITS:
        for number, item in enumerate(found.get(split, ()), start=1):
            if not isinstance(item, dict):
                raise DataSetError(f"{path}: item {number} of {split} is no object")
            if ("subject_id" in item) != mimic:
                other = "iu-xray-report" if mimic else "mimic-cxr-report"
                raise DataSetError(f"{path}: is the annotation of the other set; prepare {other}")
            yield f"{path.name} {split} item {number}", split, item
