"""`check_student` finds what is wrong with a folder, each fault by its own name."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers

from medalign.pipeline.hygiene.finding import Check, lines, worst
from medalign.trainer.convert.errors import ConvertError
from medalign.trainer.preflight.student_check import check_student

NAMES = [
    "config", "tensors", "dtype", "values", "conversion",
    "tokenizer", "token ids", "images", "template", "generation",
]  # fmt: skip
NORM = "language_model.model.norm.weight"


def no_stage(_what: str, _total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _count: None)


def look(folder: Path, **options: Any) -> dict[str, Check]:
    return {check.name: check for check in check_student(folder, no_stage, **options)}


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def change_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], Any]) -> None:
    """Change one tensor; None takes it away."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    file = folder / index["weight_map"][name]
    state = load_file(file)
    changed = change(state.pop(name))
    if changed is None:
        del index["weight_map"][name]
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        state[name] = changed
    save_file(state, file, metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["llava-med", "huatuo-vision"])
def test_a_converted_folder_is_whole(family: str, converted: Callable[..., Path]) -> None:
    found = look(converted(family), forward=True)
    assert [check.status for check in found.values()] == ["ok"] * 11
    assert list(found) == [*NAMES, "forward"]
    assert found["values"].text == "every value finite, no matrix all zero"
    assert "padded to a square with the mean colour (122, 116, 104)" in found["images"].text


def test_a_student_that_transformers_saved_is_whole(students: Callable[..., Path]) -> None:
    found = look(students("qwen2"))
    assert worst(found.values()) == "ok"
    assert "conversion" not in found


def nothing(_tensor: torch.Tensor) -> None:
    return None


@pytest.mark.parametrize(
    ("change", "name", "status", "told"),
    [
        (nothing, "tensors", "failed", "missing: model.language_model.norm.weight"),
        (lambda t: t[:3].clone(), "tensors", "failed", r"shape of .*norm.weight: \(3,\)"),
        (lambda t: t.where(t != t[5], torch.nan), "values", "failed", "not finite"),
        (lambda t: t.float(), "dtype", "warning", "bfloat16 x 97, float32 x 1"),
    ],
)
def test_a_tensor_at_fault(
    change: Callable[[torch.Tensor], Any], name: str, status: str, told: str, student: Path
) -> None:
    change_tensor(student, NORM, change)
    found = look(student)
    assert found[name].status == status
    shown = " ".join([found[name].text, *found[name].details])
    assert re.search(told, shown), shown
    assert found["conversion"].status == "failed"  # the file is not as it was converted


@pytest.mark.parametrize(
    ("name", "status", "details"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", "ok", ()),
        ("extra.weight", "failed", ("unexpected: extra.weight",)),
    ],
)
def test_an_unexpected_tensor_fails_and_a_needless_one_does_not(
    name: str, status: str, details: tuple[str, ...], student: Path
) -> None:
    save_file({name: torch.ones(2)}, student / "model-extra.safetensors")
    change_json(
        student / "model.safetensors.index.json",
        lambda index: index["weight_map"].update({name: "model-extra.safetensors"}),
    )
    found = look(student)["tensors"]
    assert (found.status, found.details) == (status, details)


def test_a_matrix_of_zeros_is_a_warning(student: Path) -> None:
    name = "multi_modal_projector.linear_1.weight"
    change_tensor(student, name, torch.zeros_like)
    found = look(student)["values"]
    assert found.status == "warning"
    assert found.details == (f"{name} in model-00004-of-00007.safetensors is all zero",)


def test_weights_that_are_missing_or_cut_short(student: Path) -> None:
    path = student / "model-00002-of-00007.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    found = look(student)
    assert found["tensors"].status == "failed"
    assert "is damaged or cut short" in found["tensors"].text
    path.unlink()
    assert "1 of them missing: model-00002-of-00007.safetensors" in look(student)["tensors"].text


@pytest.mark.parametrize(
    ("file", "change", "name", "status", "told"),
    [
        ("config.json", {"vision_feature_layer": 9}, "config", "failed", "the vision tower has 3"),
        ("config.json", {"vision_feature_layer": -1}, "config", "warning", "hidden state -1"),
        ("config.json", {"image_token_index": 7}, "processor", "failed", "no image token"),
        ("config.json", {"dtype": "float16"}, "dtype", "warning", "config.json says float16"),
        ("generation_config.json", {"eos_token_id": 3}, "template", "failed", "without a token"),
        ("generation_config.json", {"eos_token_id": 9999}, "generation", "failed", "cannot say"),
        ("generation_config.json", {"pad_token_id": None}, "generation", "warning", "no padding"),
        ("processor_config.json", {"patch_size": 28}, "images", "failed", "writes 4 tokens"),
        (
            "processor_config.json",
            {"num_additional_image_tokens": 0},
            "images",
            "failed",
            "writes 15 tokens for an image, the tower gives 16",
        ),
    ],
)
def test_a_setting_at_fault(
    file: str, change: dict[str, Any], name: str, status: str, told: str, student: Path
) -> None:
    change_json(student / file, lambda values: values.update(change))
    found = look(student)
    assert found[name].status == status, found[name]
    assert told in found[name].text
    assert found["conversion"].status == "warning"
    assert found["conversion"].details == (f"{file} is not as it was converted",)


def test_an_image_processor_that_cuts_out_the_middle_is_a_warning(student: Path) -> None:
    change_json(
        student / "processor_config.json", lambda v: v["image_processor"].update(do_pad=False)
    )
    found = look(student)["images"]
    assert (found.status, "geometry crop" in found.text) == ("warning", True)


def test_a_tokenizer_that_leaves_the_blank_behind_the_image_away_is_a_warning(
    student: Path,
) -> None:
    """As transformers' own LlamaTokenizer does since it is no longer `legacy`."""
    path = student / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.save(str(path))
    change_json(
        path,
        lambda values: values.update(
            normalizer=None,
            pre_tokenizer={
                "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False
            },
        ),
    )  # fmt: skip
    found = look(student)["token ids"]
    assert found.status == "warning"
    assert "as when cut at the image" in found.text
    assert len(found.details) > 3


def test_a_template_that_does_not_extend_its_own_prompt_fails(student: Path) -> None:
    path = student / "chat_template.jinja"
    path.write_text(path.read_text().replace("' ASSISTANT:'", "' DOCTOR:'"))
    found = look(student)["template"]
    assert found.status == "failed"
    assert "does not extend its own prompt" in found.text


def test_a_folder_that_is_no_converted_student_is_an_error_that_says_what_to_do(
    made: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(
        ConvertError, match=r"convert it first: medalign student convert .* llava-med"
    ):
        check_student(made("llava-med"), no_stage)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "medalign_llava"}))
    with pytest.raises(ConvertError, match="is an export with a rotation and code of its own"):
        check_student(tmp_path, no_stage)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConvertError, match="no student at"):
        check_student(tmp_path / "gone", no_stage)
    with pytest.raises(ConvertError, match=r"has no config\.json"):
        check_student(tmp_path, no_stage)


def test_lines_carry_advice_and_details(student: Path) -> None:
    change_tensor(student, NORM, nothing)
    shown = list(lines(list(look(student).values())))
    at = next(k for k, line in enumerate(shown) if line.startswith("failed   tensors"))
    assert shown[at].endswith("; copy or convert the folder again")
    assert shown[at + 1].strip() == "missing: model.language_model.norm.weight"
