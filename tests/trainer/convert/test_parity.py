"""The converted model says what the original's own parts say, from the source's tensors."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from medalign.trainer.convert.convert import Converted
from medalign.trainer.export.processor import read_processor
from medalign.trainer.student import load_base
from medalign.trainer.students.spec import read_student

TEXT: dict[str, tuple[Any, Any]] = {
    "llava-med": (MistralConfig, MistralForCausalLM),
    "huatuo-vision": (Qwen2Config, Qwen2ForCausalLM),
}
INSIDE = "model.vision_tower.vision_tower.vision_model."
EXACT = {"dtype": torch.float32}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llava-med", {}),
    ("llava-med", {"form": "bin"}),
    ("llava-med", {"config": (("mm_vision_select_layer", -3),)}),
    ("huatuo-vision", {}),
    ("huatuo-vision", {"tower": "beside", "shards": 1}),
]


def tensors_of(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    for path in sorted(folder.glob("pytorch_model*.bin")):
        found |= torch.load(path, weights_only=True)
    return found


def load_tower(originals: ModuleType, state: Mapping[str, Tensor]) -> Any:
    model: Any = CLIPVisionModel(originals.tower_config(originals.Sizes()))
    wrapped = any(name.startswith("vision_model.") for name in model.state_dict())
    named = {("vision_model." if wrapped else "") + name: value for name, value in state.items()}
    model.load_state_dict(named, strict=True)
    return model.eval()


def original_logits(
    originals: ModuleType, source: Path, family: str, ids: Tensor, image_id: int, pixels: Tensor
) -> Tensor:
    """Tower, projector and language model one after the other, as the original runs them."""
    config, state = json.loads((source / "config.json").read_text()), tensors_of(source)
    tower = {k.removeprefix(INSIDE): v for k, v in state.items() if k.startswith(INSIDE)}
    if not tower:
        whole = tensors_of(source / originals.VIT)
        tower = {
            k.removeprefix("vision_model."): v
            for k, v in whole.items()
            if k.startswith("vision_model.") and not k.endswith("position_ids")
        }
    seen = load_tower(originals, tower)(pixels, output_hidden_states=True)
    features = seen.hidden_states[config["mm_vision_select_layer"]][0, 1:]
    for layer in ("0", "2"):
        weight = state[f"model.mm_projector.{layer}.weight"]
        features = features @ weight.T + state[f"model.mm_projector.{layer}.bias"]
        if layer == "0":
            features = torch.nn.functional.gelu(features)
    made, model_class = TEXT[family]
    known = {k: v for k, v in config.items() if k in made().to_dict() or k == "rope_theta"}
    model = model_class(made(**known)).eval()
    parts = ("model.mm_projector", "model.vision_tower")
    language = {
        k: v for k, v in state.items() if not k.startswith(parts) and not k.endswith("inv_freq")
    }
    model.load_state_dict(language, strict=True)
    embedded = model.get_input_embeddings()(ids.where(ids != image_id, 0))
    embedded[ids == image_id] = features
    logits: Tensor = model(inputs_embeds=embedded[None]).logits[0]
    return logits


@pytest.mark.parametrize(("family", "made_with"), CASES)
@torch.no_grad()
def test_logits_are_those_of_the_originals_own_parts(
    family: str,
    made_with: dict[str, Any],
    originals: ModuleType,
    made: Callable[..., Path],
    converts: Callable[..., Converted],
    tmp_path: Path,
) -> None:
    wanted = {**EXACT, **made_with}
    if "config" in wanted:
        wanted["config"] = dict(wanted["config"])
    source = made(family, **wanted)
    folder = converts(source, tmp_path / "out", family).out
    load: Any = LlavaForConditionalGeneration.from_pretrained
    model, report = load(folder, output_loading_info=True, local_files_only=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    processor: Any = LlavaProcessor.from_pretrained(folder, local_files_only=True)
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (40, 70, 3), dtype=np.uint8))
    prompt = processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": "Which organ?"}],
            }
        ],
        add_generation_prompt=True,
    )
    inputs = processor(text=prompt, images=picture, return_tensors="pt")
    ours = model.eval()(**inputs).logits[0]
    ids, pixels = inputs["input_ids"][0], inputs["pixel_values"]
    image_id = model.config.image_token_id
    assert (ids == image_id).sum() == 16
    theirs = original_logits(originals, source, family, ids, image_id, pixels)
    width = theirs.shape[1]
    assert torch.allclose(ours[:, :width], theirs, rtol=1e-4, atol=1e-4 * float(theirs.std()))
    assert theirs.std() > 0.1
    # Another image gives other logits: the image is really looked at.
    other = model(**{**inputs, "pixel_values": -pixels}).logits[0, -1]
    assert not torch.allclose(other, ours[-1], rtol=1e-2)


@torch.no_grad()
def test_added_rows_are_means_so_that_greedy_decoding_never_picks_them(
    made: Callable[..., Path], converted: Callable[..., Path]
) -> None:
    source = tensors_of(made("llava-med", **EXACT))
    model = load_base(converted("llava-med", **EXACT), torch.float32)
    rows = len(source["lm_head.weight"])
    for ours, name in (
        (model.get_input_embeddings().weight, "model.embed_tokens.weight"),
        (model.lm_head.weight, "lm_head.weight"),
    ):
        assert ours.shape[0] == rows + 1
        assert torch.equal(ours[:rows], source[name])
        assert torch.allclose(ours[rows], source[name].double().mean(0).float(), atol=1e-7)
    states = torch.randn(200, model.lm_head.in_features)
    assert (model.lm_head(states).argmax(-1) < rows).all()
    assert model.config.text_config.vocab_size == rows + 1


def test_a_vocabulary_larger_than_the_tokenizer_needs_no_new_rows(
    made: Callable[..., Path], converted: Callable[..., Path]
) -> None:
    source = json.loads((made("huatuo-vision") / "config.json").read_text())
    ours = json.loads((converted("huatuo-vision") / "config.json").read_text())
    assert ours["text_config"]["vocab_size"] == source["vocab_size"] > ours["image_token_index"]


@pytest.mark.parametrize(("family", "window"), [("llava-med", None), ("huatuo-vision", 131072)])
def test_settings_of_the_language_model_are_carried_over(
    family: str, window: int | None, converted: Callable[..., Path]
) -> None:
    text = load_base(converted(family), torch.float32).config.text_config
    assert text.rope_parameters["rope_theta"] == 1000000.0
    assert text.rms_norm_eps == (1e-5 if family == "llava-med" else 1e-6)
    assert text.max_position_embeddings == 32768
    assert text.num_key_value_heads == 2
    if window is None:  # transformers' own default is 4096
        assert text.sliding_window is None
    else:
        assert not text.use_sliding_window


@pytest.mark.parametrize("family", ["llava-med", "huatuo-vision"])
def test_pixels_are_those_of_the_originals_padding(
    family: str, converted: Callable[..., Path]
) -> None:
    """Mean colour around the image, then CLIP's own processor, as the original does it."""
    folder = converted(family)
    rng = np.random.default_rng(1)
    for height, width in ((40, 70), (90, 30), (50, 50)):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        side = max(height, width)
        square = Image.new("RGB", (side, side), (122, 116, 104))
        square.paste(Image.fromarray(pixels), ((side - width) // 2, (side - height) // 2))
        clip: Any = CLIPImageProcessorPil
        size = {"height": 56, "width": 56}
        processor = clip(size={"shortest_edge": 56}, crop_size=size)
        wanted = processor(square, return_tensors="np")["pixel_values"][0]
        ours, grid = read_student(folder).sight.see(pixels)
        assert str(grid) == "4x4"
        assert np.abs(ours - wanted).max() < 1e-6
        images = read_processor(folder).image_processor
        theirs = images(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
        assert np.abs(theirs - wanted).max() < 1e-6


def test_the_middle_is_cut_out_where_the_original_does_not_pad(
    made: Callable[..., Path], converts: Callable[..., Converted], tmp_path: Path
) -> None:
    source = made("llava-med", config={"image_aspect_ratio": "square"})
    done = converts(source, tmp_path / "out", "llava-med")
    assert read_student(done.out).geometry == "crop"
    assert done.report["images"]["square"] == "the middle cut out"
