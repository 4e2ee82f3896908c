"""Open what the chosen metrics need, as far as it is there, and say what is not."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from .annotations import Annotations
from .bert_scorer import BertScorer
from .chexbert import Chexbert
from .local_model import identify
from .places import (
    BERT,
    BERTSCORE,
    CHEXBERT,
    RATESCORE_NER,
    RATESCORE_SYNONYMS,
    InstrumentPaths,
    Need,
)
from .rate_reader import RateReader

_NO_ANNOTATIONS = (
    "needs annotations of these reports by RadGraph at --radgraph-annotations FILE; "
    "docs/metrics.md says how to make them"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruments:
    """Hold the models and annotations that were found; None stands for what was not.

    Attributes:
        bertscore: for BERTScore.
        chexbert: for CheXbert.
        radgraph: for RadGraph.
        ratescore: for RaTEScore.
        missing: metric -> what it needs and where that was looked for.
        files: metric -> path and SHA-256 of everything that decides its scores.
    """

    bertscore: BertScorer | None = None
    chexbert: Chexbert | None = None
    radgraph: Annotations | None = None
    ratescore: RateReader | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, list[dict[str, str]]] = field(default_factory=dict)


def open_instruments(wanted: Collection[str], paths: InstrumentPaths) -> Instruments:
    """Open what metrics need.

    Args:
        wanted: metrics, of `REPORT_METRICS`.
        paths: where a user says that models are.

    Raises:
        AnswersError: a path that was given is wrong, or what is there cannot be used.
    """
    needs = {
        "bertscore": {BERTSCORE: paths.bertscore},
        "chexbert": {CHEXBERT: paths.chexbert, BERT: paths.bert},
        "ratescore": {
            RATESCORE_NER: paths.ratescore_ner,
            RATESCORE_SYNONYMS: paths.ratescore_synonyms,
        },
    }
    missing: dict[str, str] = {}
    found = {}
    for metric, given in needs.items():
        if metric in wanted:
            places = {need: need.find(path) for need, path in given.items()}
            found[metric] = [path for path in places.values() if path is not None]
            absent: list[Need] = [need for need, path in places.items() if path is None]
            if absent:
                del found[metric]
                missing[metric] = "needs " + "; and ".join(need.looked_for() for need in absent)
    if "radgraph" in wanted:
        if paths.radgraph:
            found["radgraph"] = list(paths.radgraph)
        else:
            missing["radgraph"] = _NO_ANNOTATIONS
    bert = found.get("bertscore")
    return Instruments(
        bertscore=BertScorer.open(bert[0], paths.bertscore_layer) if bert else None,
        chexbert=Chexbert.open(*found["chexbert"]) if "chexbert" in found else None,
        radgraph=Annotations.open(found["radgraph"]) if "radgraph" in found else None,
        ratescore=RateReader.open(*found["ratescore"]) if "ratescore" in found else None,
        missing=missing,
        files={metric: [identify(path) for path in each] for metric, each in found.items()},
    )
