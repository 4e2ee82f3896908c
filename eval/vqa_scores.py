"""Score every question by itself, under every protocol; values and intervals follow from these."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from .metrics.choice import llava_med_choice, strict_choice
from .metrics.definitions import Key
from .metrics.statistic import Statistic, Tally
from .metrics.vqa import llava_med_closed, llava_med_open, strict_closed, strict_open
from .metrics.yes_no import medheval_yes_no, strict_yes_no, yes_no_reference
from .predictions import AnswersError, Pair

Tallies = dict[Key, Tally]

TYPE_FIELDS = ("hallucination_type", "content_type", "question_type", "modality")
"""Fields of a record that name the kind of its question's finding; the first counts."""


def vqa_scores(pairs: Iterable[Pair]) -> tuple[dict[Key, Statistic], dict[str, int]]:
    """Return what the questions score under every protocol, and counts by kind of question.

    Args:
        pairs: questions with references and answers, in the order of the manifest.

    Raises:
        AnswersError: a record's `options` are no list of texts.
    """
    tallies: Tallies = defaultdict(Tally)
    counts = {"open": 0, "closed": 0, "choice": 0, "choice_reference_not_an_option": 0}
    for sample, pair in enumerate(pairs):
        options = _options(pair)
        if options:
            kind, right = "choice", _add_choice(tallies, sample, pair, options)
            named = strict_choice(options, pair.reference)
            counts["choice_reference_not_an_option"] += named is None
        elif pair.record.answer_type == "OPEN":
            kind, right = "open", _add_open(tallies, sample, pair)
        else:
            right = float(strict_closed(pair.prediction, pair.reference))
            kind = "closed"
            tallies["strict", "closed_accuracy"].add(sample, right)
        counts[kind] += 1
        tallies["strict", "overall_accuracy"].add(sample, right)
        _add_llava_med(tallies, sample, pair)
        _add_hallucination(tallies, sample, pair, options)
    return {key: tally.statistic() for key, tally in tallies.items()}, counts


def _add_open(tallies: Tallies, sample: int, pair: Pair) -> float:
    scored = strict_open(pair.prediction, pair.reference)
    for name, value in asdict(scored).items():
        tallies["strict", f"open_{name}"].add(sample, value)
    return scored.exact_match


def _add_llava_med(tallies: Tallies, sample: int, pair: Pair) -> None:
    """Add what the released scorer gives without --mc: it does not look at options then."""
    if pair.record.answer_type == "OPEN":
        for name, value in asdict(llava_med_open(pair.prediction, pair.reference)).items():
            tallies["llava-med", f"open_{name}"].add(sample, value)
    else:
        hit = llava_med_closed(pair.prediction, pair.reference)
        tallies["llava-med", "closed_accuracy"].add(sample, float(hit))


def _add_hallucination(tallies: Tallies, sample: int, pair: Pair, options: Sequence[str]) -> None:
    """Add a question whose reference is yes or no; of others nothing is known."""
    truth = yes_no_reference(_meant(options, pair.reference))
    if truth is None:
        return
    judges = {
        "strict": strict_yes_no(_meant(options, pair.prediction)),
        "medheval": medheval_yes_no(pair.prediction.strip()),
    }
    kind = question_type(pair)
    for protocol, verdict in judges.items():
        yes = float(verdict == "yes")
        tallies[protocol, "yes_no_accuracy"].add(sample, float(verdict == truth))
        tallies[protocol, "yes_share"].add(sample, yes)
        tallies[protocol, "unclear_answers"].add(sample, float(verdict is None))
        if truth == "no":
            tallies[protocol, "hallucination_rate"].add(sample, yes)
            if kind is not None and protocol == "strict":
                tallies[protocol, f"hallucination_rate: {kind}"].add(sample, yes)
        else:
            tallies[protocol, "missed_findings"].add(sample, float(verdict == "no"))


def _meant(options: Sequence[str], text: str) -> str:
    """Return the option that a text names, so that "B" can be a no; else the text."""
    named = strict_choice(options, text)
    return text if named is None else options[named]


def question_type(pair: Pair) -> str | None:
    """Return the kind of finding that a question asks for, where its record names one."""
    values = (pair.record.fields.get(name) for name in TYPE_FIELDS)
    return next((v.strip() for v in values if isinstance(v, str) and v.strip()), None)


def _add_choice(tallies: Tallies, sample: int, pair: Pair, options: Sequence[str]) -> float:
    gold = strict_choice(options, pair.reference)
    right = float(gold is not None and strict_choice(options, pair.prediction) == gold)
    tallies["strict", "choice_accuracy"].add(sample, right)
    # The reference takes the field `answer` as it is, and lower-cases the turn from gpt.
    label = pair.record.fields.get("answer") or pair.reference.lower()
    # None equals None there: an answer like no option is right if the label is like none either.
    hit = llava_med_choice(options, pair.prediction) == llava_med_choice(options, str(label))
    tallies["llava-med", "choice_accuracy"].add(sample, float(hit and not pair.missing))
    return right


def _options(pair: Pair) -> list[str]:
    options = pair.record.fields.get("options")
    if not options:
        return []
    fits = isinstance(options, list) and all(isinstance(o, str) and o.strip() for o in options)
    if not fits or len(options) < 2:
        raise AnswersError(
            f"manifest line {pair.record.line}: record {pair.record.id!r} has `options` "
            f"{options!r}, must be a list of at least two texts"
        )
    return list(options)
