from collections.abc import Callable
from typing import Any

import pytest

from medalign.eval.metrics.radgraph import (
    Annotation,
    Entity,
    graph_score,
    present_findings,
    set_f1,
)


def graph(raw: dict[str, Any]) -> Annotation:
    return {
        key: Entity(e["tokens"], e["label"], tuple((r, k) for r, k in e["relations"]))
        for key, e in raw["entities"].items()
    }


def test_scores_are_those_of_both_packages(golden: Any) -> None:
    for item in golden["radgraph"]:
        found = graph_score(graph(item["hyp"]), graph(item["ref"]))
        package, metric = item["radgraph_pkg"], item["cxr_report_metric"]
        rewards = [found.simple, found.partial, found.complete]
        assert rewards == pytest.approx(list(package.values()), abs=5e-5), item["id"]
        own = [found.entity_f1, found.relation_f1, found.combined]
        assert own == pytest.approx(list(metric.values()), abs=5e-5), item["id"]


@pytest.fixture
def chain() -> Callable[[str], Annotation]:
    def make(word: str) -> Annotation:
        return {
            "1": Entity(word, "Observation::definitely present", (("located_at", "2"),)),
            "2": Entity("Pleural", "Anatomy::definitely present", ()),
        }

    return make


def test_an_equal_graph_is_perfect_and_the_order_of_files_does_not_matter(
    golden: Any, chain: Callable[[str], Annotation]
) -> None:
    same = graph_score(chain("effusion"), chain("effusion"))
    assert {same.combined, same.simple, same.partial, same.complete} == {1}
    for item in golden["radgraph"]:
        one, two = graph(item["hyp"]), graph(item["ref"])
        assert graph_score(one, two) == graph_score(two, one)


def test_case_counts_but_not_for_entities_with_relations_in_the_complete_reward(
    chain: Callable[[str], Annotation],
) -> None:
    found = graph_score(chain("Effusion"), chain("effusion"))
    # Of two entities one is equal: F1 = 2 * 1 / 4. The relation differs by its first end's case.
    assert (found.simple, found.relation_f1) == (0.5, 0)
    # The reward lower-cases "effusion" and its end, and keeps "Pleural", which is equal.
    assert found.complete == 1


def test_relations_have_a_direction(chain: Callable[[str], Annotation]) -> None:
    one = chain("effusion")
    other = {
        "1": Entity(one["1"].tokens, one["1"].label, ()),
        "2": Entity(one["2"].tokens, one["2"].label, (("located_at", "1"),)),
    }
    found = graph_score(one, other)
    assert (found.entity_f1, found.relation_f1) == (1, 0)


def test_a_graph_without_relations_is_half_right_at_most() -> None:
    alone: Annotation = {"1": Entity("edema", "Observation::uncertain", ())}
    assert graph_score(alone, alone).combined == 0.5


def test_findings_are_present_observations_in_any_case() -> None:
    annotation: Annotation = {
        "1": Entity("Effusion", "Observation::definitely present", ()),
        "2": Entity("effusion", "Observation::definitely present", ()),
        "3": Entity("edema", "Observation::definitely absent", ()),
        "4": Entity("lung", "Anatomy::definitely present", ()),
    }
    assert present_findings(annotation) == {"effusion"}


def test_empty_sets_have_no_f1() -> None:
    assert set_f1(set(), set()) == 0
