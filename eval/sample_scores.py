"""Score every sample by itself, under every protocol: what means and intervals are made of."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from .answers import AnswersError, Pair
from .metrics.choice import llava_med_choice, strict_choice
from .metrics.vqa import llava_med_closed, llava_med_open, strict_closed, strict_open

SampleScores = dict[tuple[str, str], list[float]]
"""(protocol, name) -> one value in [0, 1] per sample the metric applies to."""


def vqa_scores(pairs: Iterable[Pair]) -> tuple[SampleScores, dict[str, int]]:
    """Return what every question scores under both protocols, and counts by kind of question."""
    samples: SampleScores = defaultdict(list)
    counts = {"open": 0, "closed": 0, "choice": 0, "choice_reference_not_an_option": 0}
    for pair in pairs:
        options = _options(pair)
        if options:
            kind, right = "choice", _add_choice(samples, pair, options)
            named = strict_choice(options, pair.reference)
            counts["choice_reference_not_an_option"] += named is None
        elif pair.record.answer_type == "OPEN":
            kind, right = "open", _add_open(samples, pair)
        else:
            kind, right = "closed", _add_closed(samples, pair)
        counts[kind] += 1
        samples["strict", "overall_accuracy"].append(right)
    return samples, counts


def report_scores(pairs: Iterable[Pair]) -> tuple[SampleScores, str | None]:
    """Return what every report scores under both protocols, and the version of WordNet used."""
    # Inside: nltk takes a second to import, which VQA scores need not pay.
    from .metrics.report import bleu, clean_report, find_wordnet, meteor, rouge_l

    synonyms = find_wordnet()
    samples: SampleScores = defaultdict(list)
    for pair in pairs:
        known: dict[str, tuple[float, float, float]] = {}
        for protocol in ("medalign", "authors"):
            text, gold = clean_report(pair.prediction, protocol), pair.reference
            if text not in known:  # both cleanings mostly agree
                known[text] = bleu(text, gold), rouge_l(text, gold), meteor(text, gold, synonyms)
            for name, value in zip(("bleu", "rouge_l", "meteor"), known[text], strict=True):
                samples[protocol, name].append(value)
    version = None if synonyms is None else synonyms.get_version()
    return samples, version


def _add_open(samples: SampleScores, pair: Pair) -> float:
    strict = strict_open(pair.prediction, pair.reference)
    lenient = llava_med_open(pair.prediction, pair.reference)
    for protocol, scored in (("strict", strict), ("llava-med", lenient)):
        for name, value in asdict(scored).items():
            samples[protocol, f"open_{name}"].append(value)
    return strict.exact_match


def _add_closed(samples: SampleScores, pair: Pair) -> float:
    right = float(strict_closed(pair.prediction, pair.reference))
    samples["strict", "closed_accuracy"].append(right)
    hit = llava_med_closed(pair.prediction, pair.reference)
    samples["llava-med", "closed_accuracy"].append(float(hit))
    return right


def _add_choice(samples: SampleScores, pair: Pair, options: Sequence[str]) -> float:
    gold = strict_choice(options, pair.reference)
    right = float(gold is not None and strict_choice(options, pair.prediction) == gold)
    samples["strict", "choice_accuracy"].append(right)
    # The reference takes the field `answer` as it is, and lower-cases the turn from gpt.
    label = pair.record.fields.get("answer") or pair.reference.lower()
    # None equals None there: an answer like no option is right if the label is like none either.
    hit = llava_med_choice(options, pair.prediction) == llava_med_choice(options, str(label))
    samples["llava-med", "choice_accuracy"].append(float(hit and not pair.missing))
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
