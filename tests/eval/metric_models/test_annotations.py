import json
from pathlib import Path
from typing import Any

import pytest

from medalign.eval.metric_models.radgraph_annotations import Annotations
from medalign.eval.metrics.radgraph import Entity
from medalign.eval.predictions import AnswersError

EFFUSION = {
    "tokens": "effusion",
    "label": "Observation::definitely present",
    "start_ix": 1,
    "end_ix": 1,
    "relations": [["located_at", "2"]],
}
PLEURAL = {"tokens": "pleural", "label": "Anatomy::definitely present", "relations": []}


def write(path: Path, *reports: Any) -> Path:
    """Write what RadGraph()(texts) returns."""
    path.write_text(json.dumps({str(at): each for at, each in enumerate(reports)}), "utf-8")
    return path


def report(text: str, **entities: Any) -> dict[str, Any]:
    return {"text": text, "entities": entities, "data_source": None, "data_split": "inference"}


def test_a_report_is_found_by_its_words_whatever_the_blanks(tmp_path: Path) -> None:
    # RadGraph gives the text back with blanks around punctuation.
    annotated = report("Pleural effusion , 2 . 5 cm .", **{"1": EFFUSION, "2": PLEURAL})
    known = Annotations.open(write(tmp_path / "a.json", annotated))
    text = "Pleural effusion,\n2.5 cm."
    assert known.of([text, "", " "]) == {
        text: {
            "1": Entity("effusion", "Observation::definitely present", (("located_at", "2"),)),
            "2": Entity("pleural", "Anatomy::definitely present", ()),
        },
        "": {},
        " ": {},
    }


def test_several_files_and_arrays_are_one(tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", report("one", **{"1": PLEURAL}), report("two"))
    second = tmp_path / "b.json"
    second.write_text(json.dumps([report("two", **{"1": PLEURAL})]), "utf-8")
    found = Annotations.open(first, second).of(["one", "two"])
    assert [len(each) for each in found.values()] == [1, 1]


def test_a_text_without_annotation_is_an_error_that_names_it(tmp_path: Path) -> None:
    known = Annotations.open(write(tmp_path / "a.json", report("one")))
    with pytest.raises(AnswersError, match=r"a\.json: 2 of 3 texts have no annotation: 'Two', 'x"):
        known.of(["one", "Two", "x" * 100])


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "is not JSON"),
        ("3", "neither a JSON object nor an array"),
        ('{"0": {"text": "a"}}', "key '0' is no RadGraph annotation .no key 'entities'"),
        ('[{"text": "a", "entities": []}]', "item 1 is no RadGraph annotation"),
        ('[{"text": 3, "entities": {}}]', "item 1 is no RadGraph annotation"),
        ('[{"text": "a", "entities": {"1": {"tokens": 3}}}]', "3 is no text"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: str, match: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, "utf-8")
    with pytest.raises(AnswersError, match=match) as caught:
        Annotations.open(path)
    assert str(path) in str(caught.value)


def test_a_relation_to_nothing_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", report("a", **{"1": EFFUSION}))
    with pytest.raises(AnswersError, match="a relation leads to entity '2', which is not there"):
        Annotations.open(path)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(AnswersError, match=r"none\.json: cannot be read: no such file"):
        Annotations.open(tmp_path / "none.json")
