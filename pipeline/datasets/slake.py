"""SLAKE: questions in English and Chinese about CT, MRI and X-ray, with region masks."""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from .definition import (
    Choice,
    Counts,
    DataSet,
    Item,
    Layout,
    LeftOut,
    Published,
    Sample,
    Source,
    Split,
)
from .formats import answer_type, as_text, fields_of, read_items
from .records import LEADS_OUT, file_problem

_RELEASE: Final = Layout(
    name="Slake1.0 release",
    files=("train.json", "validate.json", "test.json"),
    images="imgs",
    archive="imgs.zip",
)
_HUB: Final = Layout(
    name="Hugging Face download",
    files=("train.json", "validation.json", "test.json"),
    images="imgs",
    archive="imgs.zip",
)
_SPLITS: Final[Mapping[str, Split]] = {
    "train.json": "train",
    "validate.json": "val",
    "validation.json": "val",
    "test.json": "test",
}
_EXTRA: Final = ("location", "content_type", "base_type", "q_lang", "triple", "img_id", "qid")
_MASK: Final = "mask.png"


def _read(source: Source, choices: Mapping[str, str]) -> Iterator[Item]:
    masks: dict[str, str | None] = {}
    for name in source.layout.files:
        for label, item in read_items(source.root / name):
            language = item.get("q_lang")
            if choices["language"] not in ("all", language):
                known = language in ("en", "zh")  # text of an item stays out of messages
                reason = f"language {language if known else 'unknown'}"
                yield LeftOut(where=label, reason=reason, by_rule=known)
                continue
            image = as_text(item.get("img_name"))
            mask = (PurePosixPath(image).parent / _MASK).as_posix()
            if mask not in masks:
                masks[mask] = file_problem(source.images, mask)
            if masks[mask] == LEADS_OUT and file_problem(source.images, image) is None:
                yield LeftOut(where=f"{label}: {mask}", reason=f"its mask {LEADS_OUT}", image=image)
                continue
            yield _sample(item, label, _SPLITS[name], None if masks[mask] else mask)


def _sample(item: Mapping[str, Any], label: str, split: Split, mask: str | None) -> Item:
    kind = answer_type(item)
    if kind is None:
        return LeftOut(where=label, reason="its answer_type is neither OPEN nor CLOSED")
    return Sample(
        where=label,
        id=as_text(item.get("qid")) or None,
        split=split,
        images=(as_text(item.get("img_name")),),
        question=as_text(item.get("question")),
        answer=as_text(item.get("answer")),
        answer_type=kind,
        modality=as_text(item.get("modality")) or None,
        mask=mask,
        extra=fields_of(item, _EXTRA),
    )


SLAKE: Final = DataSet(
    name="slake",
    title="SLAKE 1.0",
    licence="CC-BY-4.0",
    terms="CC BY 4.0 by the card on Hugging Face: may be passed on with attribution",
    layouts=(_RELEASE, _HUB),
    published=(
        Published(
            name="official",
            source="the English part of the release",
            counts={
                "train": Counts(records=4919, images=450),
                "val": Counts(records=1053, images=96),
                "test": Counts(records=1061, images=96),
            },
            choices={"language": "en"},
        ),
        Published(
            name="LLaVA-Med",
            source="table of data sets in the LLaVA-Med paper",
            counts={
                "train": Counts(records=4919, open=2976, closed=1943, images=450),
                "val": Counts(records=1053, open=631, closed=422, images=96),
                "test": Counts(records=1061, open=645, closed=416, images=96),
            },
            choices={"language": "en"},
        ),
        Published(
            name="official",
            source="the release, both languages",
            counts={"total": Counts(records=14028, images=642)},
            choices={"language": "all"},
        ),
    ),
    split_rule="official: one file a split",
    id_rule="slake_<qid>",
    read=_read,
    choices=(
        Choice(
            name="language",
            default="en",
            values=("en", "zh", "all"),
            help="which questions are kept",
        ),
    ),
)
