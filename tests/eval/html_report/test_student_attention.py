import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from medalign.eval.alignment import measure
from medalign.eval.html_report.student_attention import layer_of_runs, student_attention
from medalign.eval.html_report.write import write_report
from medalign.eval.predictions import Answer
from medalign.eval.source import Source, find_source, source_names
from medalign.pipeline.manifest import Record, read_manifest
from medalign.teacher_cache.reader import TeacherCache
from medalign.trainer.machine import quiet_libraries
from medalign.trainer.recipe.sections import LossSection
from medalign.trainer.students.probe import attach
from medalign.trainer.students.spec import StudentError
from medalign.trainer.students.tiny import DEMO_TEXTS, TinyStudent, make_student

LAYER = 1


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, asked_below: Callable[..., None]) -> Path:
    """A student, three images, and a question of two images, of one, of none, of a broken one."""
    quiet_libraries()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("asked")
    make_student(folder / "student", DEMO_TEXTS, TinyStudent(image_size=56, width=32, layers=2))
    images = {"both": ["0.png", "1.png"], "one": ["1.png"], "none": [], "broken": ["broken.png"]}
    asked_below(folder, images, "Is there a fracture?")
    return folder


@pytest.fixture(scope="module")
def records(asked: Path) -> list[Record]:
    found: list[Record] = read_manifest(asked / "m.jsonl")
    return found


def test_it_is_the_attention_that_training_aligns(
    asked: Path, records: list[Record], stores_below: Callable[[Path], Callable[..., Path]]
) -> None:
    found = student_attention(
        Source(asked / "student", None), "student", records, asked, layer=LAYER
    )
    named = ("0.png", "1.png")
    content = [hashlib.sha256((asked / name).read_bytes()).hexdigest() for name in named]
    store = stores_below(asked)(2, paths=named, content=content, geometry="pad")
    source = Source(asked / "student", None)
    model = source.load(torch.device("cpu"))
    attach(model, LAYER, rotation=False)
    cache, loss = TeacherCache.open(store), LossSection(layer=LAYER)
    measured = measure(model, source.spec(), records[:2], asked, cache, loss).attention
    for id_ in ("both", "one"):
        np.testing.assert_allclose(found.questions[id_].maps[0], measured[id_], rtol=1e-4)
    assert [len(found.questions[r.id].maps) for r in records] == [2, 1, 0, 0]
    # Attention of a row sums to at most 1 over the tokens of both images.
    assert 0 < sum(float(each.sum()) for each in found.questions["both"].maps) < 1


def test_a_map_lies_as_the_student_sees_the_image(asked: Path, records: list[Record]) -> None:
    told: list[tuple[int, int]] = []
    found = student_attention(
        Source(asked / "student", None),
        "student",
        records[:2],
        asked,
        layer=0,
        progress=lambda *step: told.append(step),
    )
    assert told == [(1, 2), (2, 2)]
    shown = found.of("both", 0, 20, 40)
    assert shown is not None
    assert (shown.geometry, str(shown.grid), shown.label) == ("pad", "4x4", "student")
    assert shown.valid.reshape(4, 4).all(axis=1).tolist() == [False, True, True, False]
    assert found.of("both", 2, 20, 40) is None


def test_what_has_no_map_says_why(asked: Path, records: list[Record]) -> None:
    found = student_attention(
        Source(asked / "student", None), "student", records[2:], asked, layer=0
    )
    assert found.questions["none"].problem == "the first question shows no image"
    assert "broken.png" in found.questions["broken"].problem


@pytest.mark.parametrize("layer", [None, 2])
def test_a_student_by_itself_needs_one_of_its_layers(
    asked: Path, records: list[Record], layer: int | None
) -> None:
    with pytest.raises(StudentError, match=r"--layer .*give one of its layers, 0 to 1"):
        student_attention(Source(asked / "student", None), "s", records, asked, layer=layer)


@pytest.mark.parametrize(
    ("names", "layer"),
    [("one none", 1), ("none one one", 1), ("none", None), ("one two none", None)],
)
def test_a_student_is_read_at_the_layer_of_the_runs_beside_it(
    names: str, layer: int | None
) -> None:
    trained = {"none": None, "one": 1, "two": 2}
    sources: Any = [SimpleNamespace(layer=partial(trained.get, name)) for name in names.split()]
    assert layer_of_runs(sources) == layer


def test_students_are_toggled_beside_each_other(
    asked: Path, records: list[Record], tmp_path: Path, parse: Callable[[str], Any]
) -> None:
    answers = tmp_path / "p.jsonl"
    lines = (
        Answer(id=r.id, prompt="", text="No", answer="No", decoder="greedy", seed=0, new_tokens=1)
        for r in records
    )
    answers.write_bytes(b"".join(line.to_line() for line in lines))
    source = find_source(asked / "student")
    written = write_report(
        [answers],
        asked / "m.jsonl",
        asked,
        "vqa",
        tmp_path / "r.html",
        sources=[("one", source), ("two", source)],
        layer=0,
    )
    page = parse((tmp_path / "r.html").read_text())
    cards = list(page.all("article"))
    assert [len(list(card.all("svg", role="img"))) for card in cards] == [2, 1, 0, 0]
    assert [len(list(card.all("g", class_="look-2"))) for card in cards] == [2, 1, 0, 0]
    assert [i.attributes["value"] for i in cards[0].all("input")] == ["", "1", "2"]
    style = "".join(each.text for each in page.all("style"))
    assert 'input[value="2"]:checked) .look-2{display:block}' in style
    # The record without an image misses nothing; the broken one its picture and two maps.
    assert [line.partition(" ")[0] for line in written.problems] == ["broken.png"] + ["broken:"] * 2


def test_a_report_reads_a_student_at_the_layer_of_the_run_beside_it(
    asked: Path, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = records[1]
    (tmp_path / "m.jsonl").write_text((asked / "m.jsonl").read_text().splitlines()[1])
    said = Answer(
        id=one.id, prompt="", text="No", answer="No", decoder="greedy", seed=0, new_tokens=1
    )
    (tmp_path / "p.jsonl").write_bytes(said.to_line())

    def page(**options: Any) -> bytes:
        files = [tmp_path / "p.jsonl"], tmp_path / "m.jsonl"
        source = ("student", Source(asked / "student", None))
        write_report(*files, asked, "vqa", tmp_path / "r.html", sources=[source], **options)
        return (tmp_path / "r.html").read_bytes()

    with pytest.raises(StudentError, match="--layer is not given"):
        page()
    at = [page(layer=layer) for layer in (0, 1)]
    assert at[0] != at[1]
    monkeypatch.setattr(Source, "layer", lambda _: 1)
    assert page() == at[1]


def test_sources_have_short_names_where_those_differ() -> None:
    assert source_names([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    assert source_names([Path("x/a"), Path("y/a")]) == ["x/a", "y/a"]
    with pytest.raises(StudentError, match=r"x/\.\./a is given twice"):
        source_names([Path("a"), Path("b"), Path("x/../a")])
