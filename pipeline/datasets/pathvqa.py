"""PathVQA: questions about pathology figures of textbooks."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from .definition import (
    SPLITS,
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
from .formats import as_text, yes_no_type
from .parquet import parquet_layouts, read_parquet
from .plain_pickle import read_plain_pickle

_OFFICIAL: Final = Layout(
    name="official release",
    files=tuple(f"qas/{split}/{split}_qa.pkl" for split in SPLITS),
    images="images",
)
_HUB: Final = parquet_layouts(("train", "validation", "test"))


def _read(source: Source, _choices: Mapping[str, str]) -> Iterator[Item]:
    if source.layout in _HUB:
        yield from read_parquet(source)
        return
    for split in SPLITS:
        yield from _read_split(source, split)


def _read_split(source: Source, split: Split) -> Iterator[Item]:
    path = source.root / "qas" / split / f"{split}_qa.pkl"
    items = read_plain_pickle(path)
    if not isinstance(items, list):
        raise DataSetError(f"{path}: must be a list of questions; is this the set's own file?")
    files = _files_by_name(source.images / split)
    for number, item in enumerate(items, start=1):
        label = f"{path.name} item {number}"
        if isinstance(item, dict):
            yield _sample(item, label, split, files)
        else:
            yield LeftOut(where=label, reason="it is no dict of image, question and answer")


def _sample(item: Mapping[Any, Any], label: str, split: Split, files: Mapping[str, str]) -> Item:
    stem, answer = as_text(item.get("image")), as_text(item.get("answer"))
    named = stem if stem.endswith(".jpg") else f"{stem}.jpg"
    if not stem:
        return LeftOut(where=label, reason="it names no image")
    return Sample(
        where=label,
        split=split,
        images=(f"{split}/{files.get(stem, named)}",),
        question=as_text(item.get("question")),
        answer=answer,
        answer_type=yes_no_type(answer),
    )


def _files_by_name(folder: Path) -> dict[str, str]:
    """Return the files of a folder by their names, without ending (as questions have it) and with.

    A whole name counts before one without its ending.
    """
    if not folder.is_dir():
        return {}
    files = sorted(folder.iterdir(), reverse=True)
    return {path.stem: path.name for path in files} | {path.name: path.name for path in files}


PATHVQA: Final = DataSet(
    name="pathvqa",
    title="PathVQA",
    licence="MIT",
    terms="MIT by the card on Hugging Face for questions and answers; the figures are from "
    "textbooks, whose publishers hold the copyright: do not pass them on",
    layouts=(_OFFICIAL, *_HUB),
    published=(
        Published(
            name="LLaVA-Med",
            source="table of data sets in the LLaVA-Med paper, of the official release",
            counts={
                "train": Counts(records=19755, open=9949, closed=9806, images=2599),
                "val": Counts(records=6279, open=3144, closed=3135),
                "test": Counts(records=6761, open=3370, closed=3391),
            },
            layouts=(_OFFICIAL.name,),
        ),
        Published(
            name="Hugging Face",
            source="the card of flaviagiammarino/path-vqa, repeated triplets removed",
            counts={
                "train": Counts(records=19654),
                "val": Counts(records=6259),
                "test": Counts(records=6719),
                "total": Counts(records=32632, images=4289),
            },
            layouts=tuple(layout.name for layout in _HUB),
        ),
        Published(
            name="updated release",
            source="the card of flaviagiammarino/path-vqa, of the authors' files of 2023",
            counts={"total": Counts(records=32795, images=4289)},
            layouts=(_OFFICIAL.name,),
        ),
    ),
    split_rule="official: one folder or file a split",
    id_rule="pathvqa_<hash of image path, question and answer>; the set has no ids",
    read=_read,
)
