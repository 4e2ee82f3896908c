"""Exports in a process that cannot import medalign, against the adapters in this one."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from medalign.trainer.export.export import Wish, export
from medalign.trainer.export.processor import read_processor
from medalign.trainer.export.provenance import find_origin
from medalign.trainer.student import llava_of, load_base, load_student

KINDS = ("mistral", "qwen2", "plain")
rotated = pytest.mark.parametrize("kind", ["mistral", "qwen2"])
every = pytest.mark.parametrize("kind", KINDS)


@dataclass(frozen=True)
class Case:
    """A run's export, and what came out of it in the other process."""

    place: Path
    student: Path
    adapter: Any
    given: dict[str, Tensor]
    found: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def out(self) -> Path:
        return self.place / "out"


def as_published(student: Path, folder: Path) -> Path:
    """The student as folders on the hub are: older names of tensors, words tied to the head."""
    shutil.copytree(student, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    older = {name.replace("tower.", "tower.vision_model."): t for name, t in tensors.items()}
    save_file(older, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def prompts(token: int) -> dict[str, Tensor]:
    """Two prompts with an image each; the second is shorter and padded on the left."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(5, 200, (2, 9), generator=generator)
    ids = torch.cat([words[:, :4], torch.full((2, 16), token), words[:, 4:]], dim=1)
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = 0, 0
    pixels = torch.randn(2, 3, 56, 56, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


@pytest.fixture(scope="module")
def cases(
    students: Callable[..., Path],
    make_run: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Case]:
    root = tmp_path_factory.mktemp("alone")
    made = {}
    for kind in KINDS:
        place = root / kind
        student = students("qwen2" if kind == "qwen2" else "mistral")
        if kind == "qwen2":
            student = as_published(student, place / "student")
        run = make_run(place / "run", student, rotation=kind != "plain")
        export(run, place / "out", Wish(images_checked=1), lambda _: None)
        base = load_base(student, torch.float32)
        adapter = llava_of(load_student(base, find_origin(run).adapter))
        given = prompts(adapter.config.image_token_id)
        save_file(given, place / "inputs.safetensors")
        Image.linear_gradient("L").convert("RGB").resize((90, 60)).save(place / "image.png")
        made[kind] = (place, student, adapter, given)
    run_alone(root, [root / kind for kind in KINDS])
    return {
        kind: Case(
            *parts,
            load_file(parts[0] / "found.safetensors"),
            json.loads((parts[0] / "found.json").read_text()),
        )
        for kind, parts in made.items()
    }


def run_alone(root: Path, places: list[Path]) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-I", Path(__file__).with_name("alone.py"), *places],
        env={**clean, "HF_HOME": str(root / "hf"), "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@every
def test_nothing_of_medalign_was_loaded_and_no_tensor_was_missing(
    cases: dict[str, Case], kind: str
) -> None:
    assert cases[kind].facts["medalign"] == []
    assert cases[kind].facts["report"] == {}


@every
def test_the_export_gives_the_adapters_logits_on_a_padded_batch(
    cases: dict[str, Case], kind: str
) -> None:
    case = cases[kind]
    tokens = case.given["attention_mask"].bool()
    with torch.no_grad():
        wanted = case.adapter(**case.given).logits[tokens]
        base = load_base(case.student, torch.float32)(**case.given).logits[tokens]
    assert torch.allclose(case.found["logits"][tokens], wanted, atol=1e-4)
    assert (base - wanted).abs().max() > 0.1


@every
def test_the_export_generates_the_adapters_tokens(cases: dict[str, Case], kind: str) -> None:
    case = cases[kind]
    wanted = case.adapter.generate(
        **case.given, do_sample=False, max_new_tokens=8, eos_token_id=None
    )
    assert torch.equal(case.found["tokens"], wanted)


@rotated
def test_the_rotation_matters_and_is_kept_by_saving_again(
    cases: dict[str, Case], kind: str
) -> None:
    case = cases[kind]
    rotation = case.adapter.model.language_model.layers[2].visual_rotation
    with torch.no_grad():
        kept = rotation.weight.clone()
        rotation.weight.zero_()
        without = case.adapter(**case.given).logits
        rotation.weight.copy_(kept)
    assert (case.found["logits"] - without).abs().max() > 0.1
    assert torch.equal(case.found["again"], case.found["logits"])


@every
def test_a_prompt_without_an_image_works(cases: dict[str, Case], kind: str) -> None:
    case = cases[kind]
    text = {name: case.given[name][:1, -5:] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        wanted = case.adapter(**text).logits
    assert torch.allclose(case.found["text_only"], wanted, atol=1e-4)


@every
def test_embeddings_in_place_of_tokens_are_rotated_too(cases: dict[str, Case], kind: str) -> None:
    assert torch.equal(cases[kind].found["embedded"], cases[kind].found["logits"])


@every
def test_the_head_is_the_students(cases: dict[str, Case], kind: str) -> None:
    tensors = load_file(cases[kind].student / "model.safetensors")
    tied = kind == "qwen2"
    name = "model.embed_tokens" if tied else "lm_head"
    assert torch.equal(cases[kind].found["lm_head"], tensors[f"language_model.{name}.weight"])


@every
def test_tensors_keep_the_names_that_the_student_gave_them(
    cases: dict[str, Case], kind: str
) -> None:
    names = set(load_file(cases[kind].student / "model.safetensors"))
    found = set(load_file(cases[kind].out / "model.safetensors"))
    added = set() if kind == "plain" else {"language_model.model.layers.2.visual_rotation.weight"}
    assert found == names | added


@every
def test_a_pipeline_and_the_cards_code_answer_as_the_adapter_does(
    cases: dict[str, Case], kind: str
) -> None:
    case = cases[kind]
    processor = read_processor(case.out)
    image = Image.open(case.place / "image.png")

    def said(question: str, tokens: int) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        turns = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(turns, add_generation_prompt=True)
        given = processor(text=text, images=image, return_tensors="pt")
        made = case.adapter.generate(**given, do_sample=False, max_new_tokens=tokens)
        new = made[0, given["input_ids"].shape[1] :]
        decoded: str = processor.decode(new, skip_special_tokens=True)
        return decoded

    assert case.facts["said"] == said("Which organ?", 4)
    assert case.facts["card"].strip() == said("Which organ is shown?", 64).strip()
    assert case.facts["padding_side"] == "left"


@rotated
def test_without_trust_in_its_code_a_rotated_export_is_refused_not_loaded_without_w(
    cases: dict[str, Case], kind: str
) -> None:
    assert "trust_remote_code=True" in cases[kind].facts["refused"]


def test_a_run_without_rotation_becomes_a_plain_llava_folder(cases: dict[str, Case]) -> None:
    case = cases["plain"]
    config = json.loads((case.out / "config.json").read_text())
    assert case.facts["refused"] == ""
    assert config["model_type"] == "llava"
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert "auto_map" not in config
    assert not list(case.out.glob("*.py"))
    assert "vllm serve" in (case.out / "README.md").read_text()
