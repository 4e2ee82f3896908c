"""Rows of lmms-eval's tasks: made from a manifest, shown to a model, and turned back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from PIL import Image

from ...pipeline.manifest import IMAGE_PLACEHOLDER, Record, Turn, read_manifest, resolve_image
from ...pipeline.pixels import read_image
from ..answers import Task, reference
from ..clusters import cluster_records
from .places import find_set

Doc = Mapping[str, Any]
"""One row: id, question, answer, answer_type, image_files, cluster, and `fields` as JSON."""

_LEADING: Final = f"{IMAGE_PLACEHOLDER}\n"


def slake(rows: Any) -> Any:
    """Put SLAKE's test questions in place of what lmms-eval loaded."""
    return _manifest_rows(rows, "slake", "vqa")


def vqa_rad(rows: Any) -> Any:
    """Put VQA-RAD's test questions in place of what lmms-eval loaded."""
    return _manifest_rows(rows, "vqa-rad", "vqa")


def pathvqa(rows: Any) -> Any:
    """Put PathVQA's test questions in place of what lmms-eval loaded."""
    return _manifest_rows(rows, "pathvqa", "vqa")


def iu_xray_vqa(rows: Any) -> Any:
    """Put the test questions about IU-Xray in place of what lmms-eval loaded."""
    return _manifest_rows(rows, "iu-xray-vqa", "vqa")


def iu_xray_report(rows: Any) -> Any:
    """Put IU-Xray's test reports in place of what lmms-eval loaded."""
    return _manifest_rows(rows, "iu-xray-report", "report")


def images_of(doc: Doc) -> list[Image.Image]:
    """Read a row's images as every command of medalign does, DICOM and 16 bits included.

    Raises:
        PixelsError: an image cannot be read.
    """
    return [Image.fromarray(read_image(Path(path)).rgb) for path in doc["image_files"]]


def question_of(doc: Doc, options: Mapping[str, str] | None = None) -> str:
    """The question without the placeholders in front of it, which every model puts as it likes.

    Args:
        doc: a row.
        options: `pre_prompt` and `post_prompt` of the task's `lmms_eval_specific_kwargs`.
    """
    bare: str = doc["question"]
    while bare.startswith(_LEADING):
        bare = bare.removeprefix(_LEADING)
    if IMAGE_PLACEHOLDER in bare:  # images in the middle: where they stand is part of the question
        bare = doc["question"]
    given = options or {}
    return f"{given.get('pre_prompt', '')}{bare}{given.get('post_prompt', '')}"


def record_of(doc: Doc) -> Record:
    """The record that a row was made from, as scores need it."""
    return Record(
        id=doc["id"],
        images=tuple(doc["image_files"]),
        conversations=(Turn("human", doc["question"]), Turn("gpt", doc["answer"])),
        answer_type=doc["answer_type"] or None,
        fields=json.loads(doc["fields"]),
        line=doc["line"],
    )


def _manifest_rows(rows: Any, name: str, task: Task) -> Any:
    """Make a data set of the class that lmms-eval uses, whatever `rows` holds."""
    try:
        return type(rows).from_list(_docs(name, task))
    except ValueError as error:
        # lmms-eval tries again after any exception, and then says only that it did.
        raise SystemExit(f"medalign: {error}") from error


def _docs(name: str, task: Task) -> list[dict[str, Any]]:
    manifest, images = find_set(name)
    records = read_manifest(manifest)
    clusters = cluster_records(records).tolist()
    made = []
    for record, cluster in zip(records, clusters, strict=True):
        question = record.conversations[0].text
        shown = record.images[: question.count(IMAGE_PLACEHOLDER)]
        made.append(
            {
                "id": record.id,
                "question": question,
                "answer": reference(record, task),
                "answer_type": record.answer_type or "",
                "image_files": [str(resolve_image(images, path)) for path in shown],
                "cluster": cluster,
                "fields": json.dumps(dict(record.fields)),
                "line": record.line,
            }
        )
    return made
