"""What one answer scores in lmms-eval: exactly what `medalign eval score` makes means of."""

import threading
from collections.abc import Mapping, Sequence
from typing import Final

from ..answers import Pair
from ..metrics.report import Synonyms, bleu, clean_report, find_wordnet, meteor, rouge_l
from ..sample_scores import vqa_scores
from .docs import Doc, record_of

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
"""(protocol, name) of what the tasks with questions report."""

REPORT_SCORES: Final = tuple(
    (protocol, name)
    for protocol in ("medalign", "authors")
    for name in ("bleu", "rouge_l", "meteor")
)
"""(protocol, name) of what the tasks with reports report."""

Scored = dict[str, dict[str, float]]
"""By metric: `score` of the sample, and the `cluster` that its standard error goes by."""

_FIRST = threading.Lock()


def metric_name(protocol: str, name: str) -> str:
    """A metric's name in lmms-eval."""
    return f"{protocol.replace('-', '_')}_{name}"


def score_question(doc: Doc, results: Sequence[str]) -> Scored:
    """Score one answer to a question; metrics that do not apply to it are left out."""
    found, _ = vqa_scores([_pair(doc, results)])
    values = {key: found[key].value() for key in VQA_SCORES if key in found}
    return _clustered(doc, values)


def score_report(doc: Doc, results: Sequence[str]) -> Scored:
    """Score one report by the metrics that need no model."""
    pair = _pair(doc, results)
    values = {}
    for protocol in ("medalign", "authors"):
        text = clean_report(pair.prediction, protocol)
        values[protocol, "bleu"] = bleu(text, pair.reference)
        values[protocol, "rouge_l"] = rouge_l(text, pair.reference)
        values[protocol, "meteor"] = meteor(text, pair.reference, _synonyms())
    return _clustered(doc, values)


def mean_score(items: Sequence[Mapping[str, float]]) -> float:
    """Average what samples scored, in [0, 1]."""
    return sum(item["score"] for item in items) / len(items)


def _pair(doc: Doc, results: Sequence[str]) -> Pair:
    text = results[0] if results else ""
    return Pair(record=record_of(doc), reference=doc["answer"], prediction=text, missing=False)


def _clustered(doc: Doc, values: Mapping[tuple[str, str], float]) -> Scored:
    return {
        metric_name(*key): {"score": value, "cluster": doc["cluster"]}
        for key, value in values.items()
    }


def _synonyms() -> Synonyms | None:
    # lmms-eval scores in threads, and NLTK's first look at its data is not made for that.
    with _FIRST:
        return find_wordnet()
