"""Build, seal, verify and train against an S3 server, over a network that drops connections."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medalign.trainer.students.tiny import DEMO_TEXTS, TinyStudent, make_student

RECIPE = """\
loss: {layer: 2, alpha: 1.0, beta: 0.1}
lora: {rank: 4, dropout: 0.0}
data: {batch_size: 2, workers: 1}
run: {steps: 2}
"""
pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Eight images, a manifest, a recipe and a 4x4 student."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    lines = []
    for k in range(8):
        pixels = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{k}.png")
        turns = [
            {"from": "human", "value": "<image>\nDoes this chest X-ray show pneumonia?"},
            {"from": "gpt", "value": ("yes", "no")[k % 2]},
        ]
        lines.append(json.dumps({"id": f"q{k}", "image": f"{k}.png", "conversations": turns}))
    (tmp_path / "m.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "r.yaml").write_text(RECIPE)
    make_student(tmp_path / "student", DEMO_TEXTS, TinyStudent(image_size=56))
    return tmp_path


def building(job: Path, store: str | Path) -> list[str]:
    words = ("cache", "build", job / "m.jsonl", "--images", job / "images", "--expert", "demo")
    shape = ("--grid", "4x4", "--shard-rows", "2", "--workers", "0", "--out", store)
    return [str(word) for word in (*words, *shape)]


def losses(
    medalign: Callable[..., str], job: Path, store: str | Path, out: Path
) -> list[tuple[float, ...]]:
    paths = ("--manifest", job / "m.jsonl", "--images", job / "images", "--student")
    medalign("train", job / "r.yaml", "--cache", store, *paths, job / "student", "--out", out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [tuple(line[key] for key in ("loss", "lm", "vis", "att")) for line in lines]


def test_two_parts_build_a_store_on_s3_and_training_from_it_is_training_from_disk(
    medalign: Callable[..., str], job: Path, bucket: str, proxy: Any
) -> None:
    proxy.every = 9
    store = f"{bucket}/cache"
    parts = [
        subprocess.Popen([sys.executable, "-m", "medalign", *building(job, store), "--part", part])
        for part in ("1/2", "2/2")
    ]
    assert [process.wait(200) for process in parts] == [0, 0]
    medalign("cache", "seal", store)
    medalign("cache", "verify", store)
    medalign(*building(job, job / "cache"))
    medalign("cache", "seal", job / "cache")
    remote = losses(medalign, job, store, job / "remote")
    local = losses(medalign, job, job / "cache", job / "local")
    assert remote == local
    assert len(remote) == 2
    assert proxy.cut > 5
