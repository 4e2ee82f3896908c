from typing import Any

import pytest

from medalign.eval.metrics.yes_no import medheval_yes_no, strict_yes_no, yes_no_reference


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"),
        ("No, it is normal.", "no"),
        ("There is no effusion.", "no"),
        ("No. Yes, there is.", "no"),
        ("There may be: yes or no", None),
        ("abnormal", None),
        ("", None),
    ],
)
def test_the_strict_judge_takes_the_first_word_or_the_only_one(text: str, said: str) -> None:
    assert strict_yes_no(text) == said


def test_medhevals_judge_gives_the_golden_accuracy(golden: Any) -> None:
    items = golden["medheval_yes_no"]["items"]
    right = [medheval_yes_no(item["pred"]) == item["gt"].lower() for item in items]
    assert sum(right) / len(right) == golden["medheval_yes_no"]["accuracy"]
    # By hand: "Not seen" is taken for yes, "I cannot say" too.
    assert right == [True, True, True, False, False]


def test_medhevals_judge_finds_nothing_in_nothing() -> None:
    assert medheval_yes_no("") is None


def test_only_the_word_alone_is_a_yes_no_reference() -> None:
    found = [yes_no_reference(text) for text in ("Yes.", "no", "No finding", "not", "yes and no")]
    assert found == ["yes", "no", None, None, None]
