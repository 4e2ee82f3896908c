from dataclasses import dataclass
from typing import Any

import pytest

from medalign.eval.tables import few_clusters, interval, value


@pytest.mark.parametrize(
    ("number", "unit", "signed", "shown"),
    [
        (12.345, "percent", False, "12.3"),
        (0.125, "per report", True, "+0.12"),
        (-0.04, "percent", False, "0.0"),
        (-0.04, "percent", True, "+0.0"),
        (-0.06, "percent", True, "-0.1"),
    ],
)
def test_a_number_has_the_digits_of_its_unit_and_zero_no_minus(
    number: float, unit: Any, signed: bool, shown: str
) -> None:
    assert value(number, unit, signed=signed) == shown


def test_samples_of_one_cluster_have_no_interval() -> None:
    assert interval(None, "percent") == "[one cluster]"
    assert interval(None, "percent", pattern="{} to {}") == "one cluster"
    assert interval((-0.01, 2), "percent", signed=True) == "[+0.0, +2.0]"


@dataclass
class Counted:
    group: str
    clusters: int


def test_few_clusters_are_told_by_table() -> None:
    metrics: Any = [Counted("open", 19), Counted("closed", 25), Counted("hallucination", 15)]
    assert few_clusters(metrics[1:2], 30, "image") == ["clusters: 30 (by image)"]
    [line] = few_clusters([*metrics, Counted("hallucination", 1)], 30, "image")
    assert line.startswith(
        "clusters: 30 (by image); fewer under some metrics: 19 of answers, 1 to 15 of "
        "hallucination; below 20, "
    )
    assert few_clusters(metrics, 5, "image")[0].startswith("clusters: 5 (by image); below 20")
