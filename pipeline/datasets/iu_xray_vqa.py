"""IU-Xray VQA: the yes/no questions of CARES about the test studies of R2Gen's IU-Xray."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ..records import IMAGE_PLACEHOLDER
from .dataset import Counts, DataSet, Layout, Published, Source
from .iu_xray import patient_of, study_of
from .json_source import as_text, read_json_lines
from .sample import Item, LeftOut, Sample
from .wording import leading_yes_no

_FILE: Final = "iuxray_factuality.jsonl"


def _read(source: Source, choices: Mapping[str, str]) -> Iterator[Item]:
    del choices
    for path in sorted(source.root / name for name in source.layout.files):
        for where, item in read_json_lines(path):
            yield _sample(item, where)


def _sample(item: Mapping[str, Any], where: str) -> Item:
    image = as_text(item.get("image"))
    answer = leading_yes_no(as_text(item.get("answer")))
    if answer is None:
        return LeftOut(where=where, reason="its answer begins with neither yes nor no")
    study = study_of(image)
    if study is None:
        return LeftOut(where=where, reason="its image path names no study (CXRn_IM-m/0.png)")
    return Sample(
        where=where,
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


IU_XRAY_VQA: Final = DataSet(
    name="iu-xray-vqa",
    title="IU-Xray VQA of CARES",
    licence="CC-BY-4.0 (questions); CC-BY-NC-ND-4.0 (images)",
    terms="questions CC BY 4.0 by CARES; images and reports behind them under Open-i's terms",
    layouts=(
        Layout(name="CARES data/IU-Xray", files=(_FILE,), images="images"),
        Layout(
            name="CARES repository",
            files=(f"data/IU-Xray/{_FILE}",),
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
    read=_read,
    fractions={"test": 0.2},
)
