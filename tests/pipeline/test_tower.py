import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from medalign.pipeline.experts import Expert, load_expert
from medalign.pipeline.tower import Tower, check_open_clip, named_config
from medalign.pipeline.weights import ExpertError
from medalign.runtime.libraries import LibraryError
from medalign.teacher_cache.schema import PatchGrid

SMALL_TIMM = {
    "timm_model_name": "vit_tiny_patch16_224",
    "timm_model_pretrained": True,  # must not be obeyed: it would be downloaded
    "timm_pool": "",
    "timm_proj": "linear",
    "image_size": 224,
}


def last_block_weights(block: nn.Module, tokens: Tensor) -> Tensor:
    """[cls] row of nn.MultiheadAttention's own weights, for the input of a block."""
    x = block.get_submodule("ln_1")(tokens)
    attention = block.get_submodule("attn")
    assert isinstance(attention, nn.MultiheadAttention)
    weights = attention(x, x, x, need_weights=True, average_attn_weights=True)[1]
    assert isinstance(weights, Tensor)
    return weights[:, 0, 1:]


def reference(tower: Any, pixels: Tensor, *, normalised: bool = False) -> tuple[Tensor, Tensor]:
    """Patches by open_clip's forward_intermediates, attention by torch's attention module."""
    blocks = tower.transformer.resblocks
    received: list[Tensor] = []
    with blocks[-1].register_forward_pre_hook(lambda _, inputs: received.append(inputs[0])):
        output = tower.forward_intermediates(
            pixels,
            indices=[len(blocks) - 1],
            normalize_intermediates=normalised,
            output_fmt="NLC",
        )
    return output["image_intermediates"][0], last_block_weights(blocks[-1], received[0])


def images(expert: Expert, count: int = 2) -> Tensor:
    side = expert.card.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3))


def assert_close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_unimed_b_says_what_open_clip_says(
    tmp_path: Path, visual_tower: Callable[..., Any], unimed_checkpoint: Callable[..., Path]
) -> None:
    config = open_clip.get_model_config("ViT-B-16-quickgelu")
    tower = visual_tower(config["vision_cfg"], config["embed_dim"], quick_gelu=True)
    path = unimed_checkpoint(tmp_path / "unimed_clip_vit_b16.pt", tower)
    expert = load_expert("unimed-b", path)
    pixels = images(expert, 1)
    output = expert.encode(pixels)
    patches, attention = reference(tower, pixels)
    assert output.patches.shape == (1, 196, 768)
    assert_close(output.patches, patches)
    torch.testing.assert_close(output.attention, attention, atol=1e-6, rtol=1e-4)
    assert output.attention.std() > 1e-4  # not the uniform map that any code would match
    assert expert.card.architecture == "ViT-B-16-quickgelu"
    assert expert.card.normalise_before_interpolation
    assert "CC BY-NC" in expert.card.licence
    with pytest.raises(ExpertError, match=r"shapes of expert unimed-b, openclip:ViT-B-16"):
        load_expert("unimed-l", path)


