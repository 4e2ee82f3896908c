"""`check_student` reports whatever is wrong with a folder in its table, and goes on."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from medalign.pipeline.hygiene.finding import Check
from medalign.trainer.convert.errors import ConvertError
from medalign.trainer.preflight.student_check import check_student

ALL = {"config", "tensors", "dtype", "values", "conversion"}
PROJECTOR = "multi_modal_projector.linear_1.weight"


def no_stage(_what: str, _total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _count: None)


def look(folder: Path) -> dict[str, Check]:
    return {check.name: check for check in check_student(folder, no_stage)}


def put(path: Path, value: Any) -> None:
    """Write text, or JSON; the keys of a dictionary are added to those that are there."""
    if isinstance(value, dict):
        value = {**json.loads(path.read_text()), **value}
    path.write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.mark.parametrize(
    ("file", "value", "name", "status", "told"),
    [
        ("chat_template.jinja", "{% if %}", "processor", "failed", "chat template cannot be read"),
        ("chat_template.jinja", "{{ 1 / 0 }}", "processor", "failed", "chat template cannot be"),
        ("chat_template.jinja", "nothing", "processor", "failed", "neither text nor images"),
        ("processor_config.json", {"patch_size": 0}, "images", "failed", "patch_size is 0"),
        ("processor_config.json", {"patch_size": None}, "images", "failed", "patch_size is None"),
        ("processor_config.json", {"patch_size": "x"}, "images", "failed", "patch_size is 'x'"),
        (
            "processor_config.json",
            {"num_additional_image_tokens": "x"},
            "images",
            "failed",
            "num_additional_image_tokens is 'x'",
        ),
        (
            "processor_config.json",
            {"processor_class": "Qwen2VLProcessor"},
            "images",
            "warning",
            "processor_config.json names the class 'Qwen2VLProcessor'",
        ),
        ("processor_config.json", [], "processor", "failed", "cannot read the processor"),
        (
            "generation_config.json",
            {"eos_token_id": -1},
            "processor",
            "failed",
            "eos_token_id is -",
        ),
        (
            "generation_config.json",
            {"eos_token_id": "x"},
            "processor",
            "failed",
            "_token_id is 'x'",
        ),
        ("generation_config.json", {"eos_token_id": []}, "processor", "failed", "_token_id is []"),
        ("generation_config.json", "{", "processor", "failed", "generation_config.json cannot be"),
        ("generation_config.json", "[]", "processor", "failed", "generation_config.json cannot be"),
        ("config.json", {"image_token_index": -1}, "processor", "failed", "OverflowError: number"),
        ("config.json", {"projector_hidden_act": "foo"}, "tensors", "failed", "KeyError: 'foo'"),
        ("conversion.json", '{"weights": {}, "others": {}}', "conversion", "failed", "lists no"),
        ("conversion.json", '{"weights": [], "others": {}}', "conversion", "failed", "weights"),
        ("conversion.json", {"weights": []}, "conversion", "failed", "weights"),
        ("conversion.json", {"others": {"x": 1}}, "conversion", "failed", "x has no"),
        ("conversion.json", {"others": {"x": {"bytes": 1}}}, "conversion", "failed", "x has no"),
        ("conversion.json", {"title": None}, "conversion", "failed", "does not say its title"),
        ("conversion.json", "[]", "conversion", "failed", "is no JSON object"),
    ],
)
def test_a_file_that_says_something_odd_is_a_line_of_the_table(
    file: str, value: Any, name: str, status: str, told: str, student: Path
) -> None:
    put(student / file, value)
    found = look(student)
    assert found[name].status == status, found
    assert told in found[name].text
    assert found.keys() >= ALL


@pytest.mark.parametrize(
    "change", [{"dtype": "x"}, {"dtype": []}, {"model_type": []}, {"text_config": 3}]
)
def test_a_config_that_cannot_be_read_is_an_error_of_one_line(
    change: dict[str, Any], student: Path
) -> None:
    put(student / "config.json", change)
    with pytest.raises(ConvertError, match=f"^{student}: cannot read config.json: [^\n]*$"):
        look(student)


@pytest.mark.parametrize(
    ("mean", "std"), [([0.5], [1, 1, 1]), ("abc", [1, 1, 1]), ([0, 0, 0], [1, 0, 1])]
)
def test_a_normalisation_that_is_not_of_three_channels_fails(
    mean: Any, std: Any, student: Path
) -> None:
    path = student / "processor_config.json"
    values = json.loads(path.read_text())
    values["image_processor"].update(image_mean=mean, image_std=std)
    path.write_text(json.dumps(values))
    found = look(student)["processor"]
    assert found.status == "failed"
    assert "three" in found.text


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_a_tensor_of_whole_numbers_fails(dtype: torch.dtype, student: Path) -> None:
    index = json.loads((student / "model.safetensors.index.json").read_text())
    path = student / index["weight_map"][PROJECTOR]
    state = load_file(path)
    save_file({**state, PROJECTOR: torch.ones_like(state[PROJECTOR], dtype=dtype)}, path)
    found = look(student)["dtype"]
    assert found.status == "failed"
    assert found.details == (f"{PROJECTOR} in {path.name} is stored as {str(dtype)[6:]}",)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("</s>", ""), "writes no end token behind an answer"),
        (("+ '</s>'", "+ ('</s>' if loop.last else '')"), "writes no end token behind an answer"),
    ],
)
def test_a_template_that_ends_not_every_answer_is_a_warning(
    change: tuple[str, str], told: str, student: Path
) -> None:
    path = student / "chat_template.jinja"
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    found = look(student)["template"]
    assert found.status == "warning"
    assert told in found.text
