"""A tiny student in the real format, real PNG files, and a cache made without any expert."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from medalign.trainer.machine import quiet_libraries
from medalign.trainer.recipe.recipe import Recipe
from medalign.trainer.students.tiny import TinyStudent, make_student

TextModel = Literal["mistral", "qwen2", "llama"]

QUESTIONS = ("Is this an X-ray?", "Which organ is shown?", "Is there a fracture of the left rib?")
ANSWERS = ("yes", "the lungs", "no fracture is seen")


@pytest.fixture(scope="session", autouse=True)
def quiet() -> None:
    quiet_libraries()


LINEAR = torch.nn.functional.linear


@pytest.fixture(autouse=True)
def linear() -> Iterator[None]:
    """DeepSpeed's stage 3 puts its own `linear` into torch, for the rest of the process."""
    torch.nn.functional.linear = LINEAR  # a fixture of a whole file may have trained before
    yield
    torch.nn.functional.linear = LINEAR


@pytest.fixture(scope="session")
def students(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of a random 4x4 Llava; one of each kind is made per session."""
    made: dict[str, Path] = {}

    def make(text_model: TextModel = "mistral", **sizes: Any) -> Path:
        key = json.dumps([text_model, sizes], sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("student")
            tiny = TinyStudent(text_model=text_model, image_size=56, **sizes)
            make_student(folder, [*QUESTIONS, *ANSWERS], tiny)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture
def dataset(
    tmp_path: Path, datasets_below: Callable[[Path], Callable[..., tuple[Path, Path, Path]]]
) -> Callable[..., tuple[Path, Path, Path]]:
    """`datasets_below` this test's own folder."""
    return datasets_below(tmp_path)


@pytest.fixture(scope="session")
def datasets_below(
    stores_below: Callable[[Path], Callable[..., Path]],
) -> Callable[[Path], Callable[..., tuple[Path, Path, Path]]]:
    """Write, below a folder, `images` PNGs, a manifest of `records`, and a sealed cache.

    Returns manifest, image folder, store.
    """

    def make(
        where: Path,
        images: int = 6,
        records: int = 8,
        extra: Sequence[dict[str, Any]] = (),
        **store: Any,
    ) -> tuple[Path, Path, Path]:
        rng = np.random.default_rng(0)
        folder = where / "images"
        folder.mkdir()
        names, digests = [], []
        for k in range(images):
            pixels = rng.integers(0, 256, (40 + 4 * k, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{k}.png")
            names.append(f"{k}.png")
            digests.append(hashlib.sha256((folder / f"{k}.png").read_bytes()).hexdigest())
        lines = [
            {
                "id": f"r{k}",
                "image": names[k % images],
                "answer_type": "CLOSED",
                "conversations": [
                    {"from": "human", "value": f"<image>\n{QUESTIONS[k % 3]}"},
                    {"from": "gpt", "value": ANSWERS[k % 3]},
                ],
            }
            for k in range(records)
        ]
        manifest = where / "train.jsonl"
        manifest.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *extra]))
        cache = stores_below(where)(rows=images, paths=names, content=digests, **store)
        return manifest, folder, cache

    return lambda where: partial(make, where)


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """Make a recipe from dotted keys: `recipe(**{"loss.alpha": 0.0})`."""

    def make(**changes: Any) -> Recipe:
        sections: dict[str, dict[str, Any]] = {
            "student": {"dtype": "fp32"},
            "loss": {"layer": 2, "alpha": 1.0, "beta": 0.1},
            "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.1},
            "optim": {"lr": 1e-2, "projector_lr": 1e-3, "warmup_ratio": 0.2},
            "data": {"batch_size": 2, "accumulation": 2, "workers": 0},
            "deepspeed": {"stage": 0},
            "run": {"steps": 4, "seed": 1, "save_every": 2},
        }
        for key, value in changes.items():
            section, _, name = key.partition(".")
            sections.setdefault(section, {})[name] = value
        return Recipe.model_validate(sections)

    return make
