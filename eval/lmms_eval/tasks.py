"""Rows of lmms-eval's tasks: made from a manifest, shown to a model, and turned back."""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from ...pipeline.manifest import IMAGE_PLACEHOLDER, Record, Turn, read_manifest, resolve_image
from ...pipeline.pixels import read_image
from ..clusters import cluster_records
from ..metrics.definitions import Key
from ..metrics.report_text import (
    PROTOCOLS,
    Synonyms,
    bleu,
    clean_report,
    find_wordnet,
    meteor,
    rouge_l,
)
from ..predictions import Pair, Task, reference
from ..vqa_scores import vqa_scores

DATA: Final = "MEDALIGN_DATA"
"""Folder with one folder per data set, each as `medalign data prepare --out` wrote it."""

TASKS: Final = Path(__file__).parent / "tasks"
"""Folder that lmms-eval is given as `--include_path`."""


VQA_SCORES: Final = (
    ("strict", "overall_accuracy"),
    ("strict", "closed_accuracy"),
    ("strict", "open_recall"),
    ("strict", "open_f1"),
    ("strict", "open_exact_match"),
    ("strict", "choice_accuracy"),
    ("strict", "hallucination_rate"),
    ("strict", "missed_findings"),
    ("llava-med", "closed_accuracy"),
    ("llava-med", "open_recall"),
    ("llava-med", "open_f1"),
    ("llava-med", "open_exact_match"),
    ("llava-med", "choice_accuracy"),
)
"""(protocol, name) of the metrics of tasks with questions."""

REPORT_SCORES: Final = tuple(
    (protocol, name) for protocol in PROTOCOLS for name in ("bleu", "rouge_l", "meteor")
)
"""(protocol, name) of the metrics of tasks with reports."""

Scored = dict[str, dict[str, float]]
"""By metric: `score` of the sample, and the `cluster` that its standard error goes by."""

_WORDNET_LOCK = threading.Lock()

Doc = Mapping[str, Any]
"""One row: id, question, answer, answer_type, image_files, cluster, and `fields` as JSON."""

_LEADING: Final = f"{IMAGE_PLACEHOLDER}\n"


class HarnessError(ValueError):
    """A task or the model cannot run as lmms-eval was configured."""


def variable_of(name: str) -> str:
    """Variable that names the folder of one data set, if it does not lie with the others."""
    return f"MEDALIGN_{name.upper().replace('-', '_')}"


def find_set(name: str) -> tuple[Path, Path]:
    """Return manifest and image folder of a data set, by its name in `data prepare`.

    `MEDALIGN_SLAKE` names the folder of `slake`, else it is `slake` in `MEDALIGN_DATA`; images
    are in its `images`, or in the folder that `MEDALIGN_SLAKE_IMAGES` names.

    Raises:
        HarnessError: no variable is set, or manifest or images are not there.
    """
    own, every = os.environ.get(variable_of(name)), os.environ.get(DATA)
    if not own and not every:
        raise HarnessError(
            f"neither {variable_of(name)} nor {DATA} is set: run `medalign data prepare {name} "
            f"SRC --out DIR/{name}` and set {DATA} to DIR"
        )
    folder = Path(own) if own else Path(every or "") / name
    manifest = folder / "test.jsonl"
    if not manifest.is_file():
        raise HarnessError(
            f"{manifest} does not exist; `medalign data prepare {name} SRC --out {folder}` "
            f"writes it, or set {variable_of(name)}"
        )
    images = Path(os.environ.get(f"{variable_of(name)}_IMAGES") or folder / "images")
    if not images.is_dir():
        raise HarnessError(f"{images} is no folder; set {variable_of(name)}_IMAGES")
    return manifest.absolute(), images.absolute()


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
    """Return the question without the placeholders in front, which every model sets by itself.

    Args:
        doc: a row.
        options: `pre_prompt` and `post_prompt` of the task's `lmms_eval_specific_kwargs`.
    """
    bare: str = doc["question"]
    while bare.startswith(_LEADING):
        bare = bare.removeprefix(_LEADING)
    if IMAGE_PLACEHOLDER in bare:  # images in the middle: where they stand is part of the question
        bare = doc["question"]
    prompts = options or {}
    return f"{prompts.get('pre_prompt', '')}{bare}{prompts.get('post_prompt', '')}"


def record_of(doc: Doc) -> Record:
    """Return the record that a row was made from."""
    return Record(
        id=doc["id"],
        images=tuple(doc["image_files"]),
        conversations=(Turn("human", doc["question"]), Turn("gpt", doc["answer"])),
        answer_type=doc["answer_type"] or None,
        fields=json.loads(doc["fields"]),
        line=doc["line"],
    )


def metric_name(protocol: str, name: str) -> str:
    """A metric's name in lmms-eval."""
    return f"{protocol.replace('-', '_')}_{name}"


def score_question(doc: Doc, results: Sequence[str]) -> Scored:
    """Score one answer to a question; metrics that do not apply to it are left out."""
    statistics, _ = vqa_scores([_pair(doc, results)])
    values = {key: statistics[key].value() for key in VQA_SCORES if key in statistics}
    return _clustered(doc, values)


def score_report(doc: Doc, results: Sequence[str]) -> Scored:
    """Score one report by the metrics that need no model."""
    pair = _pair(doc, results)
    values: dict[Key, float] = {}
    for protocol in PROTOCOLS:
        text = clean_report(pair.prediction, protocol)
        values[protocol, "bleu"] = bleu(text, pair.reference)
        values[protocol, "rouge_l"] = rouge_l(text, pair.reference)
        values[protocol, "meteor"] = meteor(text, pair.reference, _synonyms())
    return _clustered(doc, values)


def mean_score(items: Sequence[Mapping[str, float]]) -> float:
    """Average what samples scored, in [0, 1]."""
    return sum(item["score"] for item in items) / len(items)


def _manifest_rows(rows: Any, name: str, task: Task) -> Any:
    """Make a data set of the class that lmms-eval uses, whatever `rows` holds."""
    try:
        return type(rows).from_list(_docs(name, task))
    except ValueError as error:
        # lmms-eval tries again after any exception, and then reports only that it did.
        raise SystemExit(f"medalign: {error}") from error


def _docs(name: str, task: Task) -> list[dict[str, Any]]:
    manifest, images = find_set(name)
    records = read_manifest(manifest)
    clusters = cluster_records(records).tolist()
    docs = []
    for record, cluster in zip(records, clusters, strict=True):
        question = record.conversations[0].text
        images_of_question = record.images[: question.count(IMAGE_PLACEHOLDER)]
        docs.append(
            {
                "id": record.id,
                "question": question,
                "answer": reference(record, task),
                "answer_type": record.answer_type or "",
                "image_files": [str(resolve_image(images, path)) for path in images_of_question],
                "cluster": cluster,
                "fields": json.dumps(dict(record.fields)),
                "line": record.line,
            }
        )
    return docs


def _pair(doc: Doc, results: Sequence[str]) -> Pair:
    text = results[0] if results else ""
    return Pair(record=record_of(doc), reference=doc["answer"], prediction=text, missing=False)


def _clustered(doc: Doc, values: Mapping[Key, float]) -> Scored:
    return {
        metric_name(*key): {"score": value, "cluster": doc["cluster"]}
        for key, value in values.items()
    }


def _synonyms() -> Synonyms | None:
    # lmms-eval scores in threads, and NLTK's first look at its data is not made for that.
    with _WORDNET_LOCK:
        return find_wordnet()
