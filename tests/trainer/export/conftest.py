"""Run folders as `medalign train` leaves them, made without training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medalign.trainer.prepared import with_paths
from medalign.trainer.recipe.recipe import Recipe
from medalign.trainer.run.folder import RunFolder
from medalign.trainer.student import add_adapter, load_base, save_adapter
from medalign.trainer.students.spec import student_digest

QUESTIONS = ("Is this an X-ray?", "Which organ is shown?", "Is there a fracture of the left rib?")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Manifest and images: four pictures, the fourth record has two of them, the fifth none."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines: list[dict[str, Any]] = []
    for k in range(4):
        pixels = rng.integers(0, 256, (40 + 9 * k, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        images = [f"{k}.png", "0.png"] if k == 3 else [f"{k}.png"]
        turns = [
            {"from": "human", "value": "<image>\n" * len(images) + QUESTIONS[k % 3]},
            {"from": "gpt", "value": "no fracture is seen"},
        ]
        lines.append({"id": f"r{k}", "image": images, "conversations": turns, "licence": "CC0"})
    turns = [{"from": "human", "value": QUESTIONS[0]}, {"from": "gpt", "value": "yes"}]
    lines.append({"id": "text", "conversations": turns})
    manifest = folder / "train.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest, folder


@pytest.fixture(scope="session")
def shaken() -> Callable[..., Any]:
    """An adapter on its base whose every trained number is random."""

    def make(student: Path, recipe: Recipe) -> Any:
        torch.manual_seed(0)
        model = add_adapter(
            load_base(student, torch.float32),
            recipe.loss.layer,
            recipe.lora,
            rotation=recipe.loss.rotation,
            projector=recipe.optim.projector_lr > 0,
        )
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_run(data: tuple[Path, Path], shaken: Callable[..., Any]) -> Callable[..., Path]:
    """Write a run folder: checkpoints at steps 2 and 4 of one adapter, finished or not."""

    def make(out: Path, base: Path, *, finished: bool = True, **changes: Any) -> Path:
        loss = {"layer": 2, "rotation": changes.pop("rotation", True)}
        sections: dict[str, Any] = {"loss": loss, "run": {"steps": 4}, "lora": {"rank": 4}}
        recipe = with_paths(
            Recipe.model_validate({**sections, **changes}),
            student=base,
            manifest=data[0],
            images=data[1],
        )
        model = shaken(base, recipe)
        about = {
            "recipe": recipe.model_dump(mode="json"),
            "cache": "f" * 64,
            "cache_content": "c" * 64,
            "expert": "unimed-l",
            "alpha": "black",
            "student": student_digest(base),
        }
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        folder = RunFolder(out)
        folder.checkpoints.mkdir(parents=True)
        (out / "recipe.yaml").write_text(recipe.to_yaml())
        environment = {"cache": {"rows": 4, "licence": "CC-BY-NC-4.0"}}
        (out / "environment.json").write_text(json.dumps(environment))
        line = {"epoch": 1.0, "lm": 0.5, "vis": 0.25, "att": None}
        for step in (2, 4):
            folder.append_metrics({"step": step, **line})
            partial = folder.partial_checkpoint()
            save_adapter(model, trained, partial / "adapter", about)
            checkpoint = folder.publish(partial, step, keep=2)
        if finished:
            folder.finish(checkpoint)
        return out

    return make


@pytest.fixture
def student(students: Callable[..., Path], tmp_path: Path) -> Path:
    """A student's folder that a test may change."""
    return Path(shutil.copytree(students(), tmp_path / "student"))


@pytest.fixture
def run(student: Path, make_run: Callable[..., Path], tmp_path: Path) -> Path:
    """A finished run with a rotation."""
    return make_run(tmp_path / "run", student)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"
