from itertools import combinations_with_replacement
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.eval.metrics.definitions import vqa_definitions
from medalign.eval.metrics.wording import llava_med_text, llava_med_words, strict_words
from medalign.pipeline.datasets.formats import plain_words

# Answers that differ in signs, punctuation and case only.
SIGNED = """HER2+|HER2 +|her2 (+).|HER2|HER2 -|HER2-|Her2 (-)|HER2- positive
HER2 positive|HER2+ positive|< 5 mm|<5 mm|> 5 mm|5 mm|\u2264 5 mm|<= 5 mm|5 degrees|-5 degrees
\u22125 degrees|5-10 mm|5 - 10 mm
5 10 mm|+|-|\u2212|-ve|+ve|ve|50%|50 %|50|.5|5|-.5|0.5|-0.5|left - lung
left-lung|- left lung.|A -> B
x = 1|x 1|\u00b1 5|T2-weighted|T2 weighted|x\u00d7y
Yes- it is|yes it is|-5mm|5mm|-22nd|22nd|-1.5|1.5|15""".replace("\n", "|").split("|")


def test_golden_answers_are_normalised_as_llava_med_does(golden: Any) -> None:
    for item in golden["vqa"]:
        found = (
            llava_med_text(item["prediction"].lower()),
            llava_med_text(item["reference"].lower()),
        )
        assert found == (item["norm_prediction"], item["norm_reference"])


# Worked out by hand from the rules in LLaVA-Med's normalize_word.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x-ray", "x ray"),  # no blank beside the hyphen: it becomes one
        ("x-ray - chest", "xray chest"),  # one blank beside any hyphen: all are deleted
        ("left/right lung-lobe 1,5", "leftright lunglobe 15"),  # digit,digit: all marks deleted
        ("2.5 cm.", "2.5 cm"),
        (".5", ".5"),
        ("." * 40, "." * 8),  # only the first 32 full stops go
        ("none of the ten", "0 of 10"),
        ("a an the", ""),
        ("dont you're cant", "don't you're can't"),
        ("somebody'd", "somebodyd"),
        ("yall'll couldn'tve 'ows'at", "y'all'll couldn't've 'ow's'at"),
        ("shed lets", "shed lets"),
    ],
)
def test_llava_med_oddities_are_kept(text: str, expected: str) -> None:
    assert llava_med_text(text) == expected


def test_open_answers_are_lower_cased_and_normalised_twice() -> None:
    assert llava_med_words("T-2 Weighted") == ["t", "2", "weighted"]
    # 32 full stops go with either pass.
    assert llava_med_words("." * 40 + "x") == ["x"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The left-sided, 2.5 cm lesion.", ["left", "sided", "2.5", "cm", "lesion"]),
        ("Two or NONE", ["2", "or", "0"]),
        ("It\u2019s clear", ["it's", "clear"]),
        ("\uff39\uff25\uff33!", ["yes"]),
        ("A", ["a"]),
        ("A hepatitis, not the hepatitis A.", ["hepatitis", "not", "hepatitis", "a"]),
        ("the", ["the"]),
        ("Cyst, the", ["cyst"]),
        ("?!", []),
        ("", []),
        ("HER2+", ["her2", "+"]),
        ("HER2 (-).", ["her2", "-"]),
        ("It is > -2.5 cm", ["it", "is", ">", "-2.5", "cm"]),
        ("5-10, -5 or .5", ["5", "10", "-5", "or", ".5"]),
        ("- No.", ["no"]),
        ("-", ["-"]),
    ],
)
def test_strict_words_follow_their_rules(text: str, expected: list[str]) -> None:
    assert strict_words(text) == expected


def test_every_strict_definition_says_what_its_words_are() -> None:
    strict = {n: of.sentence for (p, n), of in vqa_definitions(["x"]).items() if p == "strict"}
    assert {"open_f1", "choice_accuracy", "hallucination_rate: x"} <= set(strict)
    for sentence in strict.values():
        assert sentence.endswith(
            "; words: lower case, without punctuation and the articles a (unless last), an, the; "
            "none and zero to ten as digits; signs such as + - < % kept"
        )
    words = strict_words("The TWO nodules, a cyst, none < 5%")
    assert words == ["2", "nodules", "cyst", "0", "<", "5", "%"]


def test_strict_words_tell_the_answers_apart_that_preparing_a_data_set_does() -> None:
    for one, two in combinations_with_replacement(SIGNED, 2):
        same = plain_words(one) == plain_words(two)
        assert (strict_words(one) == strict_words(two)) is same, (one, two)


# Whether a dash is a sign depends on the blanks around it.
@given(st.text().filter(lambda text: not set("-\u2010\u2012\u2013\u2212\ufe63\uff0d") & set(text)))
def test_strict_words_do_not_change_when_split_again(text: str) -> None:
    words = strict_words(text)
    assert strict_words(" ".join(words)) == words


@given(st.text())
def test_llava_med_words_hold_no_blanks_or_articles(text: str) -> None:
    words = llava_med_words(text)
    assert all(word and not word.isspace() for word in words)
