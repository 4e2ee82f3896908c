from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.eval.metrics.labels import LABELS, TOP_5, LabelCounts, found_labels
from medalign.eval.metrics.statistic import Tally

CLASSES = st.lists(st.integers(0, 3), min_size=14, max_size=14)


def test_labels_are_in_the_order_of_the_published_heads(golden: Any) -> None:
    assert list(LABELS) == golden["chexbert"]["names"]
    assert [LABELS[at] for at in TOP_5] == golden["chexbert"]["top5"]


def test_f1_is_that_of_scikit_learn(golden: Any) -> None:
    expected = golden["chexbert"]
    micro14, macro14, micro5, macro5 = (Tally(undefined=0.0) for _ in range(4))
    example, right = [], []
    rows = zip(expected["hyp_classes"], expected["ref_classes"], strict=True)
    for place, (said, gold) in enumerate(rows):
        predicted, wanted = found_labels(said), found_labels(gold)
        counted = LabelCounts.of(predicted, wanted)
        five = counted.only(TOP_5)
        for micro, macro, labels in ((micro14, macro14, counted), (micro5, macro5, five)):
            part, whole = labels.f1_terms()
            macro.add(place, part, whole)
            micro.add(place, sum(part), sum(whole))
        example.append(counted.f1())
        right.append(float(np.array_equal(five.predicted, five.reference)))
    found = [tally.statistic().value() for tally in (micro14, macro14, micro5, macro5)]
    names = ("micro14", "macro14", "micro5", "macro5")
    assert found == pytest.approx([expected[name] for name in names], abs=5e-5)
    assert np.mean(example) == pytest.approx(expected["example_f1_14"], abs=5e-5)
    assert np.mean(right) == pytest.approx(expected["accuracy5_all_match"])


@given(CLASSES)
def test_a_report_has_what_it_says_is_there_or_may_be(classes: list[int]) -> None:
    assert found_labels(classes).tolist() == [answer in (1, 3) for answer in classes]


@given(CLASSES, CLASSES)
def test_f1_is_symmetric_and_1_for_equal_labels(one: list[int], two: list[int]) -> None:
    a, b = found_labels(one), found_labels(two)
    assert LabelCounts.of(a, b).f1() == LabelCounts.of(b, a).f1()
    assert LabelCounts.of(a, a).f1() == float(a.any())