def test_unimed_l_has_the_keys_and_the_grid_of_its_architecture() -> None:
    config = open_clip.get_model_config("ViT-L-14-336-quickgelu")
    tower = Tower(named_config("ViT-L-14-336-quickgelu"), "unimed-l")
    with torch.device("meta"):
        clip = open_clip.CLIP(**config).state_dict()
    visual = {name.removeprefix("visual.") for name in clip if name.startswith("visual.")}
    assert set(tower.module.state_dict()) == visual
    assert (tower.grid, tower.width, tower.image_size) == (PatchGrid(24, 24), 1024, 336)
    assert type(tower.module.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


def test_patches_and_attention_of_a_folder_equal_open_clip(
    small_folder: Path, small: nn.Module
) -> None:
    expert = load_expert(str(small_folder))
    pixels = images(expert, 3)
    output = expert.encode(pixels)
    patches, attention = reference(small, pixels)
    assert_close(output.patches, patches)
    torch.testing.assert_close(output.attention, attention, atol=1e-6, rtol=1e-5)
    assert output.attention.sum(1).max() < 1
    assert (expert.card.name, expert.card.grid) == ("small-clip", PatchGrid(4, 4))


def test_quick_gelu_of_the_config_is_obeyed(
    tmp_path: Path, small: Any, small_vit: dict[str, Any], hub_folder: Callable[..., Path]
) -> None:
    folder = hub_folder(tmp_path / "gelu", small_vit, small, quick_gelu=False)
    expert = load_expert(str(folder))
    pixels = images(expert)
    assert (expert.encode(pixels).patches - reference(small, pixels)[0]).abs().max() > 1e-3


def test_ln_post_patches_are_the_last_ones_normalised(small_folder: Path, small: nn.Module) -> None:
    expert = load_expert(str(small_folder), features="ln_post")
    pixels = images(expert)
    wanted, attention = reference(small, pixels, normalised=True)
    output = expert.encode(pixels)
    assert_close(output.patches, wanted)
    assert_close(output.attention, attention)
    assert expert.card.features == "ln_post"


def test_a_tower_that_runs_tokens_first_gives_the_same(small_folder: Path) -> None:
    expert, turned = load_expert(str(small_folder)), load_expert(str(small_folder))
    turned._tower.module.transformer.batch_first = False
    for block in turned._tower.module.transformer.resblocks:
        block.attn.batch_first = False
    pixels = images(expert, 3)
    one, other = expert.encode(pixels), turned.encode(pixels)
    assert_close(other.patches, one.patches)
    torch.testing.assert_close(other.attention, one.attention, atol=1e-6, rtol=1e-5)


def test_a_timm_tower_gives_patches_after_its_final_norm(
    tmp_path: Path, visual_tower: Callable[..., Any], hub_folder: Callable[..., Path]
) -> None:
    tower: Any = visual_tower(SMALL_TIMM, 24, quick_gelu=False)
    folder = hub_folder(tmp_path / "biomed", SMALL_TIMM, tower)
    expert = load_expert("biomedclip", folder)
    pixels = images(expert)
    output = expert.encode(pixels)
    trunk = tower.trunk
    assert_close(output.patches, trunk.forward_features(pixels)[:, 1:])
    tokens = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(pixels)))
    for block in trunk.blocks[:-1]:
        tokens = block(tokens)
    wanted = numpy_class_attention(trunk.blocks[-1], tokens, heads=3)
    np.testing.assert_allclose(output.attention.numpy(), wanted, atol=1e-6, rtol=1e-4)
    assert expert.card.architecture == "timm:vit_tiny_patch16_224"
    assert not expert.card.normalise_before_interpolation
    with pytest.raises(ExpertError, match="already taken after its final norm"):
        load_expert("biomedclip", folder, features="ln_post")
    with pytest.raises(ExpertError, match=r"unexpected keys.*of a timm tower: give its folder"):
        load_expert("unimed-b", folder)


def numpy_class_attention(block: Any, tokens: Tensor, heads: int) -> NDArray[np.float64]:
    """The [cls] row of a timm block, written out in float64."""
    x = tokens.double().numpy()
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + block.norm1.eps)
    x = x * block.norm1.weight.double().numpy() + block.norm1.bias.double().numpy()
    qkv = x @ block.attn.qkv.weight.double().numpy().T + block.attn.qkv.bias.double().numpy()
    batch, count, triple = qkv.shape
    qkv = qkv.reshape(batch, count, 3, heads, triple // 3 // heads)
    scores = np.einsum("bhd,bthd->bht", qkv[:, 0, 0], qkv[:, :, 1]) / np.sqrt(qkv.shape[-1])
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    row: NDArray[np.float64] = (powers / powers.sum(-1, keepdims=True)).mean(1)[:, 1:]
    return row


def test_bfloat16_is_near_float32(small_folder: Path) -> None:
    full = load_expert(str(small_folder))
    short = load_expert(str(small_folder), dtype=torch.bfloat16)
    output = short.encode(images(short))
    assert (output.patches.dtype, output.attention.dtype) == (torch.bfloat16, torch.float32)
    wanted = full.encode(images(full))
    assert F.cosine_similarity(output.patches.float(), wanted.patches, dim=-1).min() > 0.998
    assert (output.attention - wanted.attention).abs().max() < 0.02


def test_the_installed_open_clip_has_what_towers_are_built_from() -> None:
    check_open_clip()


@pytest.mark.parametrize(
    "name",
    [
        "model._build_vision_tower",
        "model.VisionTransformer",
        "timm_model.TimmModel",
        "transformer.Attention",
    ],
)
def test_a_name_that_open_clip_dropped_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delattr(f"open_clip.{name}")
    with pytest.raises(LibraryError) as refused:
        check_open_clip()
    message = str(refused.value)
    assert message.startswith(f"open_clip_torch {open_clip.__version__} has no open_clip.{name}; ")
    assert message.endswith("pip install -c constraints.txt open_clip_torch")
    assert "\n" not in message


def test_a_builder_with_other_arguments_is_named_before_it_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def builder(config: object) -> None:
        pytest.fail(f"must not be called with {config}")

    monkeypatch.setattr("open_clip.model._build_vision_tower", builder)
    with pytest.raises(LibraryError, match=r"calls \S*builder in another way"):
        load_expert("demo")


def test_importing_experts_needs_no_private_name_of_open_clip() -> None:
    code = (
        "import open_clip.model as model; del model._build_vision_tower, model.VisionTransformer\n"
        "import medalign.pipeline.experts"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tower_that_runs_with_other_arguments_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "timm_model.TimmModel.forward_intermediates"
    monkeypatch.setattr(f"open_clip.{name}", lambda self, x: (self, x))
    with pytest.raises(LibraryError, match=r"calls \S+ in another way"):
        check_open_clip()
