import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medalign.eval.decoders.specs import Nucleus
from medalign.eval.generate import generate
from medalign.eval.source import Source, find_source
from medalign.trainer.quiet import quiet_libraries
from medalign.trainer.students.spec import StudentError
from medalign.trainer.students.tiny import DEMO_TEXTS, TinyStudent, make_student


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, five images and six questions, of which one has no readable image."""
    quiet_libraries()
    folder = tmp_path_factory.mktemp("task")
    make_student(folder / "student", DEMO_TEXTS, TinyStudent(image_size=56, width=32, layers=2))
    rng = np.random.default_rng(0)
    lines = []
    for k in range(6):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        turns = [
            {"from": "human", "value": f"<image>\nIs there a fracture of rib {k}?"},
            {"from": "gpt", "value": "no"},
            {"from": "human", "value": "Which side?"},
            {"from": "gpt", "value": "left"},
        ]
        lines.append(json.dumps({"id": f"q{k}", "image": f"{k}.png", "conversations": turns}))
    (folder / "5.png").write_bytes(b"")
    (folder / "m.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def run(task: Path, out: Path, batch_size: int = 4) -> list[dict[str, str]]:
    spec = Nucleus(max_new_tokens=5)
    source = Source(task / "student", None)
    done = generate(source, task / "m.jsonl", task, out, spec, batch_size=batch_size)
    assert [record for record, _ in done.unreadable] == ["q5"]
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_resumed_file_equals_an_uninterrupted_one(task: Path, tmp_path: Path) -> None:
    whole = run(task, tmp_path / "whole.jsonl")
    assert [line["id"] for line in whole] == ["q0", "q1", "q2", "q3", "q4"]
    out = tmp_path / "cut.jsonl"
    run(task, out)
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:2]) + lines[2][:30])  # killed in the middle of a line
    assert run(task, out, batch_size=3) == whole


def test_the_first_question_is_asked_and_its_answer_is_the_reference(
    task: Path, tmp_path: Path
) -> None:
    first = run(task, tmp_path / "p.jsonl")[0]
    assert first["prompt"].endswith("USER: <image>\nIs there a fracture of rib 0? ASSISTANT:")
    assert first["answer"] == "no"
    assert first["decoder"] == "nucleus"


def test_a_folder_that_cannot_answer_is_refused(task: Path, tmp_path: Path) -> None:
    assert find_source(task / "student") == Source(task / "student", None)
    with pytest.raises(StudentError, match="is no run"):
        find_source(tmp_path)
