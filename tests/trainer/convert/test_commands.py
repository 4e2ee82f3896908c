"""`medalign student`, as a user runs it."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medalign.cli import main


@pytest.fixture
def medalign(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; returns exit code, output and errors."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medalign", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        return int(end.value.code or 0), shown.out, shown.err

    return run


Run = Callable[..., tuple[int, str, str]]


def test_converted_checked_and_converted_again(source: Path, medalign: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("student", "convert", source, "--family", "llava-med", "--out", out)
    code, shown, progress = medalign(*words, "--shard-gb", "0.0002")
    assert code == 0
    for line in (
        "tensors       99 read, 98 converted, 1 not needed",
        "not needed    1 tensor: follows from rope_theta",
        "vision tower  the checkpoint's own, hidden state -2",
        "images        56 px, padded with the mean colour",
        "tokens        image <image> 420, end </s> 2, padding <unk> 0",
        "vocabulary    1 row added: the mean of the others, in embedding and head",
        "token ids     12 of 12 prompts as the original tokenises them, chunk by chunk",
        f"student       {out}; check it with: medalign student check {out}",
    ):
        assert line in shown
    assert "checking the source" in progress
    code, shown, _ = medalign(*words, "--shard-gb", "0.0002")
    assert (code, shown) == (0, f"already converted: {out}\n")
    code, shown, _ = medalign("student", "check", out)
    assert code == 0
    assert shown.count("ok  ") == 10


def test_check_ends_with_1_when_something_failed(student: Path, medalign: Run) -> None:
    (student / "model-00003-of-00007.safetensors").unlink()
    code, shown, _ = medalign("student", "check", student, "--json")
    found = json.loads(shown)
    assert (code, found["status"]) == (1, "failed")
    status = {check["name"]: check["status"] for check in found["checks"]}
    assert status["tensors"] == status["conversion"] == "failed"
    assert status["tokenizer"] == status["template"] == "ok"


@pytest.mark.parametrize("size", ["inf", "nan", "0"])
def test_a_size_of_weight_files_that_is_no_number(
    size: str, source: Path, medalign: Run, tmp_path: Path
) -> None:
    words = ("student", "convert", source, "--family", "llava-med", "--out", tmp_path / "out")
    code, _, error = medalign(*words, "--shard-gb", size)
    assert code == 2
    assert f"--shard-gb {size}: " in error


def test_an_out_that_cannot_be_made_is_named_as_the_user_gave_it(
    source: Path, medalign: Run, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "x"
    words = ("student", "convert", source, "--family", "llava-med", "--out", out)
    code, _, error = medalign(*words)
    assert code == 2
    told = f"medalign: --out {out}: cannot make a folder in {out.parent} (that is a file)"
    assert error == f"{told}; choose another place\n"


def test_wrong_input_is_one_line_and_exit_code_2(medalign: Run, tmp_path: Path) -> None:
    for words in (
        ("convert", tmp_path / "gone", "--family", "llava-med", "--out", tmp_path / "out"),
        ("check", tmp_path / "gone"),
    ):
        code, shown, error = medalign("student", *words)
        assert (code, shown) == (2, "")
        assert "gone: no such folder" in error
        assert error.count(os.linesep) == 1
    assert not (tmp_path / "out").exists()
