"""What cannot be converted is refused by name before anything is written."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from medalign.trainer.convert.convert import Converted
from medalign.trainer.convert.errors import ConvertError

Converts = Callable[..., Converted]
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def refused(converts: Converts, source: Path, told: str, family: str = "llava-med") -> None:
    """Expect one line that matches, and nothing written."""
    out = source.parent / "refused"
    with pytest.raises(ConvertError, match=told) as error:
        converts(source, out, family)
    assert "\n" not in str(error.value)
    assert not out.exists()
    assert not list(source.parent.glob(".refused*"))


def test_folders_that_are_no_checkpoint(converts: Converts, tmp_path: Path) -> None:
    refused(converts, tmp_path / "gone", "no checkpoint at .*gone: a local folder is expected")
    (tmp_path / "empty").mkdir()
    refused(converts, tmp_path / "empty", "has no config.json")
    (tmp_path / "empty" / "config.json").write_text("{")
    refused(converts, tmp_path / "empty", "config.json is no JSON")


def test_the_wrong_family_is_told_with_the_right_one(
    source: Path, made: Callable[..., Path], converts: Converts
) -> None:
    told = (
        r"model_type is 'llava_mistral', HuatuoGPT-Vision-7B \(--family huatuo-vision\) has "
        r"'llava_qwen2'; that is LLaVA-Med-1.5: give --family llava-med"
    )
    refused(converts, source, told, "huatuo-vision")
    refused(converts, made("huatuo-vision"), "give --family huatuo-vision")
    change_config(source, model_type="bert")
    refused(converts, source, r"model_type is 'bert', LLaVA-Med-1.5 .* has 'llava_mistral'$")
    change_config(source, model_type="llava")
    refused(converts, source, "is a Hugging Face Llava already .*medalign student check")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mm_projector_type", "linear"),
        ("mm_projector_type", ...),
        ("mm_vision_select_feature", "cls_patch"),
        ("mm_use_im_start_end", True),
        ("mm_patch_merge_type", "spatial_unpad"),
        ("mm_resampler_type", "perceiver"),
        ("image_aspect_ratio", "anyres"),
        ("s2", True),
        ("quantization_config", {"load_in_4bit": True}),
    ],
)
def test_settings_that_the_converted_model_could_not_follow(
    key: str, value: Any, source: Path, converts: Converts
) -> None:
    change_config(source, **{key: value})
    found = None if value is ... else value
    refused(converts, source, re.escape(f"config.json: {key} is {found!r}, which a Hugging Face"))


def test_numbers_that_do_not_fit(source: Path, converts: Converts) -> None:
    change_config(source, mm_vision_select_layer=-9)
    refused(converts, source, "mm_vision_select_layer is -9, the vision tower has 3 layers")
    change_config(source, mm_vision_select_layer=[-2, -5])
    refused(converts, source, r"mm_vision_select_layer must be one number, is \[-2, -5\]")
    change_config(source, mm_vision_select_layer=-2, mm_hidden_size=1024)
    refused(converts, source, "the vision tower is 64 wide, .* says mm_hidden_size 1024")
    change_config(source, mm_hidden_size=64, num_hidden_layers="four")
    refused(converts, source, "config.json: .*num_hidden_layers.*four")
    change_config(source, num_hidden_layers=4, rope_theta=..., hidden_size=...)
    refused(converts, source, "config.json does not say hidden_size, rope_theta")
    change_config(source, rope_theta=1e6, hidden_size=64, vocab_size=32000)
    refused(converts, source, "vocab_size is 32000, the embedding has 420 rows")


def test_unknown_settings_are_reported_not_refused(
    source: Path, converts: Converts, tmp_path: Path
) -> None:
    change_config(source, brand_new_setting=7)
    done = converts(source, tmp_path / "out", "llava-med")
    assert done.report["config_keys_ignored"] == {"brand_new_setting": 7}


def test_a_shard_that_is_missing(source: Path, converts: Converts) -> None:
    (source / SECOND).unlink()
    refused(converts, source, f"names 2 files, 1 of them missing: {SECOND}; copy the folder again")


def test_a_shard_that_is_cut_short(source: Path, converts: Converts) -> None:
    data = (source / SECOND).read_bytes()
    (source / SECOND).write_bytes(data[:-10])
    refused(converts, source, f"{SECOND} is damaged or cut short .*; copy it again")
    (source / SECOND).write_bytes(data[:5])
    refused(converts, source, f"{SECOND} is damaged or cut short")


def test_a_pickled_shard_that_is_cut_short(
    originals: ModuleType, converts: Converts, tmp_path: Path
) -> None:
    source = originals.make_llava_med(tmp_path / "med", form="bin")
    path = source / "pytorch_model-00002-of-00002.bin"
    path.write_bytes(path.read_bytes()[:-100])
    refused(converts, source, f"{path.name} is damaged or cut short; copy it again")


class Sneaky:
    """Would run code when it is unpickled."""

    ran = False

    def __reduce__(self) -> Any:
        return (setattr, (Sneaky, "ran", True))


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    originals: ModuleType, converts: Converts, tmp_path: Path
) -> None:
    source = originals.make_llava_med(tmp_path / "med", form="bin", shards=1)
    path = source / "pytorch_model.bin"
    torch.save({"model.norm.weight": torch.zeros(3), "x": Sneaky()}, path)
    refused(
        converts,
        source,
        "holds other objects than tensors by name, .*nothing but tensors is ever unpickled",
    )
    assert not Sneaky.ran
    torch.save([torch.zeros(3)], path)
    refused(converts, source, "holds something else than tensors by name")


def test_an_index_that_does_not_fit_its_files(source: Path, converts: Converts) -> None:
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    files = index["weight_map"]
    missing = {**files, "model.layers.9.input_layernorm.weight": FIRST}
    path.write_text(json.dumps({"weight_map": missing}))
    refused(converts, source, rf"{FIRST} lacks model.layers.9.input_layernorm.weight \(1 in all\)")
    fewer = {k: v for k, v in files.items() if k != "model.norm.weight"}
    path.write_text(json.dumps({"weight_map": fewer}))
    refused(converts, source, r"also holds model.norm.weight \(1 in all\)")
    path.write_text(json.dumps({"weight_map": {**files, "model.norm.weight": "../elsewhere"}}))
    refused(converts, source, "names a file outside its folder: ../elsewhere")
    path.write_text("[]")
    refused(converts, source, "index.json is no JSON object")


def rewrite(source: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a checkpoint, index and all, into one file."""
    state = load_file(source / FIRST) | load_file(source / SECOND)
    for path in source.glob("model*"):
        path.unlink()
    change(state)
    save_file(state, source / "model.safetensors")


