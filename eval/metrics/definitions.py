"""Say in one sentence what each number means and which package computes it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Definition:
    """Hold the sentence that explains a metric, and the distribution that computes it."""

    sentence: str
    package: str = "medalign"


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
    "closed_accuracy": "share of CLOSED questions (or without answer_type) whose prediction holds "
    "yes or no as a substring and the reference as a substring",
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
    "option, by its letter or its words, and no other",
    "overall_accuracy": "share of all questions that are right: closed and multiple choice as "
    "above, OPEN by exact match",
}

_BLEU = "sentence BLEU-4, equal weights, smoothing method 4, case kept; mean over reports"
_ROUGE = "ROUGE-L F-measure of Porter stems; mean over reports"
_METEOR = "METEOR (alpha 0.9, beta 3, gamma 0.5) on words and Porter stems"
_CLEANING = {
    "medalign": 'a leading "Assistant:" is removed from predictions',
    "authors": 'the characters of "Assistant:" are stripped from both ends of predictions, as the '
    "paper's scripts do",
}


def vqa_definitions() -> dict[tuple[str, str], Definition]:
    """Return the definitions of the VQA metrics by (protocol, name), in the order of tables."""
    strict = {("strict", name): Definition(text) for name, text in _STRICT.items()}
    return strict | {("llava-med", name): Definition(text) for name, text in _LLAVA_MED.items()}


def report_definitions(wordnet: str | None) -> dict[tuple[str, str], Definition]:
    """Return the definitions of the report metrics by (protocol, name), in the order of tables.

    Args:
        wordnet: version of the WordNet that METEOR used, None if there was none.
    """
    synonyms = f"and WordNet {wordnet} synonyms" if wordnet else "without WordNet synonyms"
    found = {}
    for protocol, cleaning in _CLEANING.items():
        for name, sentence, package in (
            ("bleu", _BLEU, "nltk"),
            ("rouge_l", _ROUGE, "rouge-score"),
            ("meteor", f"{_METEOR}, {synonyms}; mean over reports", "nltk"),
        ):
            found[protocol, name] = Definition(f"{sentence}; {cleaning}", package)
    return found
