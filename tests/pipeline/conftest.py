"""Towers, checkpoints and build jobs that several tests of the pipeline use."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from open_clip import model as open_clip_model
from PIL import Image
from torch import nn

from medalign.pipeline.build import BuildReport, build
from medalign.pipeline.build_options import BuildOptions
from medalign.pipeline.experts import Expert, demo_weights, load_expert
from medalign.pipeline.geometry import GeometryName, apply_geometry
from medalign.pipeline.resample import to_grid
from medalign.pipeline.tower import Tower, TowerConfig
from medalign.pipeline.weights import weights_sha256
from medalign.teacher_cache.schema import ExpertCard, PatchGrid

SMALL_VIT = {"image_size": 48, "patch_size": 12, "width": 48, "layers": 3, "head_width": 12}
# As BiomedCLIP's: a text tower that only a hub has.
HUB_TEXT = {"hf_model_name": "nobody/no-such-bert", "hf_tokenizer_name": "nobody/no-such-bert"}


def _visual_tower(vision: Mapping[str, Any], embed_dim: int, *, quick_gelu: bool) -> nn.Module:
    """open_clip's own tower with random weights, attention sharp enough to test."""
    vision = {key: value for key, value in vision.items() if key != "timm_model_pretrained"}
    with torch.device("meta"):  # open_clip's own start takes seconds for a ViT-B
        tower: nn.Module = open_clip_model._build_vision_tower(embed_dim, dict(vision), quick_gelu)
    tower.to_empty(device="cpu").requires_grad_(False)
    draw = torch.Generator().manual_seed(5)
    for name, parameter in tower.named_parameters():
        sharp = 2 if name.endswith(("in_proj_weight", "qkv.weight")) else 1
        if parameter.ndim == 1:  # no norm and no bias at a trivial value
            parameter.normal_(float(not name.endswith("bias")), 0.1, generator=draw)
        else:
            parameter.normal_(0, sharp * parameter[0].numel() ** -0.5, generator=draw)
    return tower.eval()


def _unimed_checkpoint(path: Path, tower: nn.Module) -> Path:
    """Write a checkpoint laid out like UniMed-CLIP's: prefixes, BERT, logit scale, epoch."""
    state = {f"module.visual.{name}": tensor for name, tensor in tower.state_dict().items()}
    state["module.text_encoder.embeddings.word_embeddings.weight"] = torch.zeros(7, 3)
    state["module.logit_scale"] = torch.tensor(4.6)
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, path)
    return path


def _hub_folder(folder: Path, vision: Mapping[str, Any], tower: nn.Module, **more: Any) -> Path:
    """Write a folder like those on open_clip's hub."""
    folder.mkdir()
    config = {
        "model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": HUB_TEXT, **more},
        "preprocess_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = {f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}
    state["text.transformer.embeddings.position_ids"] = torch.zeros(1, 5, dtype=torch.int64)
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    return folder


@pytest.fixture(scope="session")
def visual_tower() -> Callable[..., Any]:
    """Make open_clip's own tower: `visual_tower(vision_cfg, embed_dim, quick_gelu=True)`."""
    return _visual_tower


@pytest.fixture(scope="session")
def unimed_checkpoint() -> Callable[..., Path]:
    """Save a tower as UniMed-CLIP is: `unimed_checkpoint(path, tower)`."""
    return _unimed_checkpoint


@pytest.fixture(scope="session")
def hub_folder() -> Callable[..., Path]:
    """Save a tower as on open_clip's hub: `hub_folder(folder, vision_cfg, tower, **more)`."""
    return _hub_folder


@pytest.fixture(scope="session")
def small_vit() -> dict[str, Any]:
    """Give the `vision_cfg` of `small`, a tower of 48 px with 4 x 4 patches."""
    return dict(SMALL_VIT)


@pytest.fixture(scope="session")
def small() -> Any:
    """Make a small tower with random weights."""
    return _visual_tower(SMALL_VIT, 24, quick_gelu=True)


