import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medalign.eval.commands.eval import app
from medalign.eval.metrics.definitions import REPORT_METRICS

Write = Callable[[Path, Iterable[Mapping[str, Any]]], Path]

REPORTS = {
    "a": ("the heart is normal . no pneumothorax", "heart is normal . lungs are clear ."),
    "b": ("small left pleural effusion", "pleural effusion . no edema"),
    "c": ("lungs are clear .", "lungs are clear ."),
}


@pytest.fixture
def files(tmp_path: Path, write_lines: Write) -> tuple[Path, Path]:
    answers: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for id_, (said, gold) in REPORTS.items():
        known = {"prompt": "Q", "answer": gold, "decoder": "beam", "seed": 0, "new_tokens": 9}
        answers.append({"id": id_, "text": said, **known})
        turns = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": gold}]
        patient = min(len(rows), 1)  # two of the three reports are of one patient
        row = {"id": id_, "image": f"{id_}.png", "conversations": turns, "subject_id": patient}
        rows.append(row)
    return (
        write_lines(tmp_path / "answers.jsonl", answers),
        write_lines(tmp_path / "manifest.jsonl", rows),
    )


@pytest.fixture
def models(
    bert: Path, roberta: Path, chexbert: Path, ner: Path, files: tuple[Path, Path], tmp_path: Path
) -> list[str]:
    """Options for every model there is, annotations included."""
    texts, annotations = tmp_path / "texts.json", tmp_path / "annotations.json"
    run("report-texts", str(files[0]), "--manifest", str(files[1]), "--out", str(texts))
    found = {
        str(n): {"text": text, "entities": {"1": {"tokens": text, "label": "x", "relations": []}}}
        for n, text in enumerate(json.loads(texts.read_text("utf-8")))
    }
    annotations.write_text(json.dumps(found), "utf-8")
    options = {
        "bertscore": roberta,
        "bertscore-layer": 2,
        "chexbert": chexbert,
        "bert": bert,
        "radgraph-annotations": annotations,
        "ratescore-ner": ner,
        "ratescore-synonyms": bert,
    }
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_with_all_models_every_metric_of_reports_is_computed(
    files: tuple[Path, Path], models: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "scores.json"
    printed = run("score", *map(str, files), "--task", "report", "--out", str(out), *models)
    found = json.loads(out.read_text("utf-8"))
    undefined = {each["name"].partition(" ")[0] for each in found["not_computed"]}
    # The annotations above hold no present finding, so there is nothing to divide by.
    assert undefined == {"radgraph_hallucinated", "radgraph_omitted"}
    assert {metric["group"] for metric in found["metrics"]} == set(REPORT_METRICS)
    assert set(found["instruments"]) == {"bertscore", "chexbert", "radgraph", "ratescore"}
    for metric in found["metrics"]:
        low, high = metric["interval"]
        assert low <= metric["value"] <= high
        assert (metric["n"], metric["clusters"]) == (3, 2)
    assert "clusters: 2 (by patient)" in printed
    values = {m["name"]: m["value"] for m in found["metrics"] if m["protocol"] == "medalign"}
    # By hand: a graph of one entity, the whole text; one report of three is right.
    assert values["radgraph_simple"] == pytest.approx(100 / 3)
    # By hand: heart and no pneumothorax against heart and lungs; the same effusion, against one
    # with edema; the same lungs. What equals its reference is worth 1.
    assert 100 / 3 < values["ratescore"] < 100


def test_a_report_compared_with_itself_has_the_highest_scores_of_all_models(
    files: tuple[Path, Path], models: list[str], tmp_path: Path, write_lines: Write
) -> None:
    rows = [json.loads(line) for line in files[0].read_text("utf-8").splitlines()]
    same = write_lines(tmp_path / "same.jsonl", [row | {"text": row["answer"]} for row in rows])
    arguments = [str(same), str(files[1]), "--task", "report", "--out", str(tmp_path / "s.json")]
    annotated = models[: models.index("--radgraph-annotations")]
    printed = run("score", *arguments, "--metrics", "bertscore,chexbert", *annotated)
    found = json.loads((tmp_path / "s.json").read_text("utf-8"))
    values = {m["name"]: m["value"] for m in found["metrics"] if m["protocol"] == "medalign"}
    for name in ("bertscore_f1", "chexbert_similarity", "chexbert_f1_micro_14", "chexbert_all_5"):
        assert values[name] == pytest.approx(100, abs=1e-3)
    assert values["chexbert_commission"] == 0
    assert "similarity" in printed


def test_two_files_are_compared_with_every_model(
    files: tuple[Path, Path], models: list[str], radgraph_packed: Path, radgraph_bert: Path
) -> None:
    arguments = [str(files[0]), str(files[0]), str(files[1]), "--task", "report", "--json"]
    at = models.index("--radgraph-annotations")
    archive = ["--radgraph", str(radgraph_packed), "--radgraph-bert", str(radgraph_bert)]
    found = json.loads(run("compare", *arguments, *models[:at], *archive, *models[at + 2 :]))
    assert {metric["group"] for metric in found["metrics"]} == set(REPORT_METRICS)
    assert {metric["p"] for metric in found["metrics"]} == {1}
    used = [each["path"] for each in found["instruments"]["radgraph"]]
    assert used == [str(radgraph_packed), str(radgraph_bert)]
