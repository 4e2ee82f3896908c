"""Score one VQA answer against its reference, by the rules of LLaVA-Med and by strict ones."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .wording import llava_med_text, llava_med_words, strict_words
from .yes_no import strict_yes_no, yes_no_reference


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenScore:
    """Hold what one OPEN answer scores; every value lies in [0, 1]."""

    recall: float
    precision: float
    f1: float
    exact_match: float
    bleu_1: float
    bleu_2: float
    bleu_3: float


def llava_med_open(prediction: str, reference: str) -> OpenScore:
    """Score an OPEN answer exactly as LLaVA-Med's scorer does.

    True positives count the *prediction's* repeats of a shared word, so "left left left" for
    "left lung" has recall 3/4. "Exact match" is the number of distinct shared words over the
    length of the prediction. BLEU-n is the clipped precision of that one order (not cumulative)
    times the brevity penalty, on words normalised once.
    """
    words, gold = llava_med_words(prediction), llava_med_words(reference)
    counts, gold_counts = Counter(words), Counter(gold)
    shared = counts.keys() & gold_counts.keys()
    true = sum(counts[word] for word in shared)
    missed = sum(gold_counts[word] for word in gold_counts.keys() - shared)
    once = llava_med_text(prediction.lower()).split()
    gold_once = llava_med_text(reference.lower()).split()
    bleu = [_single_order(once, gold_once, order) for order in (1, 2, 3)]
    return _open_score(
        precision=_ratio(true, len(words)),
        recall=_ratio(true, true + missed),
        exact_match=_ratio(len(shared), len(words)),
        bleu=bleu,
    )


def strict_open(prediction: str, reference: str) -> OpenScore:
    """Score an OPEN answer strictly.

    Shared words count as often as they occur on both sides (the smaller count), exact match means
    equal word sequences, and BLEU-n is cumulative: the geometric mean of the clipped precisions
    of orders 1 to n, without smoothing, times the brevity penalty.
    """
    words, gold = strict_words(prediction), strict_words(reference)
    true = (Counter(words) & Counter(gold)).total()
    return _open_score(
        precision=_ratio(true, len(words)),
        recall=_ratio(true, len(gold)),
        exact_match=float(bool(gold) and words == gold),
        bleu=[_cumulative(words, gold, order) for order in (1, 2, 3)],
    )


def llava_med_closed(prediction: str, reference: str) -> bool:
    """Judge a CLOSED answer exactly as LLaVA-Med's scorer does.

    A hit needs "yes" or "no" anywhere in the prediction, as a *substring*, and the reference as a
    substring too: "abnormal" is a hit for "no", and an answer "T2" never hits the reference "T2".
    """
    answer, gold = llava_med_text(prediction.lower()), llava_med_text(reference.lower())
    return ("yes" in answer or "no" in answer) and gold in answer


def strict_closed(prediction: str, reference: str) -> bool:
    """Judge a CLOSED answer strictly.

    For the references yes and no the answer's first word decides if it is one of the two, else
    the one of the two words that occurs; an answer with neither, or with both later on, is wrong.
    Any other reference takes an equal word sequence.
    """
    truth = yes_no_reference(reference)
    if truth is not None:
        return strict_yes_no(prediction) == truth
    gold = strict_words(reference)
    return bool(gold) and strict_words(prediction) == gold


def _open_score(
    *, precision: float, recall: float, exact_match: float, bleu: Sequence[float]
) -> OpenScore:
    return OpenScore(
        recall=recall,
        precision=precision,
        f1=_ratio(2 * precision * recall, precision + recall),
        exact_match=exact_match,
        bleu_1=bleu[0],
        bleu_2=bleu[1],
        bleu_3=bleu[2],
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _single_order(words: Sequence[str], gold: Sequence[str], order: int) -> float:
    return _brevity(words, gold) * _clipped_precision(words, gold, order)


def _cumulative(words: Sequence[str], gold: Sequence[str], highest: int) -> float:
    precisions = [_clipped_precision(words, gold, order) for order in range(1, highest + 1)]
    return _brevity(words, gold) * math.prod(precisions) ** (1 / highest)


def _brevity(words: Sequence[str], gold: Sequence[str]) -> float:
    if not words:
        return 0.0
    return min(1.0, math.exp(1 - len(gold) / len(words)))


def _clipped_precision(words: Sequence[str], gold: Sequence[str], order: int) -> float:
    ngrams, gold_ngrams = _ngrams(words, order), _ngrams(gold, order)
    return _ratio((ngrams & gold_ngrams).total(), ngrams.total())


def _ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))
