"""Questions that are longer than the student: left out and named, whatever stands beside them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from medalign.eval.commands.eval import app
from medalign.eval.decoders import DecodingError, decode, make_spec
from medalign.eval.generate import Answered, generate
from medalign.eval.source import Source
from medalign.pipeline.manifest import read_manifest
from medalign.runtime.parts import Part
from medalign.trainer.student import load_base

NEW = 3


@pytest.fixture(scope="module")
def task(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four questions and a student with room for the prompts of q0 and q2 and 3 new tokens.

    q1 lacks one position for its answer, q3 has a prompt that is too long by itself.
    """
    folder = tmp_path_factory.mktemp("long")
    shutil.copytree(student, folder / "student")
    Image.fromarray(np.full((40, 50, 3), 90, dtype=np.uint8)).save(folder / "x.png")
    questions = ["Is it?", "Is it so?", "Is it?", f"Is it{' so' * 200}?"]
    turns = [[{"from": "human", "value": f"<image>\n{text}"}] for text in questions]
    rows = [{"id": f"q{k}", "image": "x.png", "conversations": t} for k, t in enumerate(turns)]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = json.loads((folder / "student" / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = prompt_tokens(folder)[1] + NEW - 1
    (folder / "student" / "config.json").write_text(json.dumps(config))
    lengths = prompt_tokens(folder)
    assert lengths[0] < lengths[1] < lengths[3]  # else the fixture says nothing
    return folder


def prompt_tokens(task: Path) -> list[int]:
    """Tokens of each prompt, 16 of its image counted."""
    encoder = Source(task / "student", None).spec().encoder
    return [len(encoder.prompt(one).input_ids) for one in read_manifest(task / "m.jsonl")]


def ask(task: Path, out: Path, decoder: str = "greedy", **options: Any) -> Answered:
    first = {"first_layer": 0, "variant": "reference"} if decoder == "pai" else {}
    spec = make_spec(decoder, None, {"max_new_tokens": NEW, **first})
    return generate(Source(task / "student", None), task / "m.jsonl", task, out, spec, **options)


@pytest.mark.parametrize("decoder", ["greedy", "opera", "pai"])
def test_a_question_without_room_is_left_out_and_named(
    task: Path, tmp_path: Path, decoder: str
) -> None:
    lengths = prompt_tokens(task)
    positions = lengths[1] + NEW - 1
    done = ask(task, tmp_path / "p.jsonl", decoder)
    assert (done.records, done.answered) == (4, 2)
    assert dict(done.unreadable) == {
        "q1": f"its prompt has {lengths[1]} tokens, images included, and max_new_tokens is 3, but "
        f"this student has {positions} positions; set max_new_tokens to 2 or less",
        "q3": f"its prompt has {lengths[3]} tokens, images included, and this student has "
        f"{positions} positions; ask a shorter question",
    }


def test_what_stands_beside_a_question_without_room_changes_nothing(
    task: Path, tmp_path: Path
) -> None:
    ask(task, tmp_path / "p.jsonl")
    ask(task, tmp_path / "alone.jsonl", batch_size=1)
    for index in (1, 2):
        ask(task, tmp_path / "parts.jsonl", part=Part(index, 2))
    first, *others = [(tmp_path / f"{name}.jsonl").read_bytes() for name in ("p", "alone", "parts")]
    assert others == [first, first]
    assert [json.loads(line)["id"] for line in first.splitlines()] == ["q0", "q2"]


def test_the_command_names_them_and_exits_with_1(task: Path, tmp_path: Path) -> None:
    arguments = [str(task / "student"), str(task / "m.jsonl"), "--images", str(task)]
    arguments += ["--out", str(tmp_path / "p.jsonl"), "--max-new-tokens", str(NEW)]
    result = CliRunner().invoke(app, ["generate", *arguments])
    assert result.exit_code == 1
    assert "no answer to 'q1': its prompt has" in result.stderr
    assert "2 records have no answer; score the others with --allow-missing" in result.stderr


def test_decode_refuses_a_prompt_without_room(task: Path) -> None:
    model = load_base(task / "student", torch.float32)
    positions = model.config.text_config.max_position_embeddings
    ids = torch.full((2, positions - 2), 10)
    mask = torch.ones_like(ids)
    mask[0, :-4] = 0  # padding is no prompt
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": None}
    spec = make_spec("greedy", None, {"max_new_tokens": 3})
    with pytest.raises(DecodingError, match=r"greedy: prompt 'b': its prompt has .* 2 or less"):
        decode(model, inputs, spec, ids=["a", "b"])
    shorter = make_spec("greedy", None, {"max_new_tokens": 2})
    assert decode(model, inputs, shorter).shape[1] <= 2
