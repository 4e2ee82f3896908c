import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from medalign.cli import app
from medalign.eval.figures import runs as run_figures
from medalign.eval.figures.runs import Drawn, Questions, draw_attention, draw_curves
from medalign.eval.predictions import AnswersError
from medalign.eval.source import Source
from medalign.pipeline.geometry import apply_geometry
from medalign.trainer.machine import quiet_libraries
from medalign.trainer.students.spec import StudentError, read_student
from medalign.trainer.students.tiny import DEMO_TEXTS, TinyStudent, make_student

BEGINNINGS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, asked_below: Callable[..., None]) -> Path:
    """Two students of one grid and one of another; questions of two images, one, none, a broken."""
    quiet_libraries()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("figures")
    for name, size in (("student", 56), ("other", 56), ("larger", 84)):
        make_student(folder / name, DEMO_TEXTS, TinyStudent(image_size=size, width=32, layers=2))
    images = {
        "both/of them": ["0.png", "1.png"],
        "none": [],
        "one": ["1.png"],
        "broken": ["broken.png"],
    }
    asked_below(folder, images, "Is there a $fracture$?")
    return folder


def run_folder(path: Path, steps: int) -> Path:
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text("")
    lines = [json.dumps({"step": k, "lm": 1 / k, "vis": 0.1, "att": 0.2}) for k in range(1, steps)]
    (path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return path


def asked(place: Path, *students: str, **more: Any) -> Questions:
    sources = {name: Source(place / name, None) for name in students or ("student",)}
    return Questions(place / "m.jsonl", place, sources, **{"layer": 1, **more})


@pytest.mark.parametrize("form", BEGINNINGS)
def test_curves_are_drawn_of_what_has_steps(tmp_path: Path, form: Any) -> None:
    runs = {"a": run_folder(tmp_path / "a", 4), "new": run_folder(tmp_path / "new", 1)}
    drawn = draw_curves(runs, tmp_path / "out", form)
    assert drawn.problems == ("new has no loss curve: no step was made",)
    [path] = drawn.files
    assert path == tmp_path / "out" / f"loss_curves.{form}"
    before = path.read_bytes()
    assert before.startswith(BEGINNINGS[form])
    draw_curves({"a": runs["a"]}, tmp_path / "out", form)
    assert path.read_bytes() == before
    assert draw_curves({"new": runs["new"]}, tmp_path / "none") == Drawn((), drawn.problems)
    assert not (tmp_path / "none").exists()


def test_every_image_of_a_question_has_a_figure(place: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    drawn = draw_attention(
        asked(place, "student", "other"), tmp_path, progress=lambda *step: told.append(step)
    )
    assert [path.name for path in drawn.files] == [
        "attention_1_both_of_them.png",
        "attention_1_both_of_them_2.png",
        "attention_3_one.png",
    ]
    assert {path.read_bytes()[:4] for path in drawn.files} == {b"\x89PNG"}
    assert told == [(k, 6) for k in range(1, 7)]
    [problem] = drawn.problems
    assert problem == f"record 'broken': {place / 'broken.png'}: is empty (0 bytes)"


def test_a_panel_for_each_student_of_one_square(place: Path, tmp_path: Path) -> None:
    def width(*students: str) -> int:
        drawn = draw_attention(asked(place, *students, samples=1), tmp_path / "-".join(students))
        with Image.open(drawn.files[0]) as figure:
            return figure.width

    assert width("student", "other") > width("student")
    drawn = draw_attention(asked(place, "larger", "student", samples=1), tmp_path)
    assert len(drawn.files) == 2
    assert "larger sees a pad square of 6x6 patches, student a pad one of 4x4" in drawn.problems[0]


def test_a_figure_shows_what_the_student_sees_and_what_of_it_is_image(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Any, dict[str, Any]]] = []

    def overlay(image: Any, maps: Any, *_: object, **options: Any) -> None:
        drawn.append((image, {"maps": list(maps), **options}))

    monkeypatch.setattr(run_figures, "attention_overlay", overlay)
    draw_attention(asked(place, "student", "other", samples=1), tmp_path)
    image, options = drawn[0]
    with Image.open(place / "0.png") as wide:
        rgb = np.asarray(wide.convert("RGB"))
    fill = read_student(place / "student").square.fill
    np.testing.assert_array_equal(image, apply_geometry(rgb, "pad", 56, fill))
    assert options["maps"] == ["student", "other"]
    assert options["valid"].reshape(4, 4).all(axis=1).tolist() == [False, True, True, False]
    assert options["title"] == "0.png: Is there a $fracture$?"


def test_a_student_is_read_at_the_layer_of_the_run_beside_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StudentError, match="--layer is not given"):
        draw_attention(asked(place, samples=1, layer=None), tmp_path)
    monkeypatch.setattr(Source, "layer", lambda _: 1)
    assert draw_attention(asked(place, samples=1, layer=None), tmp_path).files


def test_records_are_evenly_chosen_among_those_with_images(place: Path, tmp_path: Path) -> None:
    drawn = draw_attention(asked(place, samples=2), tmp_path)
    assert [path.name.split("_")[1] for path in drawn.files] == ["1", "1", "3"]


def test_what_has_no_images_is_refused(place: Path, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    manifest = tmp_path / "text.jsonl"
    manifest.write_text(json.dumps({"id": "a", "conversations": turns}))
    source = {"student": Source(place / "student", None)}
    with pytest.raises(AnswersError, match="no record has an image"):
        draw_attention(Questions(manifest, place, source), tmp_path)
    with pytest.raises(AnswersError, match="gone is no folder"):
        draw_attention(Questions(place / "m.jsonl", place / "gone", source), tmp_path)


def test_the_command_draws_both_and_names_what_is_missing(place: Path, tmp_path: Path) -> None:
    def run(*words: object) -> Any:
        return CliRunner().invoke(app, ["eval", "figures", *map(str, words)])

    out = tmp_path / "out"
    curves = run(run_folder(tmp_path / "run", 4), "--out", out, "--format", "svg")
    assert (curves.exit_code, curves.stdout) == (0, f"{out / 'loss_curves.svg'}\n")
    words = ("--manifest", place / "m.jsonl", "--images", place, "--layer", 0)
    drawn = run(place / "student", "--out", out, *words)
    assert drawn.exit_code == 1
    assert f"{out / 'attention_3_one.png'}\n" in drawn.stdout
    assert "1 things are missing" in drawn.stderr
    assert "broken.png" in drawn.stderr
    one = run(place / "student", "--out", tmp_path / "one", *words, "--samples", 1)
    assert [Path(line).name for line in one.stdout.split()] == [
        "attention_1_both_of_them.png",
        "attention_1_both_of_them_2.png",
    ]
    wrong: list[tuple[tuple[object, ...], str]] = [
        ((place / "student",), "nothing to draw"),
        ((place / "student", "--images", place), "give --manifest and --images"),
        ((place / "student", "--samples", 3), "give --manifest and --images"),
        ((tmp_path / "run", tmp_path / "typo"), "typo: no such folder"),
        ((tmp_path / "run", tmp_path), "is no run"),
        ((tmp_path / "run", tmp_path / "out" / ".." / "run"), "is given twice"),
        ((place / "student", *words, "--cache", tmp_path / "gone"), "gone"),
    ]
    for options, said in wrong:
        new = tmp_path / "new"
        error = run(*options, "--out", new).exception
        assert isinstance(error, ValueError)
        assert said in str(error)
        assert not new.exists()
    file = place / "m.jsonl"
    assert "is a file; give a folder" in str(run(tmp_path / "run", "--out", file).exception)
