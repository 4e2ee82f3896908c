import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medalign.eval.commands.eval import app
from medalign.eval.predictions import Answer, AnswersError
from medalign.runtime.arguments import ArgumentError

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
    for word in ("strict", "llava-med", "open_recall", "100.0 [one cluster]", "open 1, closed 1"):
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
    with pytest.raises(ArgumentError, match="would overwrite what is scored"):
        run("score", *files, "--task", "vqa", "--out", files[which])
    assert files[which].read_bytes() == before


@pytest.mark.parametrize("which", [0, 1])
def test_texts_for_radgraph_never_overwrite_what_is_read(files: Files, which: int) -> None:
    before = files[which].read_bytes()
    out = files[which].parent / "." / "other" / ".." / files[which].name
    with pytest.raises(ArgumentError, match="would overwrite what is read"):
        run("report-texts", files[0], "--manifest", files[1], "--out", out)
    assert files[which].read_bytes() == before


def test_annotations_that_are_scored_with_are_never_overwritten(
    files: Files, tmp_path: Path
) -> None:
    annotations = tmp_path / "annotations.json"
    annotations.write_text("{}", encoding="utf-8")
    arguments = ("score", *files, "--task", "report", "--out", annotations)
    with pytest.raises(ArgumentError, match="would overwrite what is read"):
        run(*arguments, "--radgraph-annotations", annotations)


def test_compare_prints_both_files_and_writes_if_asked(files: Files, tmp_path: Path) -> None:
    answers, manifest = files
    out = tmp_path / "c.json"
    arguments = ("compare", answers, answers, manifest, "--task", "vqa")
    printed = run(*arguments, "--out", out)
    for word in ("A: ", "B: ", "B - A", "+0.0 [one cluster]", "1.000", "clusters: 1 (by image)"):
        assert word in printed
    assert "intervals are rough" in printed
    assert run(*arguments, "--json") == out.read_text(encoding="utf-8")
    with pytest.raises(ArgumentError, match="would overwrite what is compared"):
        run(*arguments, "--out", answers)


def test_compare_says_how_many_records_neither_file_answers(files: Files, tmp_path: Path) -> None:
    answers, manifest = files
    said = "missing 1 of 2 records: neither file answers them, and both score as empty answers"
    out = tmp_path / "c.json"
    arguments = ("compare", answers, answers, manifest, "--task", "vqa", "--out", out)
    assert said not in run(*arguments)
    answers.write_bytes(answers.read_bytes().splitlines(keepends=True)[0])
    assert said in run(*arguments, "--allow-missing")
    counts = json.loads(out.read_text(encoding="utf-8"))["counts"]
    assert counts == {"records": 2, "answers": 1, "missing": 1}


def test_compare_says_that_both_are_the_same_file(files: Files, tmp_path: Path) -> None:
    answers, manifest = files
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(answers.read_bytes())
    said = "A and B are the same file, byte for byte"
    assert said in run("compare", answers, copy, manifest, "--task", "vqa")
    copy.write_bytes(b"".join(reversed(copy.read_bytes().splitlines(keepends=True))))
    assert said not in run("compare", answers, copy, manifest, "--task", "vqa")


def test_a_table_fits_eighty_columns(files: Files, tmp_path: Path) -> None:
    answers, manifest = files
    for arguments in (
        ("score", answers, manifest, "--task", "vqa", "--out", tmp_path / "s.json"),
        ("compare", answers, answers, manifest, "--task", "vqa"),
    ):
        result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "80"})
        assert "closed_accuracy" in result.output
        assert "overall_accuracy" in result.output
        assert "missed_findings" in result.output or "hallucination" in result.output


