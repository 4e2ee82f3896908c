"""A file of the source that says something odd is one line that names it, never a traceback."""

import json
import shutil
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
ADDED = "added_tokens_decoder"
INDEX = "model.safetensors.index.json"


def put(path: Path, value: Any) -> None:
    """Write JSON; the keys of a dictionary are added to those that are there."""
    if isinstance(value, dict) and path.exists():
        value = {**json.loads(path.read_text()), **value}
    path.write_text(json.dumps(value))


def refused(converts: Converts, source: Path, told: str, **wish: Any) -> None:
    out = source.parent / "refused"
    with pytest.raises(ConvertError, match=told) as error:
        converts(source, out, "llava-med", **wish)
    assert "\n" not in str(error.value)
    assert not list(source.parent.glob("*refused*"))


@pytest.mark.parametrize(
    ("file", "value", "told"),
    [
        ("config.json", {"hidden_act": "foo"}, "hidden_act is 'foo', .* an activation"),
        ("config.json", {"rope_theta": "x"}, "rope_theta is 'x', expected a number above 0"),
        ("config.json", {"rope_theta": float("inf")}, "rope_theta is inf, expected a number"),
        ("config.json", {"rope_scaling": "x"}, "config.json.*rope_scaling is 'x'"),
        ("config.json", {"rope_parameters": [1]}, r"config.json.*rope_parameters is \[1\]"),
        ("config.json", {"num_attention_heads": 0}, "num_attention_heads is 0, expected a whole"),
        ("config.json", {"num_attention_heads": 3}, "hidden_size 64 .* num_attention_heads 3"),
        ("config.json", {"num_key_value_heads": 3}, "num_attention_heads 4 .*_value_heads 3"),
        ("config.json", {"head_dim": "x"}, "head_dim is 'x', expected a whole number"),
        ("config.json", {"vocab_size": None}, "config.json does not say vocab_size"),
        ("config.json", {"vocab_size": "x"}, "vocab_size is 'x', expected a whole number"),
        ("config.json", {"hidden_size": True}, "hidden_size is True, expected a whole number"),
        ("config.json", {"hidden_size": 1e3}, r"hidden_size is 1000\.0, expected a whole"),
        ("config.json", {"rms_norm_eps": 0}, "rms_norm_eps is 0, expected a number above 0"),
        ("config.json", {"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', .*true or"),
        ("config.json", {"layer_types": 3}, "config.json.*layer_types"),
        ("config.json", {"max_position_embeddings": [1]}, "config.json.*max_position_embeddings"),
        ("config.json", {"mm_vision_tower": ["x"]}, r"mm_vision_tower is \['x'\], expected text"),
        ("config.json", {"s2": []}, r"s2 is \[\], which a Hugging Face Llava"),
        ("config.json", {"model_type": ["x"]}, r"model_type is \['x'\]"),
        ("config.json", [], "config.json is no JSON object"),
        ("tokenizer_config.json", [], "tokenizer_config.json is no JSON object"),
        ("tokenizer_config.json", {ADDED: []}, rf"tokenizer_config.json: {ADDED} is \[\]"),
        ("tokenizer_config.json", {ADDED: {"x": {}}}, f"{ADDED} has an id 'x'"),
        ("tokenizer_config.json", {ADDED: {"5": {}}}, rf"{ADDED}, id 5: .*'content', is {{}}"),
        ("tokenizer_config.json", {ADDED: {"5": "a"}}, f"{ADDED}, id 5: .*'content', is 'a'"),
        ("added_tokens.json", [], "added_tokens.json is no JSON object"),
        ("added_tokens.json", {"<x>": "y"}, "added_tokens.json: the id of '<x>' is 'y'"),
        (INDEX, [], "index.json is no JSON object"),
        (INDEX, {"weight_map": []}, r"index.json: weight_map is \[\], expected the file of each"),
        (INDEX, {"weight_map": {"a": 5}}, "index.json: weight_map gives a the file 5"),
        (INDEX, {"weight_map": {"a": "../a"}}, r"index.json names a file outside its folder"),
    ],
)
def test_a_file_that_says_something_odd(
    file: str, value: Any, told: str, source: Path, converts: Converts
) -> None:
    put(source / file, value)
    refused(converts, source, told)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", INDEX])
@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_json(file: str, data: bytes, source: Path, converts: Converts) -> None:
    (source / file).write_bytes(data)
    refused(converts, source, f"{file} is no JSON")


@pytest.mark.parametrize(
    ("file", "value", "told"),
    [
        ("config.json", {"vision_config": {"hidden_size": "x"}}, "config.json.*hidden_size"),
        ("config.json", {"vision_config": 3}, "other/config.json|other: cannot read config.json"),
        ("config.json", {"vision_config": {"patch_size": 0}}, "patch_size 0 make no square grid"),
        ("config.json", {"vision_config": {"image_size": [8]}}, r"image_size \[8\] and"),
        ("config.json", [], "config.json is no JSON object"),
        ("preprocessor_config.json", [], "preprocessor_config.json is no JSON object"),
        ("preprocessor_config.json", {"size": {"a": [1]}}, "size is {'a': "),
        ("preprocessor_config.json", {"image_mean": [0.5]}, r"image_mean is \[0.5\], .*three"),
        ("preprocessor_config.json", {"image_mean": "abc"}, "image_mean is 'abc', .*three"),
        ("preprocessor_config.json", {"image_std": [1, 0, 1]}, r"image_std is \[1, 0, 1\], .*abov"),
        ("preprocessor_config.json", {"image_std": [1, float("nan"), 1]}, "image_std is .*nan"),
        ("preprocessor_config.json", {"image_mean": []}, r"image_mean is \[\], .*three"),
    ],
)
def test_a_tower_that_says_something_odd(
    file: str,
    value: Any,
    told: str,
    made: Callable[..., Path],
    clip: Path,
    converts: Converts,
    tmp_path: Path,
) -> None:
    other = Path(shutil.copytree(clip, tmp_path / "other"))
    source = Path(shutil.copytree(made("llava-med", tower="none"), tmp_path / "med"))
    put(other / file, value)
    refused(converts, source, told, vision_tower=other)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_a_tensor_of_whole_numbers_is_refused_before_anything_is_written(
    dtype: torch.dtype, source: Path, converts: Converts
) -> None:
    path = source / "model-00001-of-00002.safetensors"
    state = load_file(path)
    save_file({**state, "model.norm.weight": torch.ones(64, dtype=dtype)}, path)
    refused(converts, source, "model.norm.weight is stored as .*: quantised weights")


def test_a_pickled_tensor_of_eight_bits_is_refused_before_anything_is_written(
    originals: ModuleType, converts: Converts, tmp_path: Path
) -> None:
    source = originals.make_llava_med(tmp_path / "med", form="bin", shards=1)
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    state["model.norm.weight"] = torch.ones(64).to(torch.float8_e4m3fn)
    torch.save(state, source / "pytorch_model.bin")
    refused(converts, source, "model.norm.weight is stored as float8_e4m3fn: quantised weights")


def test_a_tied_head_that_differs_leaves_nothing_behind(source: Path, converts: Converts) -> None:
    put(source / "config.json", {"tie_word_embeddings": True})
    refused(converts, source, "lm_head.weight differs from the embedding")


class Intruder:
    """Would run code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str, ...]]:
        return print, ("an intruder",)


def save(path: Path, content: Any, *, zipped: bool = True) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: save(p, {"a": Intruder()}), "holds other objects than tensors by name, .* code"),
        (lambda p: save(p, {"a": torch.ones(2)}, zipped=False), "of torch before 1.6.*torch.save"),
        (lambda p: p.write_bytes(p.read_bytes()[:-9]), "is damaged or cut short; copy it again"),
        (lambda p: p.write_bytes(b"not torch"), "is damaged or cut short; copy it again"),
    ],
)
def test_a_pickle_is_refused_in_our_own_words(
    change: Callable[[Path], Any],
    told: str,
    originals: ModuleType,
    converts: Converts,
    tmp_path: Path,
) -> None:
    source = originals.make_llava_med(tmp_path / "med", form="bin", shards=1)
    change(source / "pytorch_model.bin")
    refused(converts, source, told)
