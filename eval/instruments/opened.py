"""Open what the chosen metrics need, as far as it is there, and say what is not."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from ..answers import AnswersError
from .annotations import Annotations
from .bert_scorer import BertScorer
from .chexbert import Chexbert, read_bert, read_checkpoint
from .local_model import identify
from .places import (
    BERT,
    BERTSCORE,
    CHEXBERT,
    RADGRAPH,
    RADGRAPH_BERT,
    RATESCORE_NER,
    RATESCORE_SYNONYMS,
    InstrumentPaths,
    Need,
)
from .radgraph_archive import RadGraphReader, read_archive, read_radgraph_bert
from .rate_reader import RateReader, load_recogniser, load_synonyms

Opened = TypeVar("Opened")

_ALONE: Final[Mapping[Need, Callable[[Path], object]]] = {
    CHEXBERT: read_checkpoint,
    BERT: read_bert,
    RADGRAPH: read_archive,
    RADGRAPH_BERT: read_radgraph_bert,
    RATESCORE_NER: load_recogniser,
    RATESCORE_SYNONYMS: load_synonyms,
}
"""How the models of a metric that needs two are read one by one."""


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
    radgraph: Annotations | RadGraphReader | None = None
    ratescore: RateReader | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, list[dict[str, str]]] = field(default_factory=dict)


def open_instruments(wanted: Collection[str], paths: InstrumentPaths) -> Instruments:
    """Open what metrics need.

    Args:
        wanted: metrics, of `REPORT_METRICS`.
        paths: where a user says that models are.

    Raises:
        AnswersError: a path that was given is wrong, what is there cannot be used, or both
            RadGraph's model and annotations were given.
    """
    if paths.annotations and (paths.radgraph or paths.radgraph_bert):
        raise AnswersError(
            "--radgraph-annotations stands in place of RadGraph's model: give it, or --radgraph "
            "and --radgraph-bert, not both"
        )
    missing: dict[str, str] = {}
    found: dict[str, list[Path]] = {}
    for metric, given in _needs(paths).items():
        if metric in wanted:
            places = {need: need.find(path) for need, path in given.items()}
            absent = [need.looked_for() for need, path in places.items() if path is None]
            if absent:
                _refuse_wrong(given)
                missing[metric] = f"needs {'; and '.join(absent)}"
            else:
                found[metric] = [path for path in places.values() if path is not None]
    if "radgraph" in wanted and paths.annotations:
        found["radgraph"] = list(paths.annotations)
    return Instruments(
        bertscore=_open(found, "bertscore", partial(BertScorer.open, layer=paths.bertscore_layer)),
        chexbert=_open(found, "chexbert", Chexbert.open),
        radgraph=_open(found, "radgraph", _radgraph(paths)),
        ratescore=_open(found, "ratescore", RateReader.open),
        missing=missing,
        files={metric: [identify(path) for path in each] for metric, each in found.items()},
    )


def _refuse_wrong(given: Mapping[Need, Path | None]) -> None:
    """Read what a user gave of a metric that lacks another model, which says if it is wrong.

    Raises:
        AnswersError: it is.
    """
    for need, path in given.items():
        if path is not None:
            _ALONE[need](path)


def _needs(paths: InstrumentPaths) -> dict[str, dict[Need, Path | None]]:
    """Return the models of every metric, each with the path that was given."""
    needs: dict[str, dict[Need, Path | None]] = {
        "bertscore": {BERTSCORE: paths.bertscore},
        "chexbert": {CHEXBERT: paths.chexbert, BERT: paths.bert},
        "radgraph": {RADGRAPH: paths.radgraph, RADGRAPH_BERT: paths.radgraph_bert},
        "ratescore": {
            RATESCORE_NER: paths.ratescore_ner,
            RATESCORE_SYNONYMS: paths.ratescore_synonyms,
        },
    }
    if paths.annotations:
        del needs["radgraph"]
    return needs


def _radgraph(paths: InstrumentPaths) -> Callable[..., Annotations | RadGraphReader]:
    return Annotations.open if paths.annotations else RadGraphReader.open


def _open(found: dict[str, list[Path]], metric: str, make: Callable[..., Opened]) -> Opened | None:
    """Open a metric's models if all of them were found."""
    return make(*found[metric]) if metric in found else None
