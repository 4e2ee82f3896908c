import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medalign.pipeline.experts import Expert, load_expert
from medalign.pipeline.resample import to_grid
from medalign.pipeline.weights import ExpertError
from medalign.teacher_cache.schema import PatchGrid


def images(expert: Expert, count: int = 2) -> Tensor:
    side = expert.card.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3))


def assert_close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("unimed-x", None, "unknown expert 'unimed-x'; known are unimed-l, unimed-b, biomedclip"),
        ("unimed-l", None, "unimed-l needs its weights from a local path: give --weights"),
        ("unimed-l", "missing.pt", r"missing\.pt: no such weights file"),
        ("demo", "missing.pt", "demo brings its own seeded weights"),
        ("openclip:ViT-B-16-quickgel", None, "near are ViT-B-16-quickgelu"),
        ("openclip:RN50", "folder", "ResNet has no"),
        ("openclip:ViT-B-16-SigLIP", "folder", r"VisionTransformer with a \[cls\] token"),
        ("openclip:EVA02-B-16", "folder", "not Eva"),
        ("biomedclip", "empty", r"holds no open_clip_config\.json"),
        ("openclip:ViT-B-16", "empty", r"expected open_clip_model\.safetensors or .* found none"),
    ],
)
def test_what_cannot_be_loaded_is_said(
    small_folder: Path, tmp_path: Path, name: str, weights: str | None, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    paths = {"folder": small_folder, "empty": tmp_path / "empty", None: None}
    with pytest.raises(ExpertError, match=message):
        load_expert(name, paths.get(weights, tmp_path / str(weights)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"{", "not readable as JSON"),
        (b"[]", "expected an object, got list"),
        (b'{"model_cfg": {"embed_dim": 3}}', "needs an embed_dim and a vision_cfg"),
        (b'{"embed_dim": 3, "vision_cfg": {"colour": 1}}', "cannot build this vision_cfg"),
        (b'{"embed_dim": 3, "vision_cfg": {"timm_model_name": "hf-hub:a/b"}}', "names a hub"),
        (b'{"embed_dim": 3, "vision_cfg": {"timm_model_name": "none"}}', "cannot build"),
        (b'{"embed_dim": 3, "vision_cfg": {"image_size": [32, 48]}}', "only square towers"),
        (
            b'{"model_cfg": {"embed_dim": 3, "vision_cfg": {}}, "preprocess_cfg": {"std": 1}}',
            "std takes three numbers, got 1",
        ),
    ],
)
def test_a_config_that_is_no_tower_is_named(
    small_folder: Path, config: bytes, message: str
) -> None:
    (small_folder / "open_clip_config.json").write_bytes(config)
    with pytest.raises(ExpertError, match=message):
        load_expert(str(small_folder))


def test_another_mean_of_the_config_is_used_and_recorded(small_folder: Path) -> None:
    plain = load_expert(str(small_folder))
    path = small_folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"] = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.25, 0.5]}
    path.write_text(json.dumps(config))
    expert = load_expert(str(small_folder))
    assert expert.card.architecture != plain.card.architecture
    white = expert.normalise(torch.full((1, 48, 48, 3), 255, dtype=torch.uint8))
    assert white.shape == (1, 3, 48, 48)
    assert white[0, :, 0, 0].tolist() == [1, 2, 1]  # (1 - 0.5) / std


def test_a_device_that_is_not_there_is_said() -> None:
    with pytest.raises(ExpertError, match="not one that torch knows"):
        load_expert("demo", device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(ExpertError, match="finds no CUDA device"):
            load_expert("demo", device="cuda")


def test_the_demo_expert_is_always_the_same_and_draws_nothing_at_random(demo: Expert) -> None:
    before = torch.get_rng_state()
    again = load_expert("demo")
    assert torch.equal(before, torch.get_rng_state())
    assert again.card == demo.card
    # A change of this number makes every cache that people built with the demo another expert's.
    assert demo.card.weights_sha256.startswith("86c0dbd0fa5d77e5")


def test_the_demo_expert_looks_at_the_image(demo: Expert) -> None:
    pixels = images(demo, 2)
    output = demo.encode(pixels)
    patches, attention = to_grid(output, demo.card.grid, PatchGrid(24, 24), normalise_before=True)
    assert patches.shape == (2, 576, 64)
    assert (attention[0] - attention[1]).abs().max() > 1e-3  # other image, other attention
    assert attention.amax(1).min() > 4 / 576  # far from uniform
    grams = patches @ patches.mT
    assert (grams[0] - grams[1]).abs().mean() > 0.05


def test_an_image_says_the_same_in_any_batch(demo: Expert) -> None:
    pixels = images(demo, 3)
    whole, alone = demo.encode(pixels), demo.encode(pixels[1:2])
    assert_close(whole.patches[1:2], alone.patches)
    assert_close(whole.attention[1:2], alone.attention)


def test_pixels_of_another_size_are_refused(demo: Expert) -> None:
    with pytest.raises(
        ExpertError, match=r"takes pixels \[B, 3, 336, 336\], got \[1, 3, 224, 224\]"
    ):
        demo.encode(torch.zeros(1, 3, 224, 224))
