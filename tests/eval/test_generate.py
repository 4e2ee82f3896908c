import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medalign.eval.decoders import SPECS, DecodingError, Spec, make_spec
from medalign.eval.decoders.limits import check_fit
from medalign.eval.decoders.settings import Nucleus
from medalign.eval.generate import Answered, generate
from medalign.eval.prediction_log import Joined, identity_path, join_parts, part_path
from medalign.eval.predictions import AnswersError, read_answers
from medalign.eval.source import Source, find_source
from medalign.runtime.parts import Part
from medalign.trainer.machine import quiet_libraries
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


def ask(task: Path, out: Path, spec: Spec, **options: Any) -> Answered:
    return generate(Source(task / "student", None), task / "m.jsonl", task, out, spec, **options)


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def run(task: Path, out: Path, batch_size: int = 4) -> list[dict[str, Any]]:
    done = ask(task, out, Nucleus(max_new_tokens=5), batch_size=batch_size)
    assert [record for record, _ in done.unreadable] == ["q5"]
    return lines_of(out)


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


def test_the_seed_reaches_what_is_drawn(task: Path, tmp_path: Path) -> None:
    texts = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ask(task, tmp_path / name, Nucleus(max_new_tokens=5), seed=seed)
        lines = lines_of(tmp_path / name)
        assert {line["seed"] for line in lines} == {seed}
        texts.append([line["text"] for line in lines])
    assert texts[0] == texts[1] != texts[2]


def test_an_end_token_is_counted_and_not_shown(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(model: Any, inputs: Any, *_: Any, **_more: Any) -> torch.Tensor:
        end = model.generation_config.eos_token_id
        return torch.tensor([[40, 41, end, 42, 42]]).repeat(len(inputs["input_ids"]), 1)

    monkeypatch.setattr("medalign.eval.generate.decode", answer)
    tokenizer = Source(task / "student", None).spec().processor.tokenizer
    for line in run(task, tmp_path / "p.jsonl"):
        assert line["new_tokens"] == 3
        assert line["text"] == tokenizer.decode([40, 41]).strip()


def test_a_folder_that_cannot_answer_is_refused(task: Path, tmp_path: Path) -> None:
    assert find_source(task / "student") == Source(task / "student", None)
    with pytest.raises(StudentError, match="is no run"):
        find_source(tmp_path)
    with pytest.raises(StudentError, match=r"gone does not exist; give a run's, an adapter's or"):
        find_source(tmp_path / "gone")


def test_a_student_that_is_none_is_named_by_its_option(adapter: Path, tmp_path: Path) -> None:
    for path, said in ((tmp_path, "has no config.json"), (tmp_path / "gone", "is no folder")):
        with pytest.raises(StudentError) as caught:
            find_source(adapter, path)
        assert str(caught.value).startswith(f"--student {path} {said}; give the student that")
        assert str(adapter) in str(caught.value)


@pytest.mark.parametrize("name", list(SPECS))
def test_every_decoder_answers_and_says_with_which_settings(
    task: Path, tmp_path: Path, name: str
) -> None:
    layers = {"first_layer": 0} if name == "pai" else {}  # of two
    spec = make_spec(name, None, {"max_new_tokens": 3, **layers})
    done = ask(task, tmp_path / "p.jsonl", spec, seed=4)
    answers = read_answers(tmp_path / "p.jsonl")
    assert [answer.id for answer in answers] == ["q0", "q1", "q2", "q3", "q4"]
    assert (done.answered, done.joined) == (5, None)
    seed = 4 if name in ("nucleus", "vcd", "avisc", "m3id", "damro") else 0  # none is drawn
    for answer in answers:
        assert (answer.decoder, answer.seed, answer.settings) == (name, seed, spec.settings())
        assert 1 <= answer.new_tokens <= 3


def test_a_seed_that_decides_nothing_leaves_no_trace(task: Path, tmp_path: Path) -> None:
    spec = make_spec("greedy", None, {"max_new_tokens": 2})
    out, whole = tmp_path / "p.jsonl", tmp_path / "whole.jsonl"
    for path in (out, whole):
        ask(task, path, spec, seed=0)
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:2]))
    assert ask(task, out, spec, seed=1).reused == 2
    assert out.read_bytes() == whole.read_bytes()


