"""IU-Xray reports: chest X-rays of Open-i with their findings, in R2Gen's splits."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from .chest_report import QUESTION
from .dataset import Choice, Counts, DataSet, Layout, Published, Source
from .iu_xray import patient_of, study_of
from .json_source import as_text, kept, read_items
from .r2gen import ANNOTATION, read_annotation
from .sample import Item, LeftOut, Sample, Split

_OPEN_I: Final = Layout(name="list of open_i_ items", files=("test.json",), images="images")


def _read(source: Source, choices: Mapping[str, str]) -> Iterator[Item]:
    path = source.root / source.layout.files[0]
    if source.layout is _OPEN_I:
        for where, item in read_items(path):
            images = _paths(item.get("image"))
            yield from _samples(item, where, "test", images, "findings", choices)
        return
    for where, split, item in read_annotation(path, mimic=False):
        images = _paths(item.get("image_path"))
        yield from _samples(item, where, split, images, "report", choices)


def _samples(
    item: Mapping[str, Any],
    where: str,
    split: Split,
    images: tuple[str, ...],
    field: str,
    choices: Mapping[str, str],
) -> Iterator[Item]:
    study = study_of(images[0]) if images else None
    if study is None:
        yield LeftOut(where=where, reason="its image path names no study (CXRn_IM-m)")
        return
    # R2Gen numbers the images of a study; 0.png is the one that is trained on.
    first = next((path for path in images if path.endswith("/0.png")), images[0])
    own, report = as_text(item.get("id")), as_text(item.get(field)).strip()
    for path in images if choices["views"] == "each" else (first,):
        name = path.rpartition("/")[2].removesuffix(".png")
        yield Sample(
            where=where,
            id=own if path == first else f"{own}_{name}",
            split=split,
            images=(path,),
            question=choices["question"],
            answer=report,
            report=report,
            modality="X-ray",
            patient=patient_of(study),
            study=own or study,
            extra=kept(item, ("impression",)),
        )


def _paths(value: object) -> tuple[str, ...]:
    paths = value if isinstance(value, list) else [value]
    return tuple(text for path in paths if (text := as_text(path)))


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
    read=_read,
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
