import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from medalign.cli import app
from medalign.runtime.arguments import ArgumentError

Folder = Callable[..., Path]
SlakeItem = Callable[..., dict[str, Any]]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["data", "prepare", *map(str, words)], env={"COLUMNS": "100"})


def cells(result: Result, *first: str) -> list[str]:
    """The cells of the table's line that begins with these words."""
    for line in result.stdout.splitlines():
        if line.split()[: len(first)] == list(first):
            return line.split()[len(first) :]
    raise AssertionError(result.stdout)


def test_the_table_shows_found_beside_published(slake_folder: Folder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    root = slake_folder()
    result = run("slake", root, "--out", out)
    assert result.exit_code == 0, result.output
    assert cells(result, "train", "found") == ["2", "2", "0", "2"]
    assert cells(result, "LLaVA-Med") == [
        *("4,919", "(-4,917)", "2,976", "(-2,974)", "1,943", "(-1,943)", "450", "(-448)"),
    ]
    said = result.stdout
    assert f"found      Slake1.0 release in {root}\n" in said
    assert "published  differs where a number in brackets stands" in said
    assert "licence    CC-BY-4.0: " in said
    assert "LEFT OUT" not in said
    assert f"output     {out}: train.jsonl, val.jsonl, test.jsonl, report.json (written)" in said
    assert f"next       medalign cache build {out}/train.jsonl --images {out}/images" in said
    assert "there already, nothing changed" in run("slake", root, "--out", out).stdout


def test_no_difference_is_marked_where_there_is_none(
    slake_folder: Folder, tmp_path: Path, slake_item: SlakeItem
) -> None:
    everything = [slake_item(number, number % 642) for number in range(14028)]
    root = slake_folder({"train.json": everything, "validate.json": [], "test.json": []})
    result = run("slake", root, "--out", tmp_path / "out", "--choose", "language=all")
    assert cells(result, "total", "found") == ["14,028", "14,028", "0", "642"]
    assert cells(result, "official") == ["14,028", "642"]
    assert "differs" not in result.stdout
    assert "no records for val, test" in result.stdout


def test_what_is_left_out_is_said_and_makes_exit_code_1(
    slake_folder: Folder, tmp_path: Path
) -> None:
    root = slake_folder()
    (root / "imgs" / "xmlab2" / "source.jpg").unlink()
    for _ in range(2):  # the second run knows it too
        result = run("slake", root, "--out", tmp_path / "out")
        assert result.exit_code == 1
        assert "LEFT OUT   1 unusable: its image is not there (1 image)\n" in result.stdout
        assert "first: train.json item 2: xmlab2/source.jpg" in result.stdout


def test_the_next_command_can_be_pasted(slake_folder: Folder, tmp_path: Path) -> None:
    root = slake_folder()
    spaced = tmp_path / "my data"
    root.rename(spaced)
    result = run("slake", spaced, "--out", tmp_path / "my manifests")
    at = result.stdout.index("medalign cache build")
    words = shlex.split(result.stdout[at:].replace("\\\n", " "))
    assert words[3] == str(tmp_path / "my manifests" / "train.jsonl")
    assert words[words.index("--images") + 1] == str(tmp_path / "my manifests" / "images")


def test_a_cut_and_its_seed_are_shown(rad_osf: Folder, rad_item: SlakeItem, tmp_path: Path) -> None:
    root = rad_osf([rad_item(n, image_case_url=f"case {n}") for n in range(9)])
    result = run(
        *("vqa-rad", root, "--out", tmp_path / "out", "--seed", "4", "--val-fraction", "0.5")
    )
    # The questions are about one image, so all cases are tied together.
    assert "cut val out of train with seed 4, 1 group: val 0.5" in result.stdout
    assert "no records for " in result.stdout
    assert "medalign data leakage" not in result.stdout


def test_after_a_cut_leakage_is_named(rad_osf: Folder, rad_item: SlakeItem, tmp_path: Path) -> None:
    root = rad_osf([rad_item(n, f"{n}.jpg", image_case_url=f"case {n}") for n in range(20)])
    out = tmp_path / "out"
    said = run("vqa-rad", root, "--out", out, "--val-fraction", "0.5").stdout
    assert f"data leakage {out}/train.jsonl {out}/val.jsonl --images {out}/images\n" in said


def test_an_id_that_repeats_is_said(rad_osf: Folder, rad_item: SlakeItem, tmp_path: Path) -> None:
    root = rad_osf([rad_item(1), rad_item(1)])
    said = run("vqa-rad", root, "--out", tmp_path / "out").stdout
    assert "ids        1 was used before and got a number at the end" in said


def test_duplicates_are_shown(pathvqa_folder: Folder, path_item: SlakeItem, tmp_path: Path) -> None:
    items = [path_item("train_1"), path_item("train_1"), path_item("train_1", answer="yes")]
    said = run("pathvqa", pathvqa_folder({"train": items}), "--out", tmp_path / "out").stdout
    assert "repeated   1 with image, question and answer as before in the same split" in said
    assert "repeated   1 with image and question as before, but another answer; kept" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("slak", "."), "NAME slak: unknown data set; did you mean slake?"),
        (("slake", ".", "--choose", "all"), "--choose all: is not KEY=VALUE"),
        (
            ("slake", ".", "--choose", "language=zh", "--choose", "language=en"),
            "--choose language is given more than once",
        ),
    ],
)
def test_wrong_words_are_answered(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    result = run(*words, "--out", tmp_path / "out")
    assert isinstance(result.exception, ArgumentError)
    assert said in str(result.exception)
    assert not (tmp_path / "out").exists()


def medalign(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medalign", "data", "prepare", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_wrong_input_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    result = medalign("slake", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"medalign: SRC {tmp_path}/nowhere: no such folder; expected: folder of the downloaded "
        "set, unpacked\n"
    )


def test_sigterm_leaves_nothing_half_and_the_same_command_goes_on(
    pathvqa_folder: Folder, tmp_path: Path
) -> None:
    root = pathvqa_folder({})
    out = tmp_path / "out"
    words = ["data", "prepare", "pathvqa", str(root), "--out", str(out)]
    begun = tmp_path / "begun"
    code = (
        "import sys, pathlib, time\n"
        "from medalign.pipeline.datasets import pathvqa\n"
        "real = pathvqa.read_plain_pickle\n"
        "def slow(path):\n"
        f"    pathlib.Path({str(begun)!r}).touch()\n"
        "    time.sleep(60)\n"
        "    return real(path)\n"
        "pathvqa.read_plain_pickle = slow\n"
        "from medalign.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not begun.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said == f"medalign: stopped; whole files in {out} stay, run the same command again\n"
    assert list(out.iterdir()) == []
    assert run("pathvqa", root, "--out", out).exit_code == 0
    assert json.loads((out / "report.json").read_text())["counts"]["total"]["records"] == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_that_may_not_be_written_is_named(slake_folder: Folder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    result = medalign("slake", slake_folder(), "--out", out)
    assert result.returncode == 2
    assert "Permission denied" in result.stderr
    assert str(out) in result.stderr