def test_other_settings_are_another_file(task: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    ask(task, out, make_spec("vcd", None, {"max_new_tokens": 1}))
    with pytest.raises(AnswersError, match=r"begun with another alpha 1.0 \(now 2.0\)"):
        ask(task, out, make_spec("vcd", None, {"max_new_tokens": 1, "alpha": 2.0}))


def test_another_model_or_other_images_are_another_file(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = make_spec("greedy", None, {"max_new_tokens": 1}), tmp_path / "p.jsonl"
    here, images = tmp_path / "task", tmp_path / "images"
    for folder in (here, images):
        shutil.copytree(task, folder)
    source = Source(here / "student", None)

    def again(now: Source, folder: Path = here) -> int:
        reused: int = generate(now, here / "m.jsonl", folder, out, spec).reused
        return reused

    assert again(source) == 0
    assert again(source, images) == 5  # a copy
    Image.new("RGB", (9, 9)).save(images / "2.png")
    with pytest.raises(AnswersError, match="begun with another images"):
        again(source, images)
    for other, key in (
        (dataclasses.replace(source, alpha="white"), "alpha 'black'"),
        (dataclasses.replace(source, geometry="stretch"), "geometry 'processor'"),
    ):
        with pytest.raises(AnswersError, match=f"begun with another {key}"):
            again(other)
    with monkeypatch.context() as patched:
        patched.setattr(Source, "dtype", lambda *_: torch.bfloat16)
        with pytest.raises(AnswersError, match=r"another dtype 'float32' \(now 'bfloat16'\)"):
            again(source)
    tokenizer = here / "student" / "tokenizer_config.json"
    settings = json.loads(tokenizer.read_text())
    tokenizer.write_text(json.dumps({**settings, "model_max_length": 77}))
    with pytest.raises(AnswersError, match="begun with another student_files"):
        again(source)


def test_an_adapters_settings_belong_to_its_identity(adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    cpu = torch.device("cpu")
    before = find_source(folder).identity(cpu)
    assert before == find_source(adapter).identity(cpu)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lora_alpha": 99}))
    after = find_source(folder).identity(cpu)
    assert {key for key in after if after[key] != before[key]} == {"adapter"}


def test_what_does_not_fit_is_refused_before_the_student_is_loaded(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **_more: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(Source, "load", fail)
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("dola", {"layers": "0,2,4"}, "layers is '0,2,4', this student has layers 0 to 1"),
        ("pai", {}, "first_layer 2 and last_layer -1 name no layers"),
        ("damro", {"top_tokens": 17}, "top_tokens is 17, an image of this student has 16"),
        ("damro", {"layer": -3}, "layer is -3, the vision tower has 2 layers"),
        ("greedy", {"max_new_tokens": 10**8}, "max_new_tokens is 100000000, .* 4096 positions"),
        ("opera", {"max_new_tokens": 4096}, "max_new_tokens is 4096, this student has 4096"),
    ]
    for name, setting, message in cases:
        with pytest.raises(DecodingError, match=message):
            ask(task, tmp_path / "p.jsonl", make_spec(name, None, setting))
    assert not list(tmp_path.iterdir())


def test_a_tower_without_class_token_is_refused_before_the_student_is_loaded(
    task: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "student"
    shutil.copytree(task / "student", folder)
    student = Source(folder, None).spec()
    check_fit(make_spec("damro"), student)
    config = json.loads((folder / "config.json").read_text())
    config["vision_feature_select_strategy"] = "full"
    config["vision_config"]["model_type"] = "siglip_vision_model"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DecodingError, match="a class token, siglip_vision_model has none"):
        check_fit(make_spec("damro"), student)
    check_fit(make_spec("damro", None, {"variant": "reference"}), student)  # reads no tower


def test_pais_reference_is_given_the_bare_questions(task: Path, tmp_path: Path) -> None:
    plain = make_spec("pai", None, {"max_new_tokens": 6, "first_layer": 0, "gamma": 3.0})
    bare = make_spec("pai", None, {**plain.settings(), "variant": "reference"})
    ask(task, tmp_path / "a.jsonl", plain)
    ask(task, tmp_path / "b.jsonl", bare)
    ask(task, tmp_path / "c.jsonl", bare, batch_size=1)  # each record has its own question
    published, reference, alone = (
        [line["text"] for line in lines_of(tmp_path / f"{name}.jsonl")] for name in "abc"
    )
    assert published != reference == alone


def test_parts_join_to_what_one_process_writes(task: Path, tmp_path: Path) -> None:
    spec = Nucleus(max_new_tokens=5)
    whole = tmp_path / "whole.jsonl"
    ask(task, whole, spec)
    out = tmp_path / "parts" / "p.jsonl"
    first, second = (ask(task, out, spec, part=Part(index, 3)).joined for index in (3, 1))
    assert first is not None
    assert second == Joined(None, (2,), first.unreadable)
    assert (first.waiting, [record for record, _ in first.unreadable]) == ((1, 2), ["q5"])
    assert not out.exists()
    last = ask(task, out, spec, part=Part(2, 3))
    assert last.joined is not None
    assert (last.joined.answers, last.joined.waiting) == (5, ())
    assert [record for record, _ in last.joined.unreadable] == ["q5"]
    assert out.read_bytes() == whole.read_bytes()
    assert identity_path(out).read_bytes() == identity_path(whole).read_bytes()
    assert [line["id"] for line in lines_of(part_path(out, Part(2, 3)))] == ["q1", "q4"]


def test_a_part_that_was_cut_off_is_not_finished(task: Path, tmp_path: Path) -> None:
    spec, out = Nucleus(max_new_tokens=5), tmp_path / "p.jsonl"
    for index in (1, 2):
        ask(task, out, spec, part=Part(index, 2))
    whole = out.read_bytes()
    out.unlink()
    first = part_path(out, Part(1, 2))
    lines = first.read_bytes().splitlines(keepends=True)
    first.write_bytes(lines[0] + lines[1][:20])
    first.with_name(f"{first.name}.done.json").unlink()
    again = ask(task, out, spec, part=Part(2, 2))
    assert again.joined is not None
    assert again.joined.waiting == (1,)
    assert ask(task, out, spec, part=Part(1, 2)).reused == 1
    assert out.read_bytes() == whole


def test_parts_of_other_settings_are_refused_before_anything_is_answered(
    task: Path, tmp_path: Path
) -> None:
    spec, out = Nucleus(max_new_tokens=2), tmp_path / "p.jsonl"
    ask(task, out, spec, part=Part(1, 2))
    other = Nucleus(max_new_tokens=3)
    with pytest.raises(AnswersError, match=r"p\.part-1-of-2\.jsonl: was begun with another max_"):
        ask(task, out, other, part=Part(2, 2))
    assert not part_path(out, Part(2, 2)).exists()
    ask(task, out, spec, part=Part(2, 2))
    with pytest.raises(AnswersError, match=r"p\.jsonl: was begun with another max_new_tokens"):
        ask(task, out, other, part=Part(1, 3))


def test_parts_of_another_division_are_refused(task: Path, tmp_path: Path) -> None:
    spec, out = Nucleus(max_new_tokens=2), tmp_path / "p[1].jsonl"
    ask(task, out, spec, part=Part(1, 2))
    with pytest.raises(AnswersError, match=r"part-1-of-2\.jsonl: is a part of 2, this is one of 3"):
        ask(task, out, spec, part=Part(1, 3))
    assert not part_path(out, Part(1, 3)).exists()
    ask(task, tmp_path / "other.jsonl", spec, part=Part(1, 3))


def test_a_part_that_is_answered_again_is_not_finished_meanwhile(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = Nucleus(max_new_tokens=2), tmp_path / "p.jsonl"
    ask(task, out, spec, part=Part(1, 2))
    first = part_path(out, Part(1, 2))
    first.write_bytes(first.read_bytes().splitlines(keepends=True)[0])

    def fail(*_: object, **_more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("medalign.eval.generate.decode", fail)
        with pytest.raises(KeyboardInterrupt):
            ask(task, out, spec, part=Part(1, 2))
    second = ask(task, out, spec, part=Part(2, 2)).joined
    assert second is not None
    assert second.waiting == (1,)


def test_parts_are_compared_again_when_they_are_joined(task: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    for index in (1, 2):
        ask(task, out, Nucleus(max_new_tokens=2), part=Part(index, 2))
    out.unlink()
    with pytest.raises(AnswersError, match=r"p\.part-1-of-2\.jsonl: was begun with another"):
        join_parts(out, 2, {"decoder": "greedy"}, ["q0"])
    assert not out.exists()
