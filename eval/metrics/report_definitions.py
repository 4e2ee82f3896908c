"""Say in one sentence what each number of a report task means, and which package computes it."""

from collections.abc import Mapping
from types import MappingProxyType

from .definitions import Definition, Key

REPORT_METRICS = ("bleu", "rouge_l", "meteor", "bertscore", "chexbert", "radgraph", "ratescore")
"""What can be chosen of task `report`."""

CLEANING: Mapping[str, str] = MappingProxyType(
    {
        "medalign": 'a leading "Assistant:" is removed from predictions',
        "authors": 'the characters of "Assistant:" are stripped from both ends of predictions, as '
        "the paper's scripts do",
    }
)
"""Protocols of reports, and how each cleans a prediction."""

_SHORT = ', and one of fewer than 10 characters is replaced by "No report generated."'
_BLEU = "sentence BLEU-4, equal weights, smoothing method 4, case kept; mean over reports"
_ROUGE = "ROUGE-L F-measure of Porter stems; mean over reports"
_METEOR = "METEOR (alpha 0.9, beta 3, gamma 0.5) on words and Porter stems"
_BERTSCORE = {
    "bertscore_precision": "mean over predicted tokens of the best cosine with a reference token",
    "bertscore_recall": "mean over reference tokens of the best cosine with a predicted token",
    "bertscore_f1": "harmonic mean of the report's BERTScore precision and recall",
}
_LABELS = "CheXbert labels, positive and uncertain count as found"
_CHEXBERT = {
    "chexbert_similarity": "cosine of the CheXbert [CLS] vectors of prediction and reference (the "
    "paper's CheXbert column, no label F1); mean over reports",
    "chexbert_f1_micro_14": f"F1 over all reports and 14 labels; {_LABELS}",
    "chexbert_f1_macro_14": f"mean of the F1 of each of 14 labels, 0 for a label never found; "
    f"{_LABELS}",
    "chexbert_f1_micro_5": f"F1 over all reports and the 5 labels of CheXpert; {_LABELS}",
    "chexbert_f1_macro_5": f"mean of the F1 of each of the 5 labels of CheXpert; {_LABELS}",
    "chexbert_f1_example": "F1 of the 14 labels of each report, 0 where neither side has one; "
    f"mean over reports; {_LABELS}",
    "chexbert_all_5": f"share of reports whose 5 labels of CheXpert are all right; {_LABELS}",
    "chexbert_precision": f"share of predicted findings that the reference has, 13 labels without "
    f"No Finding; {_LABELS}",
    "chexbert_recall": f"share of the reference's findings that the prediction has, 13 labels; "
    f"{_LABELS}",
    "chexbert_commission": "share of predicted findings that the reference has not "
    f"(hallucinated), 13 labels; {_LABELS}",
    "chexbert_omission": f"share of the reference's findings that the prediction has not, 13 "
    f"labels; {_LABELS}",
    "chexbert_any_commission": f"share of reports with a finding that the reference has "
    f"not, 13 labels; {_LABELS}",
}
_PRESENT = "definitely present observations by their words, lower-cased"
_RADGRAPH = {
    "radgraph_combined": "(entity F1 + relation F1) / 2 of a report, case kept, 0/0 counts as 0 "
    "(the paper's RadGraph column); mean over reports",
    "radgraph_entity_f1": "F1 of entities as (words, label), case kept; mean over reports",
    "radgraph_relation_f1": "F1 of relations as (entity, entity, relation), 0 where neither side "
    "has one; mean over reports",
    "radgraph_simple": "the radgraph package's reward `simple`: F1 of entities; mean over reports",
    "radgraph_partial": "the radgraph package's reward `partial`: F1 of entities and whether they "
    "have a relation; mean over reports",
    "radgraph_complete": "the radgraph package's reward `complete`: F1 of entities with each of "
    "their relations; mean over reports",
    "radgraph_hallucinated": f"share of predicted findings that the reference has not: {_PRESENT}",
    "radgraph_omitted": f"share of the reference's findings not predicted: {_PRESENT}",
    "radgraph_any_hallucinated": f"share of reports with a finding that the reference "
    f"has not: {_PRESENT}",
    "radgraph_hallucinated_number": f"number of findings that the reference has not: "
    f"{_PRESENT}; mean over reports",
}
_RATESCORE = (
    "harmonic mean of both directions' similarity of medical entities, weighted by their types "
    "(long); 0.5 where a side has no entity; sentences cut after . ! ? and line ends; mean over "
    "reports"
)
_LOWER = frozenset(
    {
        "chexbert_commission",
        "chexbert_omission",
        "chexbert_any_commission",
        "radgraph_hallucinated",
        "radgraph_omitted",
        "radgraph_any_hallucinated",
        "radgraph_hallucinated_number",
    }
)
_BINARY = frozenset(
    {
        "chexbert_all_5",
        "chexbert_any_commission",
        "radgraph_any_hallucinated",
    }
)


def report_definitions(
    wordnet: str | None, bertscore: str = "given model", radgraph: str = "transformers"
) -> dict[Key, Definition]:
    """Return the definitions of the report metrics by (protocol, name), in the order of tables.

    Args:
        wordnet: version of the WordNet that METEOR used, None if there was none.
        bertscore: model and layer of BERTScore.
        radgraph: distribution that made the graphs, or medalign, which only compared them.
    """
    return {
        (protocol, name): Definition(
            f"{text}; {cleaning}{_own_cleaning(protocol, group)}",
            group,
            package,
            unit="per report" if name.endswith("_number") else "percent",
            better="lower" if name in _LOWER else "higher",
            binary=name in _BINARY,
        )
        for group, package, texts in _groups(wordnet, bertscore, radgraph)
        for name, text in texts.items()
        for protocol, cleaning in CLEANING.items()
    }


def _groups(
    wordnet: str | None, bertscore: str, radgraph: str
) -> list[tuple[str, str, Mapping[str, str]]]:
    """Return (group, package, definition by name) of every group."""
    synonyms = f"and WordNet {wordnet} synonyms" if wordnet else "without WordNet synonyms"
    tail = f"{bertscore}, no idf, no rescaling; mean over reports"
    return [
        ("bleu", "nltk", {"bleu": _BLEU}),
        ("rouge_l", "rouge-score", {"rouge_l": _ROUGE}),
        ("meteor", "nltk", {"meteor": f"{_METEOR}, {synonyms}; mean over reports"}),
        ("bertscore", "transformers", {n: f"{t}; {tail}" for n, t in _BERTSCORE.items()}),
        ("chexbert", "transformers", _CHEXBERT),
        ("radgraph", radgraph, _RADGRAPH),
        ("ratescore", "transformers", {"ratescore": _RATESCORE}),
    ]


def _own_cleaning(protocol: str, group: str) -> str:
    return _SHORT if protocol == "authors" and group in ("chexbert", "radgraph") else ""
