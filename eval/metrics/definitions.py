"""Say in one sentence what each number of a VQA task means."""

from collections.abc import Iterable
from dataclasses import dataclass
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
    found = {
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
            found[protocol, name] = Definition(
                f"{text}; {judge}",
                "hallucination",
                better=_DIRECTION.get(name, "lower"),
                binary=True,
            )
    return found
