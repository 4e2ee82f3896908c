"""Score every report by itself, under both cleanings: words, models of meaning, clinical labels."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

from .metric_models.locate import Instruments
from .metrics.definitions import Key
from .metrics.labels import FINDINGS, TOP_5, LabelCounts, found_labels
from .metrics.radgraph import Annotation, graph_score, present_findings
from .metrics.ratescore import rate_score
from .metrics.report_text import (
    ReportProtocol,
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

PROTOCOLS: tuple[ReportProtocol, ...] = ("medalign", "authors")

_ZERO_FOR_UNDEFINED = ("f1_micro", "f1_macro")


@dataclass(frozen=True, slots=True)
class ReportScores:
    """Hold what reports score.

    Attributes:
        samples: the statistics.
        wordnet: version of the WordNet that METEOR used.
        counts: what a reader must know beside the scores.
    """

    samples: Mapping[Key, Statistic]
    wordnet: str | None
    counts: Mapping[str, int]


def report_scores(
    pairs: Sequence[Pair], wanted: Collection[str], instruments: Instruments
) -> ReportScores:
    """Return what every report scores under both protocols.

    A report that is missing scores 0 and is taken to find nothing, whatever a model would say
    about an empty text.

    Args:
        pairs: reports with references, in the order of the manifest.
        wanted: of `REPORT_METRICS`; one whose instrument is not there is left out.
        instruments: the models and annotations that were found.

    Raises:
        AnswersError: a report has no annotation.
    """
    tallies: dict[Key, Tally] = defaultdict(Tally)
    counts: dict[str, int] = {}
    synonyms = find_wordnet() if "meteor" in wanted else None
    _add_words(tallies, pairs, wanted, synonyms)
    if instruments.bertscore is not None and "bertscore" in wanted:
        _add_bertscore(tallies, pairs, instruments)
    if instruments.chexbert is not None and "chexbert" in wanted:
        _add_chexbert(tallies, pairs, instruments)
    if instruments.radgraph is not None and "radgraph" in wanted:
        _add_radgraph(tallies, pairs, instruments)
    if instruments.ratescore is not None and "ratescore" in wanted:
        counts["reports_without_medical_entities"] = _add_ratescore(tallies, pairs, instruments)
    return ReportScores(
        samples={key: tally.statistic() for key, tally in tallies.items()},
        wordnet=None if synonyms is None else synonyms.get_version(),
        counts=counts,
    )


def _add_words(
    tallies: dict[Key, Tally],
    pairs: Sequence[Pair],
    wanted: Collection[str],
    synonyms: Synonyms | None,
) -> None:
    measures: dict[str, Callable[[str, str], float]] = {
        "bleu": bleu,
        "rouge_l": rouge_l,
        "meteor": lambda text, gold: meteor(text, gold, synonyms),
    }
    for place, pair in enumerate(pairs):
        known: dict[str, dict[str, float]] = {}
        for protocol in PROTOCOLS:
            text = clean_report(pair.prediction, protocol)
            if text not in known:  # both cleanings mostly agree
                chosen = {name: of for name, of in measures.items() if name in wanted}
                known[text] = {name: of(text, pair.reference) for name, of in chosen.items()}
            for name, value in known[text].items():
                tallies[protocol, name].add(place, value)


def _add_bertscore(
    tallies: dict[Key, Tally], pairs: Sequence[Pair], instruments: Instruments
) -> None:
    assert instruments.bertscore is not None
    cleaned = {
        (place, protocol): (clean_report(pair.prediction, protocol), pair.reference)
        for place, pair in enumerate(pairs)
        for protocol in PROTOCOLS
    }
    scored = instruments.bertscore.scores(list(dict.fromkeys(cleaned.values())))
    for (place, protocol), texts in cleaned.items():
        for name, value in scored[texts]._asdict().items():
            tallies[protocol, f"bertscore_{name}"].add(place, value)


def _add_chexbert(
    tallies: dict[Key, Tally], pairs: Sequence[Pair], instruments: Instruments
) -> None:
    assert instruments.chexbert is not None
    read = instruments.chexbert.read(_clinical_texts(pairs))
    for place, pair in enumerate(pairs):
        gold = read[pair.reference]
        wanted = found_labels(gold.classes)
        for protocol in PROTOCOLS:
            said = read[clinical_text(pair.prediction, protocol)]
            predicted = found_labels(said.classes) & (not pair.missing)
            similarity = 0.0 if pair.missing else said.similarity(gold)
            tallies[protocol, "chexbert_similarity"].add(place, similarity)
            _add_labels(tallies, protocol, place, LabelCounts.of(predicted, wanted))


def _add_labels(tallies: dict[Key, Tally], protocol: str, place: int, counted: LabelCounts) -> None:
    five = LabelCounts.of(counted.predicted[list(TOP_5)] > 0, counted.wanted[list(TOP_5)] > 0)
    for size, labels in (("14", counted), ("5", five)):
        part, whole = labels.f1_terms()
        for name, terms in (
            (f"macro_{size}", (part, whole)),
            (f"micro_{size}", (sum(part), sum(whole))),
        ):
            key = protocol, f"chexbert_f1_{name}"
            tallies.setdefault(key, Tally(undefined=0.0)).add(place, *terms)
    right = bool((five.predicted == five.wanted).all())
    tallies[protocol, "chexbert_all_5"].add(place, float(right))
    tallies[protocol, "chexbert_f1_example"].add(place, counted.f1())
    both, predicted, wanted = (
        float(each[:FINDINGS].sum()) for each in (counted.both, counted.predicted, counted.wanted)
    )
    for name, terms in {
        "precision": (both, predicted),
        "recall": (both, wanted),
        "commission": (predicted - both, predicted),
        "omission": (wanted - both, wanted),
        "any_commission": (float(predicted > both), 1.0),
    }.items():
        tallies[protocol, f"chexbert_{name}"].add(place, *terms)


def _add_radgraph(
    tallies: dict[Key, Tally], pairs: Sequence[Pair], instruments: Instruments
) -> None:
    assert instruments.radgraph is not None
    graphs = instruments.radgraph.of(_clinical_texts(pairs))
    nothing: Annotation = {}
    for place, pair in enumerate(pairs):
        gold = graphs[pair.reference]
        for protocol in PROTOCOLS:
            said = nothing if pair.missing else graphs[clinical_text(pair.prediction, protocol)]
            for name, value in asdict(graph_score(said, gold)).items():
                tallies[protocol, f"radgraph_{name}"].add(place, value)
            predicted, wanted = present_findings(said), present_findings(gold)
            extra, left_out = len(predicted - wanted), len(wanted - predicted)
            for name, terms in {
                "hallucinated": (extra, len(predicted)),
                "omitted": (left_out, len(wanted)),
                "any_hallucinated": (float(extra > 0), 1.0),
                "hallucinated_number": (extra, 1.0),
            }.items():
                tallies[protocol, f"radgraph_{name}"].add(place, *terms)


def _add_ratescore(
    tallies: dict[Key, Tally], pairs: Sequence[Pair], instruments: Instruments
) -> int:
    assert instruments.ratescore is not None
    texts = {clean_report(pair.prediction, p) for pair in pairs for p in PROTOCOLS}
    entities = instruments.ratescore.read(sorted(texts | {pair.reference for pair in pairs}))
    empty = 0
    for place, pair in enumerate(pairs):
        gold = entities[pair.reference]
        for protocol in PROTOCOLS:
            said = entities[clean_report(pair.prediction, protocol)]
            value = 0.0 if pair.missing else rate_score(said, gold)
            tallies[protocol, "ratescore"].add(place, value)
        said = entities[clean_report(pair.prediction, "medalign")]
        empty += not (said.types and gold.types)
    return empty


def _clinical_texts(pairs: Sequence[Pair]) -> list[str]:
    """Return every distinct text that CheXbert and RadGraph read, in a fixed order."""
    predicted = {clinical_text(pair.prediction, p) for pair in pairs for p in PROTOCOLS}
    return sorted(predicted | {pair.reference for pair in pairs})
