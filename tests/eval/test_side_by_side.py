import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medalign.cli import app
from medalign.eval.predictions import AnswersError
from medalign.eval.result_file import result_json, write_result
from medalign.eval.score import score
from medalign.eval.side_by_side import Overview
from medalign.runtime.arguments import ArgumentError

Write = Callable[[Path, Iterable[Mapping[str, Any]]], Path]

KNOWN = {"a": ("CLOSED", "No"), "b": ("OPEN", "left lung"), "c": ("CLOSED", "Yes")}
SAID = {"greedy": ("No", "left", "Yes"), "vcd": ("Yes", "left lung", "Yes")}


@pytest.fixture
def files(tmp_path: Path, write_lines: Write) -> list[Path]:
    """Scores of two decoders on three questions about three images."""
    rows = [
        {
            "id": id_,
            "image": id_,
            "answer_type": kind,
            "conversations": [
                {"from": "human", "value": "<image>\nQ"},
                {"from": "gpt", "value": gold},
            ],
        }
        for id_, (kind, gold) in KNOWN.items()
    ]
    manifest = write_lines(tmp_path / "test.jsonl", rows)
    made = []
    for decoder, texts in SAID.items():
        answers = [
            {"id": i, "prompt": "Q", "text": t, "answer": KNOWN[i][1], "decoder": decoder}
            | {"seed": 0, "new_tokens": 1}
            for i, t in zip(KNOWN, texts, strict=True)
        ]
        predictions = write_lines(tmp_path / f"{decoder}.jsonl", answers)
        made.append(tmp_path / f"{decoder}.json")
        write_result(made[-1], result_json(score(predictions, manifest, "vqa")))
    return made


def test_a_row_for_each_file_and_a_column_for_what_is_looked_for_first(files: list[Path]) -> None:
    lines = Overview.read(files).written_as("markdown", intervals=False).splitlines()
    assert lines == [
        "|  | closed accuracy, strict, n=2 | overall accuracy, strict, n=3 "
        "| open recall, llava-med, n=1 | closed accuracy, llava-med, n=2 "
        "| hallucination rate \N{DOWNWARDS ARROW}, strict, n=1 |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| greedy | 100.0 | 66.7 | 50.0 | 100.0 | 0.0 |",
        "| vcd | 50.0 | 66.7 | 100.0 | 50.0 | 100.0 |",
    ]


def test_intervals_stand_behind_the_values(files: list[Path]) -> None:
    found = Overview.read(files[1:], ["closed"])
    assert "50.0 [0.0, 100.0]" in found.written_as("markdown")
    assert "50.0 [0.0, 100.0]" in found.written_as("latex")


def test_groups_of_metrics_can_be_chosen(files: list[Path]) -> None:
    found = Overview.read(files, ["open"])
    assert {metric.group for metric in found.columns.values()} == {"open"}
    assert ("strict", "open_f1") in found.columns  # not one of those that are shown first


def test_latex_is_escaped_and_closed(files: list[Path]) -> None:
    other = files[0].with_name("50%_{a}.json")
    other.write_bytes(files[0].read_bytes())
    lines = Overview.read([files[0], other], ["closed"]).written_as("latex").splitlines()
    assert lines[0] == r"\begin{tabular}{lrr}"
    assert lines[-1] == r"\end{tabular}"
    assert lines[5].startswith(r"50\%\_\{a\} (greedy) & ")
    assert {line.count("&") for line in lines if line.endswith(r"\\")} == {2}


def test_csv_holds_every_digit(files: list[Path]) -> None:
    rows = list(csv.DictReader(io.StringIO(Overview.read(files).written_as("csv"))))
    overall = [row for row in rows if row["metric"] == "overall_accuracy"]
    assert [row["file"] for row in overall] == ["greedy", "vcd"]
    assert float(overall[0]["value"]) == 100 * (2 / 3)
    assert float(overall[0]["low"]) <= float(overall[0]["value"]) <= float(overall[0]["high"])


def test_a_file_without_a_metric_leaves_a_gap_and_says_why(files: list[Path]) -> None:
    found = json.loads(files[1].read_text())
    found["metrics"] = [each for each in found["metrics"] if each["group"] != "open"]
    files[1].write_text(json.dumps(found))
    table = Overview.read(files, ["open"])
    assert table.rows["vcd"] == {}
    assert any(line.startswith("vcd: open: not computed") for line in table.remarks)
    assert "| vcd | - |" in table.written_as("markdown")


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_files_that_do_not_belong_together_are_refused(files: list[Path]) -> None:
    first, second = files
    with pytest.raises(AnswersError, match="is given twice"):
        Overview.read([first, first.parent / ".." / first.parent.name / first.name])
    with pytest.raises(AnswersError, match="task vqa has open"):
        Overview.read(files, ["bleu"])
    change(second, manifest={"path": "other.jsonl", "sha256": "0"})
    with pytest.raises(AnswersError, match=r"vcd.json: was scored against other.jsonl, .*test"):
        Overview.read(files)
    change(second, task="report")
    with pytest.raises(AnswersError, match=r"vcd.json: are scores of task report, .* of vqa"):
        Overview.read(files)


def test_samples_of_files_may_differ_in_number(files: list[Path]) -> None:
    found = Overview.read(files, ["closed"])
    key = next(iter(found.columns))
    row = dict(found.rows["vcd"])
    row[key] = replace(row[key], n=1)
    uneven = replace(found, rows={**found.rows, "vcd": row})
    assert "n=1..2" in uneven.heading(key)


def test_the_command_prints_or_writes(files: list[Path], tmp_path: Path) -> None:
    names = [str(path) for path in files]
    shown = CliRunner().invoke(app, ["eval", "table", *names, "--no-intervals"])
    assert shown.exit_code == 0
    assert "greedy" in shown.stdout
    assert "66.7" in shown.stdout
    assert "lower is better" in shown.stdout
    assert "clusters: 3 (by image); below 20, intervals are rough" in shown.stdout
    out = tmp_path / "t" / "table.md"
    written = CliRunner().invoke(
        app, ["eval", "table", *names, "--format", "markdown", "--out", str(out)]
    )
    assert written.exit_code == 0
    assert out.read_text() == Overview.read(files).written_as("markdown")
    piped = CliRunner().invoke(app, ["eval", "table", *names, "--format", "csv"])
    assert piped.stdout == Overview.read(files).written_as("csv")


def test_the_command_says_what_is_wrong(files: list[Path], tmp_path: Path) -> None:
    def refused(*words: str) -> str:
        done = CliRunner().invoke(app, ["eval", "table", *words])
        assert isinstance(done.exception, ArgumentError | AnswersError)
        return str(done.exception)

    before = files[0].read_bytes()
    out = str(files[0])
    assert "overwrite what is read" in refused(out, "--format", "csv", "--out", out)
    assert files[0].read_bytes() == before
    assert "give --format" in refused(out, "--out", str(tmp_path / "t.md"))
    nothing = CliRunner().invoke(app, ["eval", "table", out, "--metrics", "choice,open"])
    assert nothing.exit_code == 1
    assert "choice: not computed" in nothing.output
