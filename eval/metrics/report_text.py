"""Score one report against its reference: BLEU-4, ROUGE-L and METEOR, with no data to download."""

import functools
import re
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from nltk.corpus import wordnet
from nltk.tokenize import NLTKWordTokenizer
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer

ReportProtocol = Literal["medalign", "authors"]
"""How a predicted report is cleaned: by `medalign`, or by the paper's scripts."""

PROTOCOLS: tuple[ReportProtocol, ...] = ("medalign", "authors")

_SHORTEST = 10
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Synonyms(Protocol):
    """What METEOR needs of WordNet."""

    def synsets(self, word: str) -> Sequence[Any]:
        """Return the synonym sets of a word."""

    def get_version(self) -> str:
        """Return the version of the word list."""


class _NoSynonyms:
    def synsets(self, word: str) -> Sequence[Any]:  # noqa: ARG002
        return ()


def find_wordnet() -> Synonyms | None:
    """Return NLTK's WordNet if a local nltk data folder holds it, else None; download nothing."""
    try:
        wordnet.ensure_loaded()
    # An incomplete copy raises OSError; it is as good as none, and the scores say which was used.
    except (LookupError, OSError):
        return None
    synonyms: Synonyms = wordnet
    return synonyms


def clean_report(text: str, protocol: ReportProtocol) -> str:
    """Remove a leading "Assistant:" from a predicted report.

    Differs from the paper: its scripts call `text.strip("Assistant:")`, which strips a *set of
    characters* from both ends ("No effusion is seen" becomes "No effusion is see"). The protocol
    "authors" does that; "medalign" removes the prefix and nothing else.
    """
    if protocol == "authors":
        return text.strip("Assistant:")  # noqa: B005
    return text.strip().removeprefix("Assistant:").strip()


def clinical_text(text: str, protocol: ReportProtocol) -> str:
    """Return a predicted report as CheXbert and RadGraph read it.

    Differs from the paper: its scripts take the text before the stripping if nothing is left of
    it, and put "No report generated." in place of fewer than 10 characters. The protocol
    "authors" does both; "medalign" reads what the model wrote.
    """
    cleaned = clean_report(text, protocol)
    if protocol == "medalign":
        return cleaned
    report = cleaned or text
    return report if len(report) >= _SHORTEST else "No report generated."


def report_tokens(text: str) -> list[str]:
    """Split a report into the tokens that `nltk.word_tokenize` gives, case kept.

    Sentences are cut after `.`, `!` and `?` where blanks follow, in place of the trained Punkt
    model, which needs a data file. The two differ only at abbreviations such as "Dr. X".
    """
    tokenizer = _tokenizer()
    return [token for piece in _SENTENCE_END.split(text) for token in tokenizer.tokenize(piece)]


def bleu(prediction: str, reference: str) -> float:
    """Return sentence BLEU-4 in [0, 1]: equal weights, smoothing method 4, case kept."""
    hypothesis = report_tokens(prediction)
    smoothing = SmoothingFunction().method4
    score = sentence_bleu([report_tokens(reference)], hypothesis, smoothing_function=smoothing)
    return float(score)


def rouge_l(prediction: str, reference: str) -> float:
    """Return the ROUGE-L F-measure in [0, 1], stemmed, lower-cased."""
    return float(_rouge().score(reference, prediction)["rougeL"].fmeasure)


def meteor(prediction: str, reference: str, synonyms: Synonyms | None) -> float:
    """Return METEOR in [0, 1]: words, Porter stems and, where given, WordNet synonyms.

    Args:
        prediction: the report that was generated.
        reference: the report it is compared with.
        synonyms: what `find_wordnet` returned; None leaves synonyms out.
    """
    source = _NoSynonyms() if synonyms is None else synonyms
    score = single_meteor_score(report_tokens(reference), report_tokens(prediction), wordnet=source)
    return float(score)


@functools.cache
def _tokenizer() -> Any:
    return NLTKWordTokenizer()


@functools.cache
def _rouge() -> Any:
    return RougeScorer(["rougeL"], use_stemmer=True)