def test_a_metric_that_was_named_and_cannot_be_computed_is_a_failure(
    files: Files, tmp_path: Path
) -> None:
    out = tmp_path / "s.json"
    arguments = ["score", *map(str, files), "--task", "report", "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, "--metrics", "bleu, radgraph"])
    assert result.exit_code == 1
    assert "radgraph: not computed: needs radgraph.tar.gz at --radgraph FILE" in result.output
    found = json.loads(out.read_text(encoding="utf-8"))
    assert {metric["name"] for metric in found["metrics"]} == {"bleu"}
    assert [missing["name"] for missing in found["not_computed"]] == ["radgraph"]
    # Not named, it is told of all the same, and nothing has failed.
    assert "radgraph: not computed" in run(*arguments)


@pytest.mark.parametrize("given", [",", " , ", ""])
@pytest.mark.parametrize("command", ["score", "compare", "table", "report"])
def test_metrics_without_a_name_are_refused(files: Files, command: str, given: str) -> None:
    answers, manifest = files
    folder = manifest.parent
    rest = {
        "score": (answers, manifest, "--task", "vqa", "--out", folder / "out"),
        "compare": (answers, answers, manifest, "--task", "vqa"),
        "table": (answers,),
        "report": (answers, manifest, "--task", "vqa", "--out", folder / "out", "--images", folder),
    }[command]
    with pytest.raises(ArgumentError, match=f"--metrics '{given}' names no metric"):
        run(command, *rest, "--metrics", given)
    assert not (folder / "out").exists()


@pytest.mark.parametrize("compared", [False, True])
def test_a_metric_that_was_named_and_has_no_samples_is_a_failure(
    files: Files, tmp_path: Path, compared: bool
) -> None:
    answers, manifest = files
    out = tmp_path / "s.json"
    both = ["compare", answers, answers, manifest] if compared else ["score", answers, manifest]
    arguments = [str(each) for each in (*both, "--task", "vqa", "--out", out)]
    result = CliRunner().invoke(app, [*arguments, "--metrics", "choice,open"])
    assert result.exit_code == 1
    assert "choice: not computed: no record has `options`" in result.output
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [missing["name"] for missing in found["not_computed"]] == ["choice"]
    # Not named, it is left out without a word.
    assert "choice" not in run(*arguments).replace("multiple choice", "")


def test_a_metric_of_another_task_is_refused(files: Files, tmp_path: Path) -> None:
    arguments = ("score", *files, "--task", "vqa", "--out", tmp_path / "s.json")
    with pytest.raises(ArgumentError, match="bleu: unknown metric of task vqa; known are open"):
        run(*arguments, "--metrics", "bleu")
    assert "closed_accuracy" not in run(*arguments, "--metrics", "open,overall")


def test_texts_for_radgraph_come_back_as_its_annotations(files: Files, tmp_path: Path) -> None:
    answers, manifest = files
    texts, out = tmp_path / "texts.json", tmp_path / "s.json"
    assert "5 texts" in run("report-texts", answers, "--manifest", manifest, "--out", texts)
    written = json.loads(texts.read_text(encoding="utf-8"))
    # "the left lung" and "No", as they are and as the authors clean them, and the references.
    assert written == ["No", "No report generated.", "he left lung", "left lung", "the left lung"]
    graphs = {str(n): {"text": " ".join(text), "entities": {}} for n, text in enumerate(written)}
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(graphs), encoding="utf-8")
    arguments = ("score", *files, "--task", "report", "--out", out, "--metrics", "radgraph")
    assert "combined" in run(*arguments, "--radgraph-annotations", annotations)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["instruments"]["radgraph"][0]["path"] == str(annotations)


def test_an_unknown_task_is_a_usage_error(files: Files, tmp_path: Path) -> None:
    arguments = ["score", *map(str, files), "--task", "vaq", "--out", str(tmp_path / "s.json")]
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_importing_the_commands_loads_nothing_heavy() -> None:
    code = (
        "import sys, medalign.eval.commands.eval\n"
        "heavy = {'nltk', 'numpy', 'matplotlib', 'torch', 'rouge_score'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
