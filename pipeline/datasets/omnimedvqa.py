"""OmniMedVQA: multiple-choice questions about images of 73 data sets."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

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
)
from .formats import as_text, fields_of, plain_words, read_items

_PARTS: Final = {"open": "Open-access", "restricted": "Restricted-access"}
_EXTRA: Final = ("dataset", "question_id", "question_type")


def _read(source: Source, choices: Mapping[str, str]) -> Iterator[Item]:
    folder, access = source.root / "QA_information", choices["access"]
    parts = [name for key, name in _PARTS.items() if access in (key, "all")]
    files = [path for part in parts for path in sorted((folder / part).glob("[!.]*.json"))]
    if not files:
        raise DataSetError(f"{folder}: no JSON file in {' or '.join(parts)}; see --choose access=")
    for path in files:
        for label, item in read_items(path):
            yield _sample(item, f"{path.parent.name}/{label}", path)


def _sample(item: Mapping[str, Any], label: str, path: Path) -> Item:
    options = _options(item)
    if len(options) < 2:
        return LeftOut(where=label, reason="it has fewer than two options")
    answer = as_text(item.get("gt_answer")).strip()
    alike = [option for option in options if plain_words(option) == plain_words(answer)]
    meant = [option for option in options if option == answer] or alike
    if len(meant) != 1:
        how = "none" if not meant else "several"
        return LeftOut(where=label, reason=f"its answer is {how} of its options")
    own = as_text(item.get("question_id"))
    return Sample(
        where=label,
        # Subsets number their questions by themselves.
        id="_".join(f"{path.stem} {own}".split()) if own else None,
        split=None,
        images=(as_text(item.get("image_path")),),
        question=as_text(item.get("question")),
        answer=meant[0],
        answer_type="CLOSED",
        options=options,
        # One item of `Chest CT Scan.json` has the other name.
        modality=as_text(item.get("modality_type") or item.get("modality")) or None,
        extra=fields_of(item, _EXTRA),
    )


def _options(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Return options A to D; C and D are absent where there are fewer."""
    options = (as_text(item.get(f"option_{letter}")).strip() for letter in "ABCD")
    return tuple(option for option in options if option)


OMNIMEDVQA: Final = DataSet(
    name="omnimedvqa",
    title="OmniMedVQA",
    licence="see each subset",
    terms="the card says CC BY 4.0, but every subset keeps the licence of its own data set",
    layouts=(Layout(name="Hugging Face zip", files=("QA_information/*/*.json",), images="."),),
    published=(
        Published(
            name="open part",
            source="the QA_information/Open-access files of the release",
            counts={"total": Counts(records=88996, images=82059)},
            choices={"access": "open"},
        ),
        Published(
            name="OmniMedVQA paper",
            source="its abstract: 127,995 questions about 118,010 images",
            counts={"total": Counts(records=127995, images=118010)},
            choices={"access": "all"},
        ),
    ),
    split_rule="none is published, MedAlign's own is not either: cut by content of the image",
    id_rule="omnimedvqa_<name of the subset's file>_<question_id>",
    read=_read,
    choices=(
        Choice(
            name="access",
            default="open",
            values=("open", "restricted", "all"),
            help="which part is read; images of the restricted part are downloaded one by one",
        ),
    ),
    fractions={"test": 0.2},
)
