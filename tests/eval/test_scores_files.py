import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from medalign.eval.metric_models.locate import FOLDER_VARIABLE, InstrumentPaths, open_instruments
from medalign.eval.metrics.definitions import REPORT_METRICS
from medalign.eval.predictions import AnswersError
from medalign.eval.result_file import result_json, write_result
from medalign.eval.score import WITH_MODELS, NotComputed, Scores, read_pairs, score, task_scores
from medalign.eval.score_files import ScoresFile, match_scores

Write = Callable[[Path, Iterable[Mapping[str, Any]]], Path]
Change = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class Scored:
    """Predictions, the manifest they answer, and what they score."""

    predictions: Path
    manifest: Path
    scores: Scores
    file: Path

    def changed(self, change: Change) -> Path:
        """Return a copy of the file in which something is changed."""
        found = json.loads(self.file.read_text("utf-8"))
        change(found)
        path = self.file.with_name("changed.json")
        path.write_text(json.dumps(found), "utf-8")
        return path


@pytest.fixture
def scored(tmp_path: Path, write_lines: Write) -> Scored:
    rows, answers = [], []
    for id_, kind, gold, said in (("a", "CLOSED", "No", "No"), ("b", "OPEN", "left lung", "left")):
        turns = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": gold}]
        rows.append({"id": id_, "image": "x", "answer_type": kind, "conversations": turns})
        known = {"prompt": "Q", "decoder": "greedy", "seed": 0, "new_tokens": 1}
        answers.append({"id": id_, "text": said, "answer": gold, **known})
    predictions = write_lines(tmp_path / "greedy.jsonl", answers)
    manifest = write_lines(tmp_path / "test.jsonl", rows)
    scores = score(predictions, manifest, "vqa", metrics=["open", "closed", "choice"])
    write_result(tmp_path / "scores.json", result_json(scores))
    return Scored(predictions, manifest, scores, tmp_path / "scores.json")


def test_a_scores_file_is_read_as_it_was_written(scored: Scored) -> None:
    read = ScoresFile.read(scored.file)
    assert read.scores.not_computed
    assert result_json(read.scores) == result_json(scored.scores)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda found: found.pop("metrics"), "metrics: .*required"),
        (lambda found: found["metrics"][0].update(value="high"), r"metrics.0.value: .*number"),
        (lambda found: found["metrics"][0].update(value="50"), r"metrics.0.value: .*number"),
        (lambda found: found["metrics"][0].update(value=math.nan), "_.* has a value .* no number"),
        (lambda found: found["metrics"][0].update(interval=[0, math.inf]), "or an interval"),
        (lambda found: found["metrics"][0].update(better="more"), "metrics.0.better: "),
        (lambda found: found["interval"].pop("clusters"), "interval has no clusters"),
        (lambda found: found["predictions"].pop("sha256"), "predictions has no sha256"),
        (lambda found: found["interval"].update(level=0.9), "level 0.9, all others at 0.95"),
    ],
)
def test_another_file_is_no_scores_file(scored: Scored, change: Change, problem: str) -> None:
    with pytest.raises(AnswersError, match=rf"changed.json: .*{problem}"):
        ScoresFile.read(scored.changed(change))


@pytest.mark.parametrize("content", [None, "", "[1]", "not JSON", '{"task": "vqa"'])
def test_what_is_no_json_of_scores_is_one_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "s.json"
    if content is not None:
        path.write_text(content, "utf-8")
    with pytest.raises(AnswersError, match=r"s.json: (cannot be read|is no scores file)") as caught:
        ScoresFile.read(path)
    assert "\n" not in str(caught.value)


def test_scores_belong_to_predictions_by_their_bytes(scored: Scored, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.jsonl"
    scored.predictions.rename(moved)
    other = tmp_path / "other.jsonl"
    other.write_bytes(moved.read_bytes().splitlines(keepends=True)[0])
    found = match_scores([scored.file], [other, moved], scored.manifest, "vqa")
    assert {path: file.path for path, file in found.items()} == {moved: scored.file}
    assert match_scores([], [tmp_path / "nowhere"], scored.manifest, "vqa") == {}


def test_scores_of_something_else_are_refused(scored: Scored) -> None:
    both = [scored.predictions], scored.manifest
    with pytest.raises(AnswersError, match="of task vqa, not of report"):
        match_scores([scored.file], *both, "report")
    copy = scored.changed(lambda found: found)
    with pytest.raises(AnswersError, match=r"changed.json and .*are both scores of .*greedy.jsonl"):
        match_scores([scored.file, copy], *both, "vqa")
    before = scored.manifest.read_bytes()
    scored.manifest.write_bytes(before + b"\n")
    with pytest.raises(AnswersError, match=r"against .*test.jsonl, which is not .* as it is now"):
        match_scores([scored.file], *both, "vqa")
    scored.manifest.write_bytes(before)
    scored.predictions.write_bytes(scored.predictions.read_bytes() + b"\n")
    with pytest.raises(AnswersError, match=r"are scores of .*greedy.jsonl, and none of the"):
        match_scores([scored.file], *both, "vqa")


def test_chosen_metrics_are_kept_and_those_that_the_file_lacks_are_named(scored: Scored) -> None:
    file = ScoresFile.read(scored.file)
    assert file.chosen([]) == file.scores
    found = file.chosen(["closed", "choice", "overall"])
    assert {metric.group for metric in found.metrics} == {"closed"}
    reasons = {each.name: each.reason for each in found.not_computed}
    assert reasons == {
        "choice": "no record has `options`",
        "overall": f"{scored.file} has no value of it",
    }
    assert file.chosen(["open"]).not_computed == []


def test_one_metric_that_is_undefined_stays_named(scored: Scored) -> None:
    file = ScoresFile.read(scored.file)
    undefined = NotComputed(name="open_recall (strict)", reason="is undefined")
    scores = replace(file.scores, not_computed=[undefined])
    assert ScoresFile(file.path, scores).chosen(["closed"]).not_computed == [undefined]


def test_a_value_that_is_another_here_is_told(scored: Scored) -> None:
    _, pairs = read_pairs(scored.predictions, scored.manifest, "vqa", allow_missing=False)
    now = task_scores(pairs, "vqa", ["open"], None)
    assert ScoresFile.read(scored.file).differences(now) == []

    def change(found: dict[str, Any]) -> None:
        for metric in found["metrics"]:
            metric["value"] += metric["name"] in ("closed_accuracy", "open_recall")

    [one, other] = ScoresFile.read(scored.changed(change)).differences(now)
    # Half of the reference's words by both definitions; `closed` is not computed here.
    assert "open_recall, " in one
    assert "51.00 in " in other
    assert ", 50.00 as it is computed here" in other


def test_the_metrics_with_models_are_those_that_look_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    assert set(open_instruments(REPORT_METRICS, InstrumentPaths()).missing) == WITH_MODELS