def test_missing_unexpected_and_misshapen_tensors_are_all_named_at_once(
    source: Path, converts: Converts
) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        state.pop("model.layers.1.mlp.up_proj.weight")
        state["model.segmenter.weight"] = torch.zeros(2)
        state["model.layers.9.input_layernorm.weight"] = torch.zeros(64)
        state["model.mm_projector.0.bias"] = torch.zeros(3)

    rewrite(source, change)
    told = (
        r"unexpected tensors: model.segmenter.weight, model.layers.9.input_layernorm.weight; "
        r"tensors missing: .*layers.1.mlp.up_proj.weight; tensors of another shape than "
        r"config.json gives: model.mm_projector.0.bias \(3,\) instead of \(64,\)"
    )
    refused(converts, source, told)


def test_a_projector_of_another_depth_is_refused(source: Path, converts: Converts) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        state["model.mm_projector.4.weight"] = torch.zeros(64, 64)

    rewrite(source, change)
    refused(converts, source, "unexpected tensors: model.mm_projector.4.weight")


def test_quantised_tensors_are_refused(source: Path, converts: Converts) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        state["model.norm.weight"] = torch.zeros(64, dtype=torch.int8)

    rewrite(source, change)
    refused(converts, source, "model.norm.weight is stored as int8")


def test_no_weights_at_all(source: Path, converts: Converts) -> None:
    for path in source.glob("model*"):
        path.unlink()
    refused(converts, source, "holds no weights: no safetensors and no pytorch_model")


def test_places_that_would_cost_somebody_elses_files(
    source: Path, converts: Converts, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("mine")
    for out, told in (
        (source / "hf", "is inside the source"),
        (source, "is inside the source"),
        (tmp_path, "holds the source"),
        (mine, "is not empty and holds no conversion"),
        (mine / "thesis.tex", "is a file"),
    ):
        with pytest.raises(ConvertError, match=f"--out .* {told}.*choose another place"):
            converts(source, out, "llava-med")
    assert (mine / "thesis.tex").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert converts(source, tmp_path / "empty", "llava-med").out == tmp_path / "empty"


def test_two_conversions_to_one_place(source: Path, converts: Converts, tmp_path: Path) -> None:
    from medalign.trainer.convert.output_folder import Workplace

    with (
        Workplace(tmp_path / "out").held(),
        pytest.raises(ConvertError, match="another process is writing"),
    ):
        converts(source, tmp_path / "out", "llava-med")
