from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.eval.metrics import report_text as report
from medalign.eval.metrics.report_text import (
    bleu,
    clean_report,
    clinical_text,
    find_wordnet,
    meteor,
    report_tokens,
    rouge_l,
)

TEXTS = st.text(alphabet="aAnst. ,!?-'2\n", max_size=40)
REPORTS = st.lists(
    st.sampled_from(
        ["heart", "lungs", "clear.", "No", "effusion", "is", "seen.", "2.5", "cm,", "left"]
    ),
    min_size=4,
    max_size=30,
).map(" ".join)


class Lemma:
    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return self._name


class Synset:
    def __init__(self, *names: str) -> None:
        self._names = names

    def lemmas(self) -> list[Lemma]:
        return [Lemma(name) for name in self._names]


class Thesaurus:
    """The one entry of WordNet 3.0 that a golden report needs."""

    def synsets(self, word: str) -> Sequence[Synset]:
        return [Synset("look", "appear", "seem")] if word in ("look", "appear") else []

    def get_version(self) -> str:
        return "3.0"


def test_golden_reports_have_the_reference_scores(golden: Any) -> None:
    for pair in golden["reports"]:
        texts = pair["prediction"], pair["reference"]
        found = bleu(*texts), rouge_l(*texts), meteor(*texts, None), meteor(*texts, Thesaurus())
        expected = [pair[name] for name in ("bleu", "rouge_l", "meteor", "meteor_wordnet")]
        assert found == pytest.approx(expected, abs=5e-5), pair["id"]


def test_the_means_are_those_of_the_reference(golden: Any) -> None:
    texts = [(pair["prediction"], pair["reference"]) for pair in golden["reports"][:5]]
    expected = golden["report_means_of_first_five"]
    assert np.mean([bleu(*pair) for pair in texts]) == pytest.approx(expected["bleu"], abs=5e-5)
    assert np.mean([rouge_l(*pair) for pair in texts]) == pytest.approx(
        expected["rouge_l"], abs=5e-5
    )
    assert np.mean([meteor(*pair, Thesaurus()) for pair in texts]) == pytest.approx(
        expected["meteor_wordnet"], abs=5e-5
    )


def test_tokens_are_those_of_word_tokenize(golden: Any) -> None:
    for item in golden["tokens"]:
        assert report_tokens(item["text"]) == item["tokens"]
    for pair in golden["reports"]:
        counts = [len(report_tokens(pair[side])) for side in ("prediction", "reference")]
        assert counts == pair["tokens"]


def test_case_counts_for_bleu_but_not_for_rouge_and_meteor() -> None:
    reference = "Heart size is normal today"
    assert bleu(reference.lower(), reference) < 1
    assert rouge_l(reference.lower(), reference) == 1
    assert meteor(reference.lower(), reference, None) == meteor(reference, reference, None)


@pytest.mark.parametrize(
    ("text", "medalign", "authors"),
    [
        (
            "No pleural effusion is seen",
            "No pleural effusion is seen",
            "No pleural effusion is see",
        ),
        ("Assistant: Atelectasis", "Atelectasis", " Atelec"),
        ("Normal. Assistant:", "Normal. Assistant:", "Normal. "),
        ("Heart is normal.", "Heart is normal.", "Heart is normal."),
    ],
)
def test_cleaning_removes_the_prefix_or_strips_characters(
    text: str, medalign: str, authors: str
) -> None:
    assert clean_report(text, "medalign") == medalign
    assert clean_report(text, "authors") == authors


@pytest.mark.parametrize(
    ("text", "authors"),
    [
        ("Clear now.", "Clear now."),  # ten characters
        ("Clear now", "No report generated."),
        ("", "No report generated."),
        ("Assistant:Assistant:", "Assistant:Assistant:"),  # nothing would be left of it
    ],
)
def test_the_authors_read_no_report_where_there_is_little(text: str, authors: str) -> None:
    assert clinical_text(text, "authors") == authors
    assert clinical_text(text, "medalign") == clean_report(text, "medalign")


@pytest.mark.parametrize("missing", [LookupError("no wordnet"), FileNotFoundError("no lexnames")])
def test_a_missing_or_broken_wordnet_is_none(
    monkeypatch: pytest.MonkeyPatch, missing: Exception
) -> None:
    class Absent:
        def ensure_loaded(self) -> None:
            raise missing

    monkeypatch.setattr(report, "wordnet", Absent())
    assert find_wordnet() is None


def test_a_local_wordnet_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Present(Thesaurus):
        def ensure_loaded(self) -> None:
            pass

    present = Present()
    monkeypatch.setattr(report, "wordnet", present)
    assert find_wordnet() is present


@given(TEXTS, TEXTS)
def test_every_value_lies_between_0_and_1(prediction: str, reference: str) -> None:
    texts = prediction, reference
    for value in (bleu(*texts), rouge_l(*texts), meteor(*texts, None)):
        assert 0 <= value <= 1


@given(REPORTS)
def test_an_equal_report_has_the_highest_score(text: str) -> None:
    assert bleu(text, text) == pytest.approx(1)
    assert rouge_l(text, text) == 1
    # METEOR of equal texts is 1 less half a chunk over the cubed number of words.
    assert meteor(text, text, None) == pytest.approx(1 - 0.5 / len(report_tokens(text)) ** 3)
