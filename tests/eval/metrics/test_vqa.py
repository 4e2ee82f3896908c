import math
import warnings
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.bleu_score import sentence_bleu

from medalign.eval.metrics.vqa import (
    llava_med_closed,
    llava_med_open,
    strict_closed,
    strict_open,
)
from medalign.eval.metrics.wording import llava_med_text

TEXTS = st.text(alphabet="abn noyesT2.,-!' ", max_size=24)
WORDS = st.lists(
    st.sampled_from(["left", "right", "lung", "lobe", "no", "yes", "2"]), min_size=1, max_size=9
)


def test_golden_open_answers_score_as_llava_med_does(golden: Any) -> None:
    items = [item for item in golden["vqa"] if "recall" in item]
    assert [item["id"] for item in items] == ["o1", "o2", "o3", "o4", "o5", "o6"]
    for item in items:
        found = llava_med_open(item["prediction"], item["reference"])
        expected = [item[name] for name in ("exact", "f1", "precision", "recall")]
        values = [found.exact_match, found.f1, found.precision, found.recall]
        assert values == pytest.approx(expected, abs=5e-5), item["id"]


def test_golden_closed_answers_score_as_llava_med_does(golden: Any) -> None:
    items = [item for item in golden["vqa"] if "hit" in item]
    hits = {item["id"]: llava_med_closed(item["prediction"], item["reference"]) for item in items}
    assert hits == {item["id"]: bool(item["hit"]) for item in items}
    assert hits["c3"]
    assert not hits["c4"]


@given(TEXTS, TEXTS)
def test_llava_med_bleu_is_nltks_with_single_order_weights(prediction: str, gold: str) -> None:
    reference = llava_med_text(gold.lower()).split()
    hypothesis = llava_med_text(prediction.lower()).split()
    found = llava_med_open(prediction, gold)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nltk warns of orders without a match
        for value, weights in (
            (found.bleu_1, (1, 0, 0, 0)),
            (found.bleu_2, (0, 1, 0, 0)),
            (found.bleu_3, (0, 0, 1, 0)),
        ):
            expected = sentence_bleu([reference], hypothesis, weights=weights)
            assert value == pytest.approx(expected, abs=1e-12)


def test_llava_med_words_are_normalised_twice_but_for_bleu() -> None:
    # Of 40 full stops 32 go each time.
    found = llava_med_open("." * 40 + "x", "x")
    assert (found.recall, found.bleu_1) == (1, 0)


def test_strict_counts_a_repeated_word_once() -> None:
    # o2 of the golden answers: 1 of 2 reference words, 1 of 3 prediction words.
    found = strict_open("left left left", "Left lung")
    assert (found.recall, found.exact_match) == (0.5, 0.0)
    assert found.precision == pytest.approx(1 / 3)
    assert found.f1 == pytest.approx(0.4)


def test_short_answers_pay_the_brevity_penalty() -> None:
    # One word of two: exp(1 - 2 / 1).
    for found in (strict_open("left", "left lung"), llava_med_open("left", "left lung")):
        assert found.bleu_1 == pytest.approx(math.exp(-1))


def test_strict_bleu_is_cumulative() -> None:
    # Orders 1 to 3 of "a b c x" against "a b c d": 3/4, 2/3, 1/2; equal lengths, no penalty.
    found = strict_open("left upper lobe lesion", "left upper lobe nodule")
    assert found.bleu_1 == pytest.approx(3 / 4)
    assert found.bleu_2 == pytest.approx((3 / 4 * 2 / 3) ** (1 / 2))
    assert found.bleu_3 == pytest.approx((3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3))


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("The study is abnormal.", "No", False),  # c3: "no" is no word of it
        ("T2", "T2", True),  # c4
        ("t2.", "T2", True),
        ("T2 weighted", "T2", False),
        ("Yes, no effusion is seen.", "Yes", True),  # the first word decides
        ("Yes, no effusion is seen.", "No", False),
        ("It is not possible to say yes or no.", "Yes", False),  # both, none of them first
        ("It is not possible to say yes or no.", "No", False),
        ("There is no pneumothorax.", "no", True),
        ("NO!", "No.", True),
        ("Nope", "No", False),
        ("", "No", False),
        ("", "?", False),
    ],
)
def test_strict_closed_answers(prediction: str, reference: str, right: bool) -> None:
    assert strict_closed(prediction, reference) is right


@given(TEXTS, TEXTS)
def test_every_value_lies_between_0_and_1(prediction: str, reference: str) -> None:
    for found in (strict_open(prediction, reference), llava_med_open(prediction, reference)):
        assert all(0 <= value <= 1 for value in asdict(found).values())


@given(WORDS)
def test_an_equal_answer_is_right_under_every_definition(words: list[str]) -> None:
    text = " ".join(words)
    strict, lenient = strict_open(text, text), llava_med_open(text, text)
    for found in (strict, lenient):
        assert (found.recall, found.precision, found.f1) == (1, 1, 1)
    assert strict.exact_match == 1
    assert strict_closed(text, text)
    if len(words) >= 3:
        assert strict.bleu_3 == pytest.approx(1)
        assert lenient.bleu_3 == 1


@given(WORDS, WORDS)
def test_strict_recall_is_the_precision_of_the_swapped_pair(one: list[str], two: list[str]) -> None:
    a, b = strict_open(" ".join(one), " ".join(two)), strict_open(" ".join(two), " ".join(one))
    assert (a.recall, a.precision, a.f1) == (b.precision, b.recall, b.f1)


@given(WORDS, st.randoms(use_true_random=False))
def test_word_order_does_not_change_open_recall(words: list[str], random: Any) -> None:
    shuffled = random.sample(words, len(words))
    assert strict_open(" ".join(shuffled), " ".join(words)).recall == 1
