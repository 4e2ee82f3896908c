"""Define in one sentence what each metric means, for questions and for reports."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Key = tuple[str, str]
"""(protocol, name) of a metric."""

Unit = Literal["percent", "per report"]
Better = Literal["higher", "lower", "neither"]

VQA_METRICS = ("open", "closed", "choice", "overall", "hallucination")
"""What can be chosen of task `vqa`."""


@dataclass(frozen=True, slots=True)
class Definition:
    """What a metric means, which distribution computes it, and how it is chosen and shown.

    Attributes:
        sentence: the definition.
        group: what `--metrics` calls it and its neighbours.
        package: distribution that computes it.
        unit: "percent", or "per report".
        better: which direction is better, where one is.
        binary: whether every sample counts as one or not at all, so that McNemar's test applies.
    """

    sentence: str
    group: str
    package: str = "medalign"
    unit: Unit = "percent"
    better: Better = "higher"
    binary: bool = False


_LLAVA_MED = {
    "open_recall": "prediction words found in the reference, repeats counted, over those plus "
    "reference words not predicted; mean over OPEN questions",
    "open_precision": "prediction words found in the reference over all prediction words; mean "
    "over OPEN questions",
    "open_f1": "harmonic mean of that question's recall and precision; mean over OPEN questions",
    "open_exact_match": "distinct words shared with the reference over all prediction words (no "
    "equality of texts); mean over OPEN questions",
    "open_bleu_1": "clipped unigram precision times the brevity penalty; mean over OPEN questions",
    "open_bleu_2": "clipped bigram precision alone (not cumulative) times the brevity penalty; "
    "mean over OPEN questions",
    "open_bleu_3": "clipped trigram precision alone (not cumulative) times the brevity penalty; "
    "mean over OPEN questions",
    "closed_accuracy": "share of CLOSED questions (or without answer_type), with options or "
    "not, whose prediction holds yes or no as a substring and the reference as a substring",
    "choice_accuracy": "share of multiple-choice questions whose prediction and label are closest "
    "to the same option by difflib's ratio, case-sensitive",
}

_STRICT = {
    "open_recall": "words shared with the reference (smaller count of both sides) over all "
    "reference words; mean over OPEN questions",
    "open_precision": "words shared with the reference (smaller count of both sides) over all "
    "prediction words; mean over OPEN questions",
    "open_f1": "harmonic mean of that question's recall and precision; mean over OPEN questions",
    "open_exact_match": "share of OPEN questions whose normalised words equal the reference's",
    "open_bleu_1": "clipped unigram precision times the brevity penalty; mean over OPEN questions",
    "open_bleu_2": "cumulative sentence BLEU of orders 1 and 2, not smoothed; mean over OPEN "
    "questions",
    "open_bleu_3": "cumulative sentence BLEU of orders 1 to 3, not smoothed; mean over OPEN "
    "questions",
    "closed_accuracy": "share of CLOSED questions (or without answer_type) whose first word, or "
    "else only one of the words yes and no, is the reference; other references need equal words",
    "choice_accuracy": "share of multiple-choice questions whose prediction names the reference's "
    "option and no other, by its words or its letter (B, (b), Answer: B, The answer is B.)",
    "overall_accuracy": "share of all questions that are right: closed and multiple choice as "
    "above, OPEN by exact match",
}

_STRICT_WORDS = (
    "words: lower case, without punctuation and the articles a (unless last), an, the; none and "
    "zero to ten as digits; signs such as + - < % kept"
)
"""What every strict metric compares, see `wording.strict_words`."""

_JUDGES = {
    "strict": "an answer says what its first word says, else the only one of yes and no in it; "
    + _STRICT_WORDS,
    "medheval": "MedHEval's judge: No, no or not before the first full stop means no, all else yes",
}
_HALLUCINATION = {
    "hallucination_rate": "share of questions with reference no (absent) that are answered yes",
    "missed_findings": "share of questions with reference yes (present) that are answered no",
    "yes_no_accuracy": "share of yes/no questions answered like the reference",
    "yes_share": "share of yes/no questions answered yes; compare with how many references are yes",
    "unclear_answers": "share of yes/no questions whose answer says neither, or both",
}
_DIRECTION: dict[str, Better] = {"yes_no_accuracy": "higher", "yes_share": "neither"}
_RIGHT_OR_WRONG = frozenset(
    {
        ("strict", "open_exact_match"),
        ("strict", "closed_accuracy"),
        ("strict", "choice_accuracy"),
        ("strict", "overall_accuracy"),
        ("llava-med", "closed_accuracy"),
        ("llava-med", "choice_accuracy"),
    }
)


def vqa_definitions(kinds: Iterable[str] = ()) -> dict[Key, Definition]:
    """Return the definitions of the VQA metrics by (protocol, name), in the order of tables.

    Args:
        kinds: kinds of closed questions, each with a hallucination rate of its own.
    """
    definitions = {
        (protocol, name): Definition(
            f"{text}; {_STRICT_WORDS}" if protocol == "strict" else text,
            name.partition("_")[0],
            binary=(protocol, name) in _RIGHT_OR_WRONG,
        )
        for protocol, texts in (("strict", _STRICT), ("llava-med", _LLAVA_MED))
        for name, text in texts.items()
    }
    typed = {"hallucination_rate": _HALLUCINATION["hallucination_rate"]} | {
        f"hallucination_rate: {kind}": f"{_HALLUCINATION['hallucination_rate']}, of kind {kind!r}"
        for kind in sorted(kinds)
    }
    for protocol, judge in _JUDGES.items():
        # By kind for one judge only: that is enough to read. Kinds follow what they are kinds of.
        texts = _HALLUCINATION if protocol == "medheval" else typed | _HALLUCINATION
        for name, text in texts.items():
            definitions[protocol, name] = Definition(
                f"{text}; {judge}",
                "hallucination",
                better=_DIRECTION.get(name, "lower"),
                binary=True,
            )
    return definitions


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
