"""VQA-RAD: questions of clinicians about radiology images of MedPix."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from .definition import Counts, DataSet, Item, Layout, LeftOut, Published, Sample, Source, Split
from .formats import answer_type, as_text, fields_of, read_items
from .parquet import parquet_layouts, read_parquet

_OSF_FILE: Final = "VQA_RAD Dataset Public.json"
_OSF: Final = Layout(name="OSF release", files=(_OSF_FILE,), images="VQA_RAD Image Folder")
_REPACK: Final = Layout(
    name="MICCAI repack", files=("trainset.json", "testset.json"), images="images"
)
_HUB: Final = parquet_layouts(("train", "test"))

_PHRASES: Final[Mapping[str, Split]] = {
    "freeform": "train",
    "para": "train",
    "test_freeform": "test",
    "test_para": "test",
}
_FILES: Final[Mapping[str, Split]] = {"trainset.json": "train", "testset.json": "test"}
_EXTRA: Final = (
    "phrase_type",
    "qid_linked_id",
    "image_organ",
    "evaluation",
    "question_relation",
    "question_type",
)


def _read(source: Source, _choices: Mapping[str, str]) -> Iterator[Item]:
    if source.layout in _HUB:
        yield from read_parquet(source)
    elif source.layout == _REPACK:
        for name, split in _FILES.items():
            for label, item in read_items(source.root / name):
                yield _sample(item, label, split)
    else:
        for label, item in read_items(source.root / _OSF_FILE):
            phrase = as_text(item.get("phrase_type")).strip()  # some end in a blank
            if phrase in _PHRASES:
                yield _sample(item, label, _PHRASES[phrase])
            else:
                yield LeftOut(where=label, reason="its phrase_type names no split")


def _sample(item: Mapping[str, Any], label: str, split: Split) -> Item:
    kind = answer_type(item)
    if kind is None:
        return LeftOut(where=label, reason="its answer_type is neither OPEN nor CLOSED")
    return Sample(
        where=label,
        id=as_text(item.get("qid")).strip() or None,
        split=split,
        images=(as_text(item.get("image_name")).strip(),),
        question=as_text(item.get("question")),
        answer=as_text(item.get("answer")),
        answer_type=kind,
        study=as_text(item.get("image_case_url")).strip() or None,
        extra=fields_of(item, _EXTRA),
    )


VQA_RAD: Final = DataSet(
    name="vqa-rad",
    title="VQA-RAD",
    licence="CC0-1.0",
    terms="CC0 1.0 by its page on OSF: may be passed on",
    layouts=(_OSF, _REPACK, *_HUB),
    published=(
        Published(
            name="official",
            source="the OSF release: test is phrase_type test_freeform or test_para",
            counts={
                "train": Counts(records=1797),
                "test": Counts(records=451),
                "total": Counts(records=2248, images=314),
            },
            layouts=(_OSF.name,),
        ),
        Published(
            name="LLaVA-Med",
            source="table of data sets in the LLaVA-Med paper",
            counts={
                "train": Counts(records=1797, open=770, closed=1027, images=313),
                "test": Counts(records=451, open=179, closed=272, images=203),
            },
            layouts=(_OSF.name, _REPACK.name),
        ),
        Published(
            name="MICCAI repack",
            source="papers that train on the repack, whose train also has the rephrasings",
            counts={"train": Counts(records=3064), "test": Counts(records=451)},
            layouts=(_REPACK.name,),
        ),
        Published(
            name="Hugging Face",
            source="the card of flaviagiammarino/vqa-rad, 4 repeated triplets removed from train",
            counts={
                "train": Counts(records=1793),
                "test": Counts(records=451, open=200, closed=251),
                "total": Counts(records=2244, images=314),
            },
            layouts=tuple(layout.name for layout in _HUB),
        ),
    ),
    split_rule="official: by phrase_type in the OSF release, else one file a split; no val",
    id_rule="vqa-rad_<qid>; from Parquet, vqa-rad_<hash of image, question and answer>",
    read=_read,
)
