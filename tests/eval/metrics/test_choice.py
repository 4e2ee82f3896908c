from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.eval.metrics.choice import llava_med_choice, strict_choice

KIDNEY = ["Right kidney", "Left kidney", "Liver", "Spleen"]


def test_golden_choices_are_those_of_llava_med(golden: Any) -> None:
    items = golden["choice"]
    right = []
    for item in items:
        chosen = llava_med_choice(item["choices"], item["pred"])
        label = llava_med_choice(item["choices"], item["answer"])
        assert (chosen, label) == (item["chosen"], item["label"])
        right.append(chosen == label)
    assert sum(right) / len(right) == golden["choice_accuracy"]


def test_llava_med_gives_a_lower_cased_label_no_option() -> None:
    assert llava_med_choice(["MRI", "CT"], "mri") is None


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        (KIDNEY, "Left kidney", 1),
        (KIDNEY, "left kidney.", 1),
        (KIDNEY, "B", 1),
        (KIDNEY, "b.", 1),
        (KIDNEY, "(B) Left kidney", 1),
        (KIDNEY, "B. Liver", None),  # letter and words contradict each other
        (KIDNEY, "Answer: B", 1),
        (KIDNEY, "The answer is B.", 1),
        (KIDNEY, "the correct option is (b) Left kidney", 1),
        (KIDNEY, "**B**", 1),
        (KIDNEY, "**Answer:** B. Left kidney", 1),
        (KIDNEY, "Option C", 2),
        (KIDNEY, "The best answer is: **D**", 3),
        (KIDNEY, "'B'", 1),
        (KIDNEY, "I'm sure it's the spleen", 3),
        (KIDNEY, "B\nExplanation: it lies left.", 1),
        (KIDNEY, "B\nExplanation: the spleen is fine.", None),
        (KIDNEY, "Answer: B. Liver", None),
        (KIDNEY, "The answer is a kidney", None),  # an article, no letter
        (KIDNEY, "The answer is the spleen.", 3),
        (KIDNEY, "A, B", None),
        (KIDNEY, "E", None),
        (KIDNEY, "It is the spleen, I think", 3),
        (KIDNEY, "liver or spleen", None),
        (KIDNEY, "kidney", None),
        (KIDNEY, "", None),
        (["MRI", "CT"], "mri", 0),
        (["lesion", "benign lesion"], "a benign lesion is seen", 1),  # the longer one is meant
        (["lesion", "benign lesion"], "lesion", 0),
        (["normal", "abnormal"], "it is abnormal", 1),
        (["A", "B"], "b", 1),
        (["same", "same"], "same", None),
        (["HER2+", "HER2 -"], "HER2+", 0),
        (["HER2+", "HER2 -"], "It is her2-.", 1),
        (["< 5 mm", "> 5 mm"], "> 5 mm", 1),
        (["+", "-"], "-", 1),
        (["+/-", "+ -"], "+ -", 1),  # the same words, but this spelling
    ],
)
def test_strict_choice_takes_the_option_that_is_named(
    options: list[str], text: str, expected: int | None
) -> None:
    assert strict_choice(options, text) == expected


@given(st.sampled_from(KIDNEY), st.permutations(KIDNEY))
def test_an_option_is_its_own_choice_in_any_order(option: str, options: list[str]) -> None:
    assert strict_choice(options, option) == options.index(option)
    assert llava_med_choice(options, option) == options.index(option)
