import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medalign.eval.answers import Answer, AnswersError
from medalign.eval.commands import app

MakeAnswer = Callable[..., Answer]
Files = tuple[Path, Path]


@pytest.fixture
def files(tmp_path: Path, answer: MakeAnswer) -> Files:
    rows = []
    for id_, kind, reference in (("a", "CLOSED", "No"), ("b", "OPEN", "left lung")):
        turns = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": reference}]
        rows.append({"id": id_, "image": "x", "answer_type": kind, "conversations": turns})
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(rows), encoding="utf-8")
    answers = tmp_path / "answers.jsonl"
    answers.write_bytes(
        answer("b", "the left lung", answer="left lung").to_line() + answer("a").to_line()
    )
    return answers, manifest


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_score_prints_both_protocols_and_writes_the_file(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    printed = run("score", *files, "--task", "vqa", "--out", out)
    for word in ("strict", "llava-med", "open_recall", "100.0 [100.0, 100.0]", "open 1, closed 1"):
        assert word in printed
    assert json.loads(out.read_text(encoding="utf-8"))["task"] == "vqa"


def test_json_prints_exactly_the_file(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    printed = run("score", *files, "--task", "report", "--out", out, "--json")
    assert printed == out.read_text(encoding="utf-8")
    assert json.loads(printed)["task"] == "report"


def test_report_scores_say_whether_wordnet_was_used(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    printed = run("score", *files, "--task", "report", "--out", out)
    assert "METEOR: " in printed
    assert "WordNet" in printed


def test_allow_missing_counts_records_without_an_answer(files: Files, tmp_path: Path) -> None:
    answers, manifest = files
    answers.write_bytes(answers.read_bytes().splitlines(keepends=True)[0])
    arguments = ("score", answers, manifest, "--task", "vqa", "--out", tmp_path / "s.json")
    with pytest.raises(AnswersError, match="1 records have no answer"):
        run(*arguments)
    assert "missing 1" in run(*arguments, "--allow-missing")


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_scored_is_never_overwritten(files: Files, which: int) -> None:
    before = files[which].read_bytes()
    with pytest.raises(AnswersError, match="would overwrite what is scored"):
        run("score", *files, "--task", "vqa", "--out", files[which])
    assert files[which].read_bytes() == before


def test_an_unknown_task_is_a_usage_error(files: Files, tmp_path: Path) -> None:
    arguments = ["score", *map(str, files), "--task", "vaq", "--out", str(tmp_path / "s.json")]
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_importing_the_commands_loads_nothing_heavy() -> None:
    code = (
        "import sys, medalign.eval.commands\n"
        "heavy = {'nltk', 'numpy', 'matplotlib', 'torch', 'rouge_score'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
