import pytest

from medalign.pipeline.datasets.formats import leading_yes_no, plain_words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("HER2+", "HER2 -"),
        ("HER2+", "HER2"),
        ("HER2-", "HER2"),
        ("HER2 (-)", "HER2 (+)"),
        ("HER2 (-)", "HER2"),
        ("HER2 -ve", "HER2 ve"),
        ("ER-, PR+", "ER+, PR-"),
        ("< 5 mm", "> 5 mm"),
        ("> 5 mm", "5 mm"),
        ("\u2265 5 mm", "> 5 mm"),
        ("-5", "5"),
        (".5 cm", "5 cm"),
        ("1.5", "15"),
        ("5%", "5"),
        ("10 \u00b1 2", "10 2"),
        ("+", "-"),
    ],
)
def test_signs_make_another_answer(one: str, other: str) -> None:
    assert plain_words(one) != plain_words(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("mr.", "MR"),
        ("X-ray", "x ray"),
        ("No - there is none.", "no there is none"),
        ("- No.", "no"),
        ("HER2 -", "her2-"),
        ("HER2 \u2212.", "HER2 -"),
        ("HER2+", "HER2 +"),
        (">=5mm", "\u22655mm"),
        ("< 5 mm", "<5 mm."),
        ("T1_weighted (axial)", "T1-weighted axial"),
    ],
)
def test_punctuation_does_not(one: str, other: str) -> None:
    assert plain_words(one) == plain_words(other)


def test_an_option_is_found_in_the_question_that_lists_it() -> None:
    options = ("HER2+", "HER2 -", "-5 mm", "< 5 mm", "> 5 mm")
    question = plain_words(f"Which? Please choose from the following options: {', '.join(options)}")
    for option in options:
        assert f" {plain_words(option)} " in f" {question} "


@pytest.mark.parametrize("text", ["**Yes**", "**Yes.**", "**Yes**, it is", "* yes", "- Yes (so)"])
def test_a_yes_in_bold_is_one(text: str) -> None:
    assert leading_yes_no(text) == "Yes"


@pytest.mark.parametrize("text", ["**No** information is given", "No information", "Yesterday"])
def test_a_word_that_goes_on_is_none(text: str) -> None:
    assert leading_yes_no(text) is None
