import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medalign.trainer.recipe.sections import LoraSection
from medalign.trainer.student import (
    add_adapter,
    llava_of,
    load_base,
    load_student,
    save_adapter,
)
from medalign.trainer.students.spec import StudentError, read_student
from medalign.trainer.students.tiny import TinyStudent, make_student

ABOUT = {"recipe": {"loss": {"layer": 2}, "student": {"path": None, "geometry": "processor"}}}


@pytest.fixture
def copied(students: Callable[..., Path], tmp_path: Path) -> Path:
    """A student's folder that a test may damage."""
    target = tmp_path / "student"
    shutil.copytree(students(), target)
    return target


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def shaken(folder: Path, **changes: Any) -> Any:
    """A student with an adapter whose every trained parameter moved away from its start."""
    torch.manual_seed(0)
    made = add_adapter(
        load_base(folder, torch.float32),
        2,
        LoraSection(rank=4),
        **{"rotation": True, "projector": True, **changes},
    )
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


def inputs_of(model: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    token = llava_of(model).config.image_token_id
    words = torch.randint(5, 200, (2, 6), generator=generator)
    ids = torch.cat([words[:, :2], torch.full((2, 16), token), words[:, 2:]], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(2, 3, 56, 56, generator=generator),
    }


def answer(model: Any, tokens: int = 8) -> torch.Tensor:
    llava = llava_of(model)
    out: torch.Tensor = llava.generate(
        **inputs_of(model), do_sample=False, max_new_tokens=tokens, eos_token_id=None
    )
    return out


@pytest.mark.parametrize("text", ["mistral", "qwen2"])
def test_a_saved_adapter_gives_the_same_tokens_after_loading(
    students: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    folder = students(text)
    model = shaken(folder)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    save_adapter(model, trained, tmp_path / "adapter", ABOUT)
    again = load_student(load_base(folder, torch.float32), tmp_path / "adapter")
    assert torch.equal(answer(again), answer(model))
    assert not torch.equal(answer(load_base(folder, torch.float32)), answer(model))
    with torch.no_grad():
        a = llava_of(again)(**inputs_of(again)).logits
        b = llava_of(model)(**inputs_of(model)).logits
    assert torch.equal(a, b)


def test_every_trained_tensor_is_in_the_adapter_file(
    students: Callable[..., Path], tmp_path: Path
) -> None:
    model = shaken(students())
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    save_adapter(model, {f"student.{n}": p for n, p in trained.items()}, tmp_path, ABOUT)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == len(trained)
    assert sum(t.numel() for t in saved.values()) == sum(p.numel() for p in trained.values())
    rotation = next(v for k, v in saved.items() if k.endswith("layers.2.visual_rotation.weight"))
    assert rotation.abs().max() > 0


def test_lora_is_on_every_linear_layer_of_the_language_model_and_nowhere_else(
    students: Callable[..., Path],
) -> None:
    model = shaken(students())
    lora = {n.rsplit(".lora_A", 1)[0] for n, _ in model.named_parameters() if ".lora_A" in n}
    assert len(lora) == 4 * 7  # q, k, v, o, gate, up, down of four layers
    assert all("language_model" in name for name in lora)


def test_the_rotation_takes_effect_in_prefill_and_not_on_generated_tokens(
    students: Callable[..., Path],
) -> None:
    model = shaken(students())
    llava = llava_of(model)
    block = llava.model.language_model.layers[2]
    seen: list[int] = []
    block.visual_rotation.register_forward_hook(
        lambda _m, args, _out: seen.append(int(args[1].sum()))
    )
    generated = answer(model, tokens=4)
    assert seen == [32]  # two prompts of 16 visual tokens, and nothing after prefill
    with torch.no_grad():  # cached decoding equals one pass over the whole text
        whole = llava(
            input_ids=generated,
            attention_mask=torch.ones_like(generated),
            pixel_values=inputs_of(model)["pixel_values"],
        ).logits
    prompt = inputs_of(model)["input_ids"].shape[1]
    assert torch.equal(whole[:, prompt - 1 : -1].argmax(-1), generated[:, prompt:])


def test_a_placeholder_that_the_model_generates_itself_is_not_rotated(
    students: Callable[..., Path],
) -> None:
    llava = llava_of(shaken(students()))
    seen: list[int] = []
    llava.model.language_model.layers[2].visual_rotation.register_forward_hook(
        lambda _m, args, _out: seen.append(int(args[1].sum()))
    )
    token = llava.config.image_token_id
    forced = torch.full((1, llava.config.text_config.vocab_size), -1e9)
    forced[0, token] = 0.0
    out = llava.generate(
        **inputs_of(llava),
        do_sample=False,
        max_new_tokens=4,
        logits_processor=[lambda _ids, scores: forced.expand_as(scores)],
    )
    assert (out[:, -4:] == token).all()
    assert seen == [32]


def test_a_rotation_of_zero_and_no_training_leaves_the_base_model(
    students: Callable[..., Path],
) -> None:
    base = load_base(students(), torch.float32)
    with torch.no_grad():
        before = base(**inputs_of(base)).logits
        model = add_adapter(base, 2, LoraSection(rank=4), rotation=True, projector=True).eval()
        assert torch.equal(llava_of(model)(**inputs_of(model)).logits, before)


def test_the_projector_is_frozen_when_its_rate_is_zero(students: Callable[..., Path]) -> None:
    model = shaken(students(), projector=False)
    assert not [n for n, p in model.named_parameters() if "projector" in n and p.requires_grad]


def test_a_layer_that_the_student_lacks_is_refused(students: Callable[..., Path]) -> None:
    base = load_base(students(), torch.float32)
    with pytest.raises(StudentError, match=r"loss.layer is 4, the student has layers 0 to 3"):
        add_adapter(base, 4, LoraSection(), rotation=True, projector=True)


def test_an_adapter_of_another_student_is_refused(
    students: Callable[..., Path], tmp_path: Path
) -> None:
    model = shaken(students())
    save_adapter(model, dict(model.named_parameters()), tmp_path, ABOUT)
    other = load_base(students("mistral", layers=2), torch.float32)
    with pytest.raises(StudentError, match="rotates layer 2, the student has 2 layers"):
        load_student(other, tmp_path)
    wider = load_base(students("mistral", width=128), torch.float32)
    with pytest.raises(StudentError, match="does not fit the student"):
        load_student(wider, tmp_path)


def test_a_folder_that_is_no_adapter_is_refused(
    students: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(StudentError, match="is no adapter"):
        load_student(load_base(students(), torch.float32), tmp_path)


def test_a_missing_student_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match="a local folder in Hugging Face format"):
        read_student(tmp_path / "nowhere")
    with pytest.raises(StudentError, match=r"has no config\.json"):
        read_student(tmp_path)


def test_another_kind_of_model_is_refused_by_name(copied: Path) -> None:
    edit(copied / "config.json", lambda c: c.update(model_type="mistral"))
    with pytest.raises(StudentError, match="is a 'mistral' model; students are `llava`"):
        read_student(copied)


def test_a_config_that_is_no_json_is_refused(copied: Path) -> None:
    (copied / "config.json").write_text("{")
    with pytest.raises(StudentError, match="cannot read"):
        read_student(copied)


def test_a_student_without_an_image_token_is_refused(copied: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        key = "image_token_index" if "image_token_index" in config else "image_token_id"
        config[key] = 77

    edit(copied / "config.json", change)
    with pytest.raises(StudentError, match="the student has no image token"):
        read_student(copied)


def test_a_student_without_a_chat_template_is_refused(copied: Path) -> None:
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(StudentError, match="has no chat template"):
        read_student(copied)


def test_weights_that_lack_a_tensor_are_refused_by_its_name(copied: Path) -> None:
    from safetensors.torch import save_file

    weights = load_file(copied / "model.safetensors")
    gone = next(name for name in weights if "layers.1.mlp.up_proj" in name)
    save_file(
        {n: v for n, v in weights.items() if n != gone},
        copied / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(StudentError, match=r"missing keys: .*layers\.1\.mlp\.up_proj"):
        load_base(copied, torch.float32)


def test_weights_cut_short_are_refused_by_the_folders_name(copied: Path) -> None:
    whole = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StudentError, match="student: cannot load the student"):
        load_base(copied, torch.float32)


def test_an_adapter_cut_short_is_refused(students: Callable[..., Path], tmp_path: Path) -> None:
    model = shaken(students())
    save_adapter(model, dict(model.named_parameters()), tmp_path, ABOUT)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StudentError, match="is damaged"):
        load_student(load_base(students(), torch.float32), tmp_path)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, "pad"),
        ({"do_pad": False}, "crop"),
        (
            {"do_pad": False, "do_center_crop": False, "size": {"height": 56, "width": 56}},
            "stretch",
        ),
    ],
)
def test_the_geometry_is_the_processors(copied: Path, changes: dict[str, Any], wanted: str) -> None:
    edit(copied / "processor_config.json", lambda c: c["image_processor"].update(changes))
    assert read_student(copied).geometry == wanted


def test_a_processor_that_gives_another_square_is_refused(copied: Path) -> None:
    size = {"size": {"shortest_edge": 70}, "do_pad": False}
    edit(copied / "processor_config.json", lambda c: c["image_processor"].update(size))
    with pytest.raises(StudentError, match=r"size .*70.* set student\.geometry"):
        read_student(copied)
    assert read_student(copied, "pad").geometry == "pad"


def test_equal_sizes_give_an_equal_student(tmp_path: Path) -> None:
    sizes = TinyStudent(image_size=56, layers=1, tower_layers=2)
    for name in ("a", "b"):
        make_student(tmp_path / name, ["Is it a rib?"], sizes)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
