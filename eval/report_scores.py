"""Score every report by itself, under both cleanings: words, models of meaning, clinical labels."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

from .metric_models.bertscore_model import BertScorer
from .metric_models.chexbert_model import Chexbert
from .metric_models.locate import Instruments
from .metric_models.radgraph_annotations import Annotations
from .metric_models.radgraph_model import RadGraphReader
from .metric_models.ratescore_model import RateReader
from .metrics.definitions import Key
from .metrics.labels import FINDINGS, TOP_5, LabelCounts, found_labels
from .metrics.radgraph import Annotation, graph_score, present_findings
from .metrics.ratescore import rate_score
from .metrics.report_text import (
    PROTOCOLS,
    Synonyms,
    bleu,
    clean_report,
    clinical_text,
    find_wordnet,
    meteor,
    rouge_l,
)
from .metrics.statistic import Statistic, Tally
from .predictions import Pair

Tallies = dict[Key, Tally]


@dataclass(frozen=True, slots=True)
class ReportScores:
    """What reports score.

    Attributes:
        samples: the statistics.
        wordnet: version of the WordNet that METEOR used.
        counts: numbers that explain the scores.
    """

    samples: Mapping[Key, Statistic]
    wordnet: str | None
    counts: Mapping[str, int]


def report_scores(
    pairs: Sequence[Pair], metrics: Collection[str], instruments: Instruments
) -> ReportScores:
    """Return what every report scores under both protocols.

    A missing report scores 0 and has no findings, whatever a model would make of an empty text.

    Args:
        pairs: reports with references, in the order of the manifest.
        metrics: of `REPORT_METRICS`; one whose instrument is missing is left out.
        instruments: the models and annotations.

    Raises:
        AnswersError: a report has no annotation.
    """
    tallies: Tallies = defaultdict(Tally)
    counts: dict[str, int] = {}
    synonyms = find_wordnet() if "meteor" in metrics else None
    _add_words(tallies, pairs, metrics, synonyms)
    if instruments.bertscore is not None and "bertscore" in metrics:
        _add_bertscore(tallies, pairs, instruments.bertscore)
    if instruments.chexbert is not None and "chexbert" in metrics:
        _add_chexbert(tallies, pairs, instruments.chexbert)
    if instruments.radgraph is not None and "radgraph" in metrics:
        _add_radgraph(tallies, pairs, instruments.radgraph)
    if instruments.ratescore is not None and "ratescore" in metrics:
        empty = _add_ratescore(tallies, pairs, instruments.ratescore)
        counts["reports_without_medical_entities"] = empty
    return ReportScores(
        samples={key: tally.statistic() for key, tally in tallies.items()},
        wordnet=None if synonyms is None else synonyms.get_version(),
        counts=counts,
    )


def _add_words(
    tallies: Tallies, pairs: Sequence[Pair], metrics: Collection[str], synonyms: Synonyms | None
) -> None:
    measures: dict[str, Callable[[str, str], float]] = {
        "bleu": bleu,
        "rouge_l": rouge_l,
        "meteor": lambda text, gold: meteor(text, gold, synonyms),
    }
    measures = {name: measure for name, measure in measures.items() if name in metrics}
    for sample, pair in enumerate(pairs):
        values: dict[str, dict[str, float]] = {}
        for protocol in PROTOCOLS:
            text = clean_report(pair.prediction, protocol)
            if text not in values:  # both cleanings mostly agree, and METEOR is slow
                values[text] = {name: f(text, pair.reference) for name, f in measures.items()}
            for name, value in values[text].items():
                tallies[protocol, name].add(sample, value)


def _add_bertscore(tallies: Tallies, pairs: Sequence[Pair], scorer: BertScorer) -> None:
    cleaned = {
        (sample, protocol): (clean_report(pair.prediction, protocol), pair.reference)
        for sample, pair in enumerate(pairs)
        for protocol in PROTOCOLS
    }
    scores = scorer.scores(list(dict.fromkeys(cleaned.values())))
    for (sample, protocol), texts in cleaned.items():
        for name, value in scores[texts]._asdict().items():
            tallies[protocol, f"bertscore_{name}"].add(sample, value)


def _add_chexbert(tallies: Tallies, pairs: Sequence[Pair], chexbert: Chexbert) -> None:
    reports = chexbert.read(_clinical_texts(pairs))
    for sample, pair in enumerate(pairs):
        gold = reports[pair.reference]
        labels = found_labels(gold.classes)
        for protocol in PROTOCOLS:
            report = reports[clinical_text(pair.prediction, protocol)]
            predicted = found_labels(report.classes) & (not pair.missing)
            similarity = 0.0 if pair.missing else report.similarity(gold)
            tallies[protocol, "chexbert_similarity"].add(sample, similarity)
            _add_labels(tallies, protocol, sample, LabelCounts.of(predicted, labels))


def _add_labels(tallies: Tallies, protocol: str, sample: int, counts: LabelCounts) -> None:
    five = counts.only(TOP_5)
    for size, labels in (("14", counts), ("5", five)):
        part, whole = labels.f1_terms()
        for name, terms in (
            (f"macro_{size}", (part, whole)),
            (f"micro_{size}", (sum(part), sum(whole))),
        ):
            key = protocol, f"chexbert_f1_{name}"
            tallies.setdefault(key, Tally(undefined=0.0)).add(sample, *terms)
    right = bool((five.predicted == five.reference).all())
    tallies[protocol, "chexbert_all_5"].add(sample, float(right))
    tallies[protocol, "chexbert_f1_example"].add(sample, counts.f1())
    both, predicted, reference = (
        float(numbers[:FINDINGS].sum())
        for numbers in (counts.both, counts.predicted, counts.reference)
    )
    for name, rate in {
        "precision": (both, predicted),
        "recall": (both, reference),
        "commission": (predicted - both, predicted),
        "omission": (reference - both, reference),
        "any_commission": (float(predicted > both), 1.0),
    }.items():
        tallies[protocol, f"chexbert_{name}"].add(sample, *rate)


def _add_radgraph(
    tallies: Tallies, pairs: Sequence[Pair], reader: Annotations | RadGraphReader
) -> None:
    graphs = reader.of(_clinical_texts(pairs))
    empty: Annotation = {}
    for sample, pair in enumerate(pairs):
        gold = graphs[pair.reference]
        for protocol in PROTOCOLS:
            graph = empty if pair.missing else graphs[clinical_text(pair.prediction, protocol)]
            for name, value in asdict(graph_score(graph, gold)).items():
                tallies[protocol, f"radgraph_{name}"].add(sample, value)
            predicted, reference = present_findings(graph), present_findings(gold)
            extra, omitted = len(predicted - reference), len(reference - predicted)
            for name, terms in {
                "hallucinated": (extra, len(predicted)),
                "omitted": (omitted, len(reference)),
                "any_hallucinated": (float(extra > 0), 1.0),
                "hallucinated_number": (extra, 1.0),
            }.items():
                tallies[protocol, f"radgraph_{name}"].add(sample, *terms)


def _add_ratescore(tallies: Tallies, pairs: Sequence[Pair], reader: RateReader) -> int:
    """Add RaTEScore; return how many reports or references have no medical entity."""
    texts = {clean_report(pair.prediction, p) for pair in pairs for p in PROTOCOLS}
    entities = reader.read(sorted(texts | {pair.reference for pair in pairs}))
    empty = 0
    for sample, pair in enumerate(pairs):
        gold = entities[pair.reference]
        for protocol in PROTOCOLS:
            predicted = entities[clean_report(pair.prediction, protocol)]
            value = 0.0 if pair.missing else rate_score(predicted, gold)
            tallies[protocol, "ratescore"].add(sample, value)
        predicted = entities[clean_report(pair.prediction, "medalign")]
        empty += not (predicted.types and gold.types)
    return empty


def _clinical_texts(pairs: Sequence[Pair]) -> list[str]:
    """Return every distinct text that CheXbert and RadGraph read, in a fixed order."""
    predicted = {clinical_text(pair.prediction, p) for pair in pairs for p in PROTOCOLS}
    return sorted(predicted | {pair.reference for pair in pairs})
