import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medalign.cli import app
from medalign.eval.html_report.write import write_report
from medalign.eval.metric_models.locate import InstrumentPaths, Instruments, open_instruments
from medalign.eval.predictions import AnswersError
from medalign.eval.result_file import result_json, write_result
from medalign.eval.score import score
from medalign.runtime.arguments import ArgumentError

Parse = Callable[[str], Any]


@pytest.fixture
def files(tmp_path: Path) -> tuple[list[Path], Path]:
    """Two decoders' reports, and the manifest."""
    texts = {"a": "heart is normal", "b": "no effusion"}
    manifest = tmp_path / "m.jsonl"
    with manifest.open("w") as lines:
        for id_, text in texts.items():
            turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": text}]
            lines.write(json.dumps({"id": id_, "conversations": turns}) + "\n")
    predictions = [tmp_path / "greedy.jsonl", tmp_path / "vcd.jsonl"]
    for path, said in zip(predictions, ("heart is normal", "small effusion"), strict=True):
        known = {"prompt": "Q", "decoder": path.stem, "seed": 0, "new_tokens": 3}
        rows = [{"id": i, "text": said, "answer": text, **known} for i, text in texts.items()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return predictions, manifest


def scores_with_bertscore(predictions: Path, manifest: Path) -> Path:
    """Write scores as a machine with a model of BERTScore would: one more metric, 12.3%."""
    found = json.loads(result_json(score(predictions, manifest, "report", metrics=["bleu"])))
    change = {"name": "bertscore_f1", "group": "bertscore", "value": 12.3, "interval": [4.5, 67.8]}
    [ours] = [each for each in found["metrics"] if each["protocol"] == "medalign"]
    found["metrics"].append(ours | change)
    path = predictions.with_suffix(".json")
    write_result(path, json.dumps(found))
    return path


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_scores_of_a_file_are_shown_and_no_model_is_looked_for(
    files: tuple[list[Path], Path], tmp_path: Path, parse: Parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions, manifest = files
    given = [scores_with_bertscore(path, manifest) for path in predictions]
    opened: set[str] = set()

    def watched(wanted: Any, paths: InstrumentPaths) -> Instruments:
        opened.update(wanted)
        return open_instruments(wanted, paths)

    monkeypatch.setattr("medalign.eval.metric_models.locate.open_instruments", watched)
    out = tmp_path / "r.html"
    words = ["eval", "report", *predictions, manifest, "--images", tmp_path, "--task", "report"]
    words += ["--out", out, "--scores", given[1], "--scores", given[0]]
    run(*words)
    page = parse(out.read_text("utf-8"))
    assert page.text.count("12.3 4.5 to 67.8") == 4  # two files, in both tables of scores
    assert opened == {"bleu", "rouge_l", "meteor"}
    for label, path in zip(("greedy", "vcd"), given, strict=True):
        assert f"{label}: scores as in {path}; its samples and differences have" in page.text
    # What needs no model is there for samples and differences too.
    [answer, _] = next(page.all("article")).all("div", class_="answer")
    assert "rouge l 100" in answer.text
    assert "bertscore" not in answer.text
    first = score(predictions[0], manifest, "report", metrics=["bleu"]).metrics[0].value
    second = score(predictions[1], manifest, "report", metrics=["bleu"]).metrics[0].value
    assert f"{second - first:+.1f} " in page.text


def test_a_file_without_scores_is_scored_beside_one_with(
    files: tuple[list[Path], Path], tmp_path: Path, parse: Parse
) -> None:
    predictions, manifest = files
    given = scores_with_bertscore(predictions[0], manifest)
    out = tmp_path / "r.html"
    write_report(predictions, manifest, tmp_path, "report", out, scores=[given])
    page = parse(out.read_text("utf-8"))
    assert page.text.count("12.3 4.5 to 67.8") == 2
    assert "greedy: scores as in" in page.text
    assert "vcd: scores as in" not in page.text
    # The second file has looked for its model; samples of both have what needs none.
    assert "bertscore: not computed: needs roberta-large" in page.text
    [first, second] = next(page.all("article")).all("div", class_="answer")
    assert "rouge l 100" in first.text
    assert "rouge l 0" in second.text


def test_scores_that_differ_from_what_is_computed_here_are_told(
    files: tuple[list[Path], Path], tmp_path: Path, parse: Parse
) -> None:
    predictions, manifest = files
    given = scores_with_bertscore(predictions[0], manifest)
    found = json.loads(given.read_text())
    found["metrics"][0]["value"] = 1.25
    given.write_text(json.dumps(found))
    out = tmp_path / "r.html"
    options: Any = {"scores": [given], "metrics": ["bleu"]}
    write_report(predictions[:1], manifest, tmp_path, "report", out, **options)
    text = parse(out.read_text("utf-8")).text
    assert f"greedy: bleu, {found['metrics'][0]['protocol']}: 1.25 in {given}" in text
    assert "12.3" not in text  # of a metric that was not asked for


def test_models_are_found_by_option(files: tuple[list[Path], Path], tmp_path: Path) -> None:
    predictions, manifest = files
    texts, annotations = tmp_path / "texts.json", tmp_path / "annotations.json"
    run("eval", "report-texts", *predictions, "--manifest", manifest, "--out", texts)
    entity = {"tokens": "heart", "label": "ANAT-DP", "relations": []}
    annotations.write_text(
        json.dumps(
            {
                str(n): {"text": text, "entities": {"1": entity}}
                for n, text in enumerate(json.loads(texts.read_text("utf-8")))
            }
        )
    )
    out = tmp_path / "r.html"
    words = ["eval", "report", *predictions, manifest, "--images", tmp_path, "--task", "report"]
    words += ["--metrics", "radgraph", "--radgraph-annotations", annotations]
    run(*words, "--out", out)
    assert "radgraph combined 50" in out.read_text("utf-8")
    with pytest.raises(ArgumentError, match="would overwrite what is read"):
        run(*words, "--out", annotations)


def test_scores_are_never_overwritten_and_leave_models_nothing_to_do(
    files: tuple[list[Path], Path], tmp_path: Path
) -> None:
    predictions, manifest = files
    given = scores_with_bertscore(predictions[0], manifest)
    before = given.read_bytes()
    write = partial(write_report, predictions[:1], manifest, tmp_path, "report", scores=[given])
    with pytest.raises(AnswersError, match="would overwrite an input"):
        write(given)
    assert given.read_bytes() == before
    paths = InstrumentPaths(bertscore=tmp_path)
    with pytest.raises(AnswersError, match="no model has anything to compute"):
        write(tmp_path / "r.html", paths=paths)
    assert not (tmp_path / "r.html").exists()
