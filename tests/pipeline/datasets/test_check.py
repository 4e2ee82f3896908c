"""Everything that would fail later is told at once, by line, and never with a record's text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from medalign.cli import app
from medalign.pipeline.hygiene.manifest_check import KINDS

SECRET = "XXCANARYXX"
Check = Callable[..., tuple[int, dict[str, Any]]]


def record(id_: str, answer: str | None = "Yes", **changes: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{SECRET} {id_}?"}]
    if answer is not None:
        turns.append({"from": "gpt", "value": answer})
    return {"id": id_, "image": "a.png", "answer_type": "CLOSED", "conversations": turns} | changes


def asked(question: str, answer: str) -> dict[str, Any]:
    human = {"from": "human", "value": f"<image>\n{SECRET} {question}"}
    return {"conversations": [human, {"from": "gpt", "value": answer}]}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    Image.fromarray(noise).save(folder / "a.png")
    Image.fromarray(noise).save(folder / "b.png")
    Image.fromarray(noise[:20]).save(folder / "small.png")
    Image.fromarray(np.full((40, 50), 9, np.uint8)).save(folder / "blank.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "out.png").symlink_to(folder.parent / "elsewhere.png")
    return folder


@pytest.fixture
def check(tmp_path: Path, images: Path) -> Check:
    def run(*records: object, folder: bool = True, words: tuple[str, ...] = ()) -> tuple[int, Any]:
        path = tmp_path / "manifest.jsonl"
        lines = (each if isinstance(each, str) else json.dumps(each) for each in records)
        path.write_text("\n".join(lines))
        given = ["data", "check", str(path), *(["--images", str(images)] * folder), *words]
        shown = CliRunner().invoke(app, given)
        done = CliRunner().invoke(app, [*given, "--json"])
        assert (shown.exit_code, shown.exception.__class__) == (
            done.exit_code,
            done.exception.__class__,
        )
        assert SECRET not in shown.output + done.output
        report = json.loads(done.stdout)
        assert f"{report['errors']:,} errors, {report['warnings']:,} warnings" in shown.output
        return done.exit_code, report

    return run


def lines(report: dict[str, Any]) -> dict[str, list[int]]:
    return {
        kind: [each["line"] for each in found["findings"]]
        for kind, found in report["kinds"].items()
    }


def test_a_manifest_in_order_has_no_findings(check: Check) -> None:
    many = [record(str(k)) for k in range(3)]
    code, report = check(*many, record("open", "Left lung", answer_type="OPEN", mask="b.png"))
    assert (code, report["kinds"]) == (0, {})
    assert (report["records"], report["images"], report["decoded"]) == (4, 1, 1)


def test_all_broken_lines_are_told_and_the_others_still_looked_at(check: Check) -> None:
    broken = [f'{{"id": {k}}}' for k in range(30)]
    code, report = check(record("a", ""), *broken, record("a"), "{", record("b", "Maybe"))
    assert code == 1
    found = lines(report)
    assert sorted(set(found["manifest"])) == [*range(2, 32), 32, 33]
    assert (found["empty-answer"], found["closed-odd"]) == ([1], [34])


def test_files_are_looked_at_one_by_one(check: Check) -> None:
    code, report = check(
        record("1", image="nowhere.png"),
        record("2", image="out.png"),
        record("3", image="cut.png"),
        record("4", image="empty.png"),
        record("5", image="small.png"),
        record("6", image="blank.png"),
        record("7", mask="nowhere.png"),
        record("8", mask="small.png"),
        record("9", mask="cut.png"),
        record("10", image="cut.png"),
    )
    assert code == 1
    assert lines(report) == {
        "image-missing": [1],
        "image-outside": [2],
        "image-unreadable": [3, 4, 10],
        "image-tiny": [5],
        "image-constant": [6],
        "mask-missing": [7],
        "mask-unreadable": [9],
        "mask-size": [8],
    }
    assert "empty (0 bytes)" in report["kinds"]["image-unreadable"]["findings"][1]["text"]
    assert (report["errors"], report["warnings"]) == (8, 2)


def test_paths_that_no_file_system_takes_stop_nothing(check: Check) -> None:
    long = "x" * 300
    code, report = check(record("1", image=long), record("2"), record("3", mask=long))
    assert code == 1
    assert lines(report) == {"image-missing": [1], "mask-missing": [3]}
    (found,) = report["kinds"]["image-missing"]["findings"]
    assert found["text"] == f"{'x' * 120}...: file name too long"


def test_names_cannot_command_a_terminal(tmp_path: Path, images: Path) -> None:
    path = tmp_path / "[" / "x].jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps(record("a\x1b[31m\nb", image="\x1b[2J.png")))
    done = CliRunner().invoke(app, ["data", "check", str(path), "--images", str(images)])
    assert r"line 1, a\x1b[31m\nb: \x1b[2J.png" in done.output
    assert "[/x].jsonl: 1 records" in done.output
    assert all(line.isprintable() for line in done.output.splitlines())


def test_fewer_images_can_be_decoded_or_none_looked_at(check: Check) -> None:
    records = [record("1", image="cut.png"), record("2"), record("3", image="b.png")]
    assert check(*records, words=("--decode", "1"))[1]["decoded"] == 1
    code, report = check(*records, words=("--decode", "0"))
    assert (code, report["decoded"]) == (0, 0)
    assert check(record("1", image="nowhere.png"), folder=False)[0] == 0
    assert check(record("1", image="nowhere.png"), words=("--decode", "0"))[0] == 1


def test_answers_and_options_are_those_that_scoring_can_use(check: Check) -> None:
    choice = {"options": ["CT", "X-ray"]}
    code, report = check(
        record("1", None),
        record("2", " "),
        record("3", "CT", **choice),
        record("4", **choice | asked("CT or x-ray?", "x-ray.")),
        record("5", **choice | asked("CT, X-ray?", "MR")),
        record("6", **{"options": ["CT", "ct.", "MR"]} | asked("CT, ct. or MR?", "CT")),
        record("7", options="CT"),
        record("8", options=["CT"]),
        record("9", "Left"),
        record("10", "no.", answer_type=None),
        record("11", None, report=f"{SECRET} clear", answer_type=None),
        record("12", f"{SECRET} clear", report=f"{SECRET} clear", answer_type=None),
    )
    assert code == 1
    assert lines(report) == {
        "no-answer": [1],
        "empty-answer": [2],
        "options-malformed": [7, 8],
        "options-repeated": [6],
        "answer-no-option": [5],
        "options-unseen": [3],
        "closed-odd": [9],
        "no-answer-type": [10],
    }
    assert KINDS["closed-odd"].severity == "warning"


def test_records_that_repeat_or_contradict_each_other_are_warnings(check: Check) -> None:
    code, report = check(
        record("1", **asked("Is it?", "Yes")),
        record("2", **asked("is it", "no")),
        record("3", **asked("Is it?", "Yes")),
        record("4", **asked("Is it?", "Yes"), image="b.png"),
        record("5", **asked("Is it?", "yes.")),
    )
    assert code == 0
    assert lines(report) == {"contradiction": [2, 5], "duplicate": [3]}
    assert report["kinds"]["duplicate"]["findings"][0]["text"] == "the same as line 1"


def test_items_of_an_array_are_called_items(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps([record("1"), record("2", ""), record("3") | asked("1?", "Yes")]))
    done = CliRunner().invoke(app, ["data", "check", str(path)])
    assert "item 2, 2: answer 1 of 1 is blank" in done.output
    assert "item 3, 3: the same as item 1" in done.output


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text(json.dumps(record("1")))
    for words, message in (
        (["--images", str(tmp_path / "nowhere")], "no such folder"),
        (["--decode", "some"], "a number or all"),
    ):
        done = CliRunner().invoke(app, ["data", "check", str(path), *words])
        assert message in str(done.exception)
