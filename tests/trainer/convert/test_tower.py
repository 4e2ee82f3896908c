"""Whose vision tower a converted model has: never another than the user asked for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from medalign.trainer.convert.convert import Converted
from medalign.trainer.convert.errors import ConvertError
from medalign.trainer.students.spec import read_student

Converts = Callable[..., Converted]
Made = Callable[..., Path]
KEY = "vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight"
INSIDE = "model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight"
CLIP = "vision_model.encoder.layers.1.mlp.fc1.weight"


def tower_of(folder: Path, name: str = KEY) -> torch.Tensor:
    found = [t for p in folder.glob("*.safetensors") for k, t in load_file(p).items() if k == name]
    return found[0]


def test_the_checkpoints_own_tower_is_never_replaced_by_the_folder_beside_it(
    made: Made, converted: Callable[..., Path]
) -> None:
    source, folder = made("huatuo-vision"), converted("huatuo-vision")
    assert torch.equal(tower_of(folder), tower_of(source, INSIDE))
    report = json.loads((folder / "conversion.json").read_text())
    assert report["vision_tower"]["weights"] == "the checkpoint's own"
    assert report["vision_tower"]["settings"] == "from the folder's config.json"


def test_a_tower_beside_the_weights_is_used_where_there_is_no_other(
    originals: ModuleType, made: Made, converts: Converts, tmp_path: Path
) -> None:
    source = made("huatuo-vision", tower="beside")
    done = converts(source, tmp_path / "out", "huatuo-vision")
    theirs = torch.load(source / originals.VIT / "pytorch_model.bin", weights_only=True)
    assert torch.equal(tower_of(done.out), theirs[CLIP])
    assert done.report["vision_tower"]["weights"] == "of the folder clip_vit_large_patch14_336"
    assert "vit/clip_vit_large_patch14_336/pytorch_model.bin" in done.report["sources"]
    reasons = {one["tensor"]: one["reason"] for one in done.report["unused"]}
    assert reasons["vision_model.embeddings.position_ids"] == "the numbers 0, 1, 2, ..."
    assert reasons["text_projection.weight"] == "text half of CLIP"
    assert set(reasons) == {
        "logit_scale",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "text_model.embeddings.token_embedding.weight",
        "text_projection.weight",
        "vision_model.embeddings.position_ids",
        "visual_projection.weight",
    }


def test_a_given_folder_is_used_where_the_checkpoint_has_none(
    made: Made, clip: Path, converts: Converts, tmp_path: Path
) -> None:
    source = made("llava-med", tower="none")
    done = converts(source, tmp_path / "out", "llava-med", vision_tower=clip)
    theirs = torch.load(clip / "pytorch_model.bin", weights_only=True)
    assert torch.equal(tower_of(done.out), theirs[CLIP])
    assert "clip-vit-large-patch14:pytorch_model.bin" in done.report["sources"]


def test_no_tower_is_an_error_that_says_what_to_give(
    made: Made, converts: Converts, tmp_path: Path
) -> None:
    told = (
        r"holds no vision tower; its config.json names 'openai/clip-vit-large-patch14-336': "
        r"give --vision-tower DIR"
    )
    with pytest.raises(ConvertError, match=told):
        converts(made("llava-med", tower="none"), tmp_path / "out", "llava-med")
    with pytest.raises(ConvertError, match="names 'vit/clip_vit_large_patch14_336'"):
        converts(made("huatuo-vision", tower="none"), tmp_path / "out", "huatuo-vision")
    with pytest.raises(ConvertError, match="--tower-weights checkpoint is impossible"):
        converts(
            made("llava-med", tower="none"),
            tmp_path / "out",
            "llava-med",
            tower_weights="checkpoint",
        )


def test_two_towers_are_an_error_until_one_is_chosen(
    made: Made, clip: Path, converts: Converts, tmp_path: Path
) -> None:
    source = made("llava-med")
    told = r"holds its own vision tower \(55 tensors\) and --vision-tower gives another: leave"
    with pytest.raises(ConvertError, match=told):
        converts(source, tmp_path / "out", "llava-med", vision_tower=clip)
    wish = {"vision_tower": clip}
    kept = converts(source, tmp_path / "kept", "llava-med", **wish, tower_weights="checkpoint")
    assert torch.equal(tower_of(kept.out), tower_of(source, INSIDE))
    swapped = converts(source, tmp_path / "swapped", "llava-med", **wish, tower_weights="folder")
    theirs = torch.load(clip / "pytorch_model.bin", weights_only=True)
    assert torch.equal(tower_of(swapped.out), theirs[CLIP])
    reasons = {one["tensor"]: one["reason"] for one in swapped.report["unused"]}
    assert reasons[INSIDE].startswith("replaced by the tower of --vision-tower")
    assert sum(reason.startswith("replaced") for reason in reasons.values()) == 55


def test_a_tower_of_an_unknown_name_needs_its_settings(
    originals: ModuleType, clip: Path, converts: Converts, tmp_path: Path
) -> None:
    """Heads and activation do not follow from the tensors."""
    source = originals.make_llava_med(
        tmp_path / "med", config={"mm_vision_tower": "laion/CLIP-ViT-L-14"}
    )
    with pytest.raises(ConvertError, match=r"'laion/CLIP-ViT-L-14', whose heads and activation"):
        converts(source, tmp_path / "out", "llava-med")
    wish = {"vision_tower": clip, "tower_weights": "checkpoint"}
    done = converts(source, tmp_path / "out", "llava-med", **wish)
    assert torch.equal(tower_of(done.out), tower_of(source, INSIDE))


def test_a_folder_that_is_no_clip_tower_is_refused(
    made: Made, clip: Path, converts: Converts, tmp_path: Path
) -> None:
    source, other = made("llava-med", tower="none"), tmp_path / "other"
    other.mkdir()
    for change, told in (
        ({}, "no vision tower: it has no config.json"),
        ({"model_type": "siglip"}, "is a 'siglip' model, the vision tower must be a CLIP"),
        ({"model_type": "clip_vision_model", "hidden_size": 64}, "not a multiple of the number"),
    ):
        if change:
            (other / "config.json").write_text(json.dumps(change))
        with pytest.raises(ConvertError, match=told):
            converts(source, tmp_path / "out", "llava-med", vision_tower=other)
    shutil.copy(clip / "config.json", other / "config.json")
    with pytest.raises(ConvertError, match="holds no weights of a vision tower"):
        converts(source, tmp_path / "out", "llava-med", vision_tower=other)
    shutil.copytree(clip, other, dirs_exist_ok=True)
    images = json.loads((clip / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**images, "size": 224}))
    with pytest.raises(ConvertError, match="size is 224, the vision tower takes 56 pixels"):
        converts(source, tmp_path / "out", "llava-med", vision_tower=other)


def test_position_ids_that_do_not_count_up_are_refused(
    made: Made, clip: Path, converts: Converts, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(clip, tmp_path / "clip"))
    state = torch.load(other / "pytorch_model.bin", weights_only=True)
    state["vision_model.embeddings.position_ids"][0, 1] = 0
    torch.save(state, other / "pytorch_model.bin")
    with pytest.raises(ConvertError, match="position_ids does not count 0, 1, 2"):
        converts(made("llava-med", tower="none"), tmp_path / "out", "llava-med", vision_tower=other)


def test_the_mean_colour_is_the_towers_own(
    made: Made, clip: Path, converts: Converts, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(clip, tmp_path / "clip"))
    images = json.loads((clip / "preprocessor_config.json").read_text())
    images["image_mean"] = [0.5, 0.25, 0.1]
    (other / "preprocessor_config.json").write_text(json.dumps(images))
    done = converts(
        made("llava-med", tower="none"), tmp_path / "out", "llava-med", vision_tower=other
    )
    assert read_student(done.out).square.fill == (127, 63, 25)
