"""What a training manifest and a held-out one share is found, listed and counted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from medalign.cli import app
from medalign.pipeline.commands.check_data import image_folders
from medalign.pipeline.hygiene import fingerprints as image_contents
from medalign.pipeline.hygiene.leakage import normalised
from medalign.runtime.arguments import ArgumentError

SECRET = "XXCANARYXX the lungs are clear"
Manifest = Callable[..., Path]


def record(id_: str, image: object, question: str, answer: str, **fields: Any) -> dict[str, Any]:
    shown = image if isinstance(image, list) else [image] if image else []
    asked = "<image>\n" * len(shown) + question
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"id": id_, "conversations": turns, **({"image": image} if image else {}), **fields}


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    def make(name: str, *records: dict[str, Any]) -> Path:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in records))
        return path

    return make


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for k in range(3):
        rough = np.random.default_rng(k).integers(0, 256, (8, 8, 3), np.uint8)
        image = Image.fromarray(rough).resize((160, 130), Image.Resampling.BICUBIC)
        image.save(folder / f"{k}.png")
        image.save(folder / f"{k}.bmp")
        image.resize((96, 90)).save(folder / f"{k}.jpg", quality=60)
        (folder / f"{k}-copy.png").write_bytes((folder / f"{k}.png").read_bytes())
    for name, level in (("black", 0), ("white", 255)):
        Image.fromarray(np.full((50, 60), level, np.uint8)).save(folder / f"{name}.png")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:99])
    return folder


def leakage(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["data", "leakage", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def found(tmp_path: Path, *words: object) -> tuple[int, dict[str, Any]]:
    out = tmp_path / "found" / "leaks.json"
    code, told = leakage(*words, "--json", out)
    assert SECRET not in told + out.read_text()
    return code, json.loads(out.read_text())


def kinds(test: dict[str, Any]) -> dict[str, int]:
    return {kind: count["leaks"] for kind, count in test["counts"].items() if count["leaks"]}


def test_every_kind_of_leak_is_found_once(tmp_path: Path, manifest: Manifest, images: Path) -> None:
    train = manifest(
        "train",
        record("a", "0.png", "Is it normal?", SECRET, patient=7, study="s1"),
        record("b", "1.png", "Where?", "left"),
        record("c", "2.png", "Where?", "left"),
        record("d", "0.png", "Which organ?", "lung", patient="8"),
    )
    test = manifest(
        "test",
        record("v", "0-copy.png", "is it NORMAL", SECRET + "."),
        record("w", "1.bmp", "Where?", "right", patient="7"),
        record("x", "2.jpg", "Where?", "left", study="s1"),
        record("y", "black.png", "Where?", "left", patient=True),
        record("z", "cut.png", "Where?", "left"),
    )
    code, report = found(tmp_path, train, test, "--images", images)
    (against,) = report["tests"]
    assert (code, report["clean"]) == (1, False)
    every = {"triplet": 1, "file": 1, "pixels": 1, "near": 1, "patient": 1, "study": 1}
    assert kinds(against) == every
    pairs = {
        leak["kind"]: ([m["id"] for m in leak["train"]], [m["id"] for m in leak["test"]])
        for leak in against["leaks"]
    }
    assert (report["complete"], report["not_compared"]) == (False, 1)
    assert pairs == {
        "triplet": (["a"], ["v"]),
        "file": (["a", "d"], ["v"]),
        "pixels": (["b"], ["w"]),
        "near": (["c"], ["x"]),
        "patient": (["a"], ["w"]),
        "study": (["a"], ["x"]),
    }
    assert against["leaks"][1]["train"][1] == {"id": "d", "line": 4}
    assert [each["image"] for each in report["images"]["unreadable"]] == ["cut.png"]
    assert report["images"]["plain"] == 1


def test_a_triplet_of_a_resaved_image_is_one(
    tmp_path: Path, manifest: Manifest, images: Path
) -> None:
    train = manifest("train", record("a", "0.png", "Is it?", "yes"))
    test = manifest("test", record("b", "0.bmp", "Is it?", "yes"))
    _, report = found(tmp_path, train, test, "--images", images)
    assert kinds(report["tests"][0]) == {"triplet": 1, "pixels": 1}


def test_stopped_it_says_how_to_go_on(
    manifest: Manifest, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: Path) -> None:
        raise KeyboardInterrupt

    train = manifest("train", record("a", "0.png", "Is it?", "yes"))
    monkeypatch.setattr(image_contents, "read_fingerprint", stop)
    code, told = leakage(train, train, "--images", images, "--keep", tmp_path / "prints")
    assert code == 130
    assert "prints stay; run the same command again to continue" in told


def test_nothing_shared_is_clean_and_exit_0(
    tmp_path: Path, manifest: Manifest, images: Path
) -> None:
    train = manifest(
        "train",
        record("a", "0.png", "Is it?", "yes", patient="1"),
        record("b", "black.png", "Is it?", "no"),
    )
    test = manifest(
        "test",
        record("a", "1.png", "Is it?", "yes", patient="2"),
        record("b", "white.png", "Is it?", "no"),
    )
    code, report = found(tmp_path, train, test, "--images", images)
    assert (code, report["clean"], report["tests"][0]["leaks"]) == (0, True, [])
    assert (report["complete"], report["compared_by"]) == (True, "content")
    assert leakage(train, test, "--images", images)[1].endswith("clean: nothing is shared\n")


def test_several_held_out_manifests_and_their_own_folders(
    tmp_path: Path, manifest: Manifest, images: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "renamed.png").write_bytes((images / "0.png").read_bytes())
    (other / "0.png").write_bytes((images / "1.png").read_bytes())
    train = manifest("train", record("a", "0.png", "Is it?", "yes"))
    clean = manifest("clean", record("a", "0.png", "Is it?", "yes"))
    test = manifest("test", record("a", "renamed.png", "What?", "lung"))
    folders = [f"{train}={images}", f"{clean}={other}", f"{test}={other}"]
    words = [word for folder in folders for word in ("--images", folder)]
    code, report = found(tmp_path, train, clean, test, *words)
    assert code == 1
    assert [kinds(each) for each in report["tests"]] == [{}, {"file": 1}]


def test_files_that_are_not_there_are_no_leak_unless_they_are_the_same_one(
    tmp_path: Path, manifest: Manifest, images: Path
) -> None:
    train = manifest("train", record("a", "lost.png", "Is it?", "yes"))
    test = manifest("test", record("b", "lost.png", "Is it?", "yes"))
    own = ("--images", f"{train}={images}", "--images", f"{test}={tmp_path}")
    _, report = found(tmp_path, train, test, *own)
    assert (kinds(report["tests"][0]), len(report["images"]["unreadable"])) == ({}, 2)
    _, report = found(tmp_path, train, test, "--images", images)
    assert kinds(report["tests"][0]) == {"triplet": 1, "file": 1}


def test_what_was_not_compared_is_never_clean(
    tmp_path: Path, manifest: Manifest, images: Path
) -> None:
    train = manifest("train", record("a", "0.png", "Is it?", "yes"))
    for path, reason in (
        ("lost.png", f"is not in {images}"),
        ("cut.png", "is cut short"),
        ("x" * 300, "file name too long"),
    ):
        test = manifest("test", record("b", path, "Is it?", "yes"))
        code, report = found(tmp_path, train, test, "--images", images)
        assert (code, report["clean"], report["complete"]) == (1, False, False)
        assert (report["not_compared"], report["tests"][0]["leaks"]) == (1, [])
        (lost,) = report["images"]["unreadable"]
        assert lost["image"] == path
        told = leakage(train, test, "--images", images)[1]
        assert told.endswith(
            "not clean: no leak was found; 1 image could not be compared, see above\n"
        )
        assert reason in lost["reason"]


def test_without_images_paths_are_compared(tmp_path: Path, manifest: Manifest) -> None:
    train = manifest(
        "train", record("a", "0.png", "Is it?", "yes"), record("b", None, "Why?", "so")
    )
    test = manifest("test", record("a", "0.png", "Is it?", "yes"), record("b", None, "why", "So."))
    code, report = found(tmp_path, train, test)
    assert (code, kinds(report["tests"][0])) == (1, {"triplet": 2, "file": 1})
    assert "leaks: see above; images were compared by path only" in leakage(train, test)[1]
    other = manifest("other", record("a", "1.png", "Is it?", "yes"))
    code, report = found(tmp_path, train, other)
    assert (code, report["clean"], report["complete"]) == (0, True, False)
    assert report["compared_by"] == "path"
    told = leakage(train, other)[1]
    assert "clean: nothing is shared; images were compared by path only: none was opened" in told


def test_without_any_image_nothing_is_left_to_open(tmp_path: Path, manifest: Manifest) -> None:
    train = manifest("train", record("a", None, "Why?", "so"))
    test = manifest("test", record("a", None, "How?", "so"))
    code, report = found(tmp_path, train, test)
    assert (code, report["clean"], report["complete"]) == (0, True, True)


def test_the_table_names_ids_and_lines_and_cuts_long_lists(
    manifest: Manifest, images: Path
) -> None:
    questions = [record(f"q{k}", "0.png", f"Question {k}?", SECRET) for k in range(9)]
    train, test = manifest("train", *questions), manifest("test", *questions)
    code, told = leakage(train, test, "--images", images)
    assert code == 1
    assert "held out: q0 (line 1)" in told
    assert "q4 (line 5) and 4 more" in told
    assert "same image, question and answer: and 4 more" in told
    assert "9 (100.0%)" in told
    assert SECRET not in told


def test_a_second_run_decodes_nothing_again(
    tmp_path: Path, manifest: Manifest, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = manifest("train", record("a", "0.png", "Is it?", "yes"))
    test = manifest(
        "test", record("a", "0.jpg", "Is it?", "yes"), record("b", "1.png", "Is?", "no")
    )
    words = (train, test, "--images", images, "--keep", tmp_path / "prints.jsonl")
    first = found(tmp_path, *words)
    monkeypatch.setattr(image_contents, "read_fingerprint", None)
    assert found(tmp_path, *words) == first
    assert kinds(first[1]["tests"][0]) == {"near": 1}


def test_worker_processes_find_the_same(
    tmp_path: Path, manifest: Manifest, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = manifest("train", record("a", "0.png", "Is it?", "yes"))
    test = manifest("test", record("a", "0.jpg", "Is it?", "no"), record("b", "cut.png", "A?", "b"))
    alone = found(tmp_path, train, test, "--images", images, "--workers", 0)
    monkeypatch.setattr(image_contents, "FEW", 1)
    assert found(tmp_path, train, test, "--images", images, "--workers", 2) == alone


def test_a_result_replaces_nothing_but_a_result(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = manifest("train", record("a", None, "Is it?", "yes"))
    test = manifest("test", record("a", None, "Why?", "so"))
    linked = tmp_path / "linked.jsonl"
    linked.hardlink_to(train)
    notes, fresh, keep = tmp_path / "notes.txt", tmp_path / "fresh", tmp_path / "keep"
    notes.write_text("mine")
    fresh.touch()
    monkeypatch.chdir(tmp_path)
    for out, message in (
        (Path("train.jsonl"), "is a manifest of this command"),
        (test, "is a manifest of this command"),
        (linked, "is a manifest of this command"),
        (keep, "is --keep of this command"),
        (notes, "no result of `data leakage`"),
        (tmp_path, "is a folder"),
    ):
        before = {path: path.read_bytes() for path in (train, test, linked, notes)}
        words = [str(train), str(test), "--keep", str(keep), "--json", str(out)]
        done = CliRunner().invoke(app, ["data", "leakage", *words])
        assert isinstance(done.exception, ArgumentError)
        assert message in str(done.exception)
        assert {path: path.read_bytes() for path in before} == before
    for _ in range(2):
        assert leakage(train, test, "--json", fresh)[0] == 0
    assert json.loads(fresh.read_text())["clean"]


def test_names_are_shown_as_they_are_spelt(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "[").mkdir()
    there = record("a\x1b[31m\nred", "x\x1b[2J.png", "Is it?", "yes", patient="p\n\x07")
    code, told = leakage(manifest("set[v2][bold]", there), manifest("[/x]", there))
    assert code == 1
    shown = "".join(told.split())
    assert "/[/x].jsonlagainst" in shown
    assert "/set[v2][bold].jsonl" in shown
    for line in (
        r"held out: a\x1b[31m\nred (line 1)",
        r"same image file: x\x1b[2J.png",
        r"same patient: p\n\x07",
    ):
        assert line in told
    assert all(each.isprintable() for each in told.splitlines())


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    here = str(tmp_path)
    assert image_folders([one, two], [here]) == {one: tmp_path, two: tmp_path}
    assert image_folders([one, two], []) == {one: None, two: None}
    for given, message in (
        ([here, here], "already"),
        ([f"{one}={here}"], f"lacks a folder for {two}"),
        ([f"{here}/nowhere"], "no such folder"),
    ):
        with pytest.raises(ArgumentError, match=message):
            image_folders([one, two], given)


def test_a_broken_manifest_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    train = manifest("train", record("a", None, "Is it?", "yes"))
    (tmp_path / "test.jsonl").write_text('{"id": "a"}\n')
    done = CliRunner().invoke(app, ["data", "leakage", str(train), str(tmp_path / "test.jsonl")])
    assert "test.jsonl: line 1" in str(done.exception)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<image>\nIs  it NORMAL?", "is it normal"),
        ("No.", "no"),
        ("T2-weighted", "t2 weighted"),
        ("ﬁne", "fine"),
        ("+", "+"),
        ("-", "-"),
    ],
)
def test_what_texts_count_as_the_same(text: str, words: str) -> None:
    assert normalised(text) == words