@pytest.fixture
def small_folder(tmp_path: Path, small: nn.Module) -> Path:
    """Save `small` as a folder that is an expert's name."""
    return _hub_folder(tmp_path / "small-clip", SMALL_VIT, small, quick_gelu=True)


@pytest.fixture(scope="session")
def demo() -> Expert:
    """Load the demo expert."""
    return load_expert("demo")


GRID = PatchGrid(6, 6)
FILL = (122, 116, 104)


@pytest.fixture(scope="session")
def tiny_expert() -> Expert:
    """Make a tower of 32 px with 4 x 4 patches, far smaller than the demo's."""
    vision = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8}
    config = TowerConfig(embed_dim=8, vision=vision, quick_gelu=True)
    tower = Tower(config, "tiny")
    weights = demo_weights(tower.module.state_dict())
    tower.load(weights, torch.device("cpu"), torch.float32)
    card = ExpertCard(
        name="tiny",
        architecture=config.describe(),
        weights_sha256=weights_sha256(weights),
        features="last",
        grid=tower.grid,
        width=tower.width,
        image_size=tower.image_size,
        normalise_before_interpolation=True,
        licence="none",
    )
    return Expert(card, tower, config)


class Job:
    """Hold a folder with images, a manifest over them, and a store to be built."""

    def __init__(self, folder: Path, expert: Expert) -> None:
        self.root = folder / "images"
        self.root.mkdir()
        self.manifest = folder / "manifest.jsonl"
        self.store = folder / "store"
        self.expert = expert
        draw = np.random.default_rng(7)
        self.paths = []
        for number in range(10):
            height, width = draw.integers(20, 60, size=2)
            pixels = draw.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
            self.paths.append(f"{number}.png")
            Image.fromarray(pixels).save(self.root / self.paths[-1])
        self.write_manifest(self.paths)

    def write_manifest(self, paths: list[str], text_only: int = 0) -> None:
        """Write one record per path, then records without an image."""
        images = [{"image": path} for path in paths] + [{}] * text_only
        records = [
            {
                "id": number,
                **image,
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat?" if image else "What?"},
                    {"from": "gpt", "value": "That."},
                ],
            }
            for number, image in enumerate(images)
        ]
        self.manifest.write_text("".join(json.dumps(record) + "\n" for record in records))

    def build(self, store: Path | None = None, **options: Any) -> BuildReport:
        options = {"shard_rows": 4, "batch_size": 3, "workers": 0, "grid": GRID, **options}
        return build(
            self.manifest, self.root, store or self.store, self.expert, BuildOptions(**options)
        )

    def wanted(
        self, path: str, geometry: GeometryName = "pad"
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return what the expert says of one image, without any of the machinery."""
        with Image.open(self.root / path) as image:
            rgb = np.asarray(image)
        square = apply_geometry(rgb, geometry, 32, FILL)
        output = self.expert.encode(self.expert.normalise(torch.from_numpy(square)[None]))
        patches, attention = to_grid(output, PatchGrid(4, 4), GRID, normalise_before=True)
        return patches[0].numpy(), attention[0].numpy()


@pytest.fixture
def job(tmp_path: Path, tiny_expert: Expert) -> Job:
    """Prepare ten images to be built into a cache with `tiny_expert`."""
    return Job(tmp_path, tiny_expert)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a manifest, `images/` with ten small pictures, and one text-only record."""
    (tmp_path / "images").mkdir()
    draw = np.random.default_rng(1)
    lines = []
    for number in range(10):
        pixels = draw.integers(0, 256, size=(40, 30 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        lines.append(_record(number, f"{number}.png"))
    lines.append(_record(10, None))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    return tmp_path


def _record(number: int, image: str | None) -> str:
    turns = [
        {"from": "human", "value": "<image>\nWhat?" if image else "What?"},
        {"from": "gpt", "value": "That."},
    ]
    fields = {"id": number, "conversations": turns}
    return json.dumps({**fields, "image": image} if image else fields)
