"""A row of the paper through the command line alone, from downloads in their own formats.

The checkpoint and the data set are small and made here; every command is one that
`medalign recipes show llava-med-slake` prints, with fewer steps and a tiny expert.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors.numpy import load_file

QUESTIONS = (
    ("What modality is used to take this image?", "MRI", "OPEN", "en"),
    ("Is this image normal?", "No", "CLOSED", "en"),
    ("Which side is bright, left or right?", "Left", "CLOSED", "en"),
    ("图片中包含什么器官?", "肝脏", "OPEN", "zh"),
)
SPLITS = {"train": range(1, 7), "validate": range(7, 9), "test": range(9, 13)}
SMALL = (
    *("--set", "expert.name=demo", "--set", "loss.layer=2", "--set", "run.epochs=2"),
    *("--set", "data.per_step=6", "--set", "lora.rank=4", "--set", "data.workers=0"),
    *("--set", "data.group_by_length=false", "--set", "student.dtype=fp32"),
)


@pytest.fixture(scope="module")
def download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SLAKE as it is unpacked: questions in two languages, an image and a mask in a folder each."""
    root = tmp_path_factory.mktemp("download") / "Slake1.0"
    rng = np.random.default_rng(0)
    number = 0
    for split, images in SPLITS.items():
        items = []
        for image in images:
            folder = root / "imgs" / f"xmlab{image}"
            folder.mkdir(parents=True)
            pixels = rng.integers(0, 90, (60 + image, 80, 3), dtype=np.uint8)
            picture, mask = Image.fromarray(pixels), Image.new("L", (80, 60 + image))
            for drawn in (picture, mask):
                ImageDraw.Draw(drawn).ellipse((10, 10, 30 + image, 40), fill="white")
            picture.save(folder / "source.jpg")
            mask.save(folder / "mask.png")
            for question, answer, kind, language in QUESTIONS:
                number += 1
                items.append(_item(number, image, question, answer, kind, language))
        (root / f"{split}.json").write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
    return root


def _item(
    number: int, image: int, question: str, answer: str, kind: str, language: str
) -> dict[str, Any]:
    return {
        "img_id": image,
        "img_name": f"xmlab{image}/source.jpg",
        "question": question,
        "answer": answer,
        "q_lang": language,
        "location": "Abdomen",
        "modality": "MRI",
        "answer_type": kind,
        "base_type": "vqa",
        "content_type": "Modality",
        "triple": ["vhead", "_", "_"],
        "qid": number,
    }


def test_from_a_llava_med_checkpoint_and_slake_to_scores(
    medalign: Callable[..., str], originals: ModuleType, download: Path, tmp_path: Path
) -> None:
    texts = [*originals.TEXTS, *(f"{question} {answer}" for question, answer, *_ in QUESTIONS)]
    checkpoint = originals.make_llava_med(tmp_path / "llava-med-v1.5", texts=texts)
    student, data, store = tmp_path / "student", tmp_path / "slake", tmp_path / "cache"
    medalign("student", "convert", checkpoint, "--family", "llava-med", "--out", student)
    medalign("student", "check", student)

    medalign("data", "prepare", "slake", download, "--out", data)
    report = json.loads((data / "report.json").read_text())
    images = Path(report["images"])
    counts = {split: len(images) * 3 for split, images in SPLITS.items()}  # Chinese is left out
    for split, name in (("train", "train"), ("validate", "val"), ("test", "test")):
        lines = (data / f"{name}.jsonl").read_text().splitlines()
        assert len(lines) == counts[split]
        medalign("data", "check", data / f"{name}.jsonl", "--images", images)
    held_out = (data / "val.jsonl", data / "test.jsonl")
    medalign("data", "leakage", data / "train.jsonl", *held_out, "--images", images)

    build = ("cache", "build", data / "train.jsonl", "--images", images, "--out", store)
    medalign(*build, "--expert", "demo", "--grid", "4x4", "--mode", "paper", "--workers", "0")
    medalign("cache", "seal", store)

    run = tmp_path / "run"
    paths = ("--manifest", data / "train.jsonl", "--images", images, "--student", student)
    medalign("train", "llava-med-slake", "--cache", store, *paths, "--out", run, *SMALL)
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 6  # 18 conversations, 6 a step, twice
    assert steps[-1]["lm"] < steps[0]["lm"]
    assert all(step["vis"] > 0 and step["att"] > 0 for step in steps)
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    (rotation,) = (value for name, value in adapter.items() if "visual_rotation" in name)
    assert np.abs(rotation).max() > 0

    answers, scores = run / "answers.jsonl", run / "scores.json"
    ask = ("eval", "generate", run, data / "test.jsonl", "--images", images)
    medalign(*ask, "--decoder", "beam", "--max-new-tokens", "8", "--out", answers)
    asked = [json.loads(line) for line in answers.read_text().splitlines()]
    assert {line["id"] for line in asked} == {
        json.loads(line)["id"] for line in (data / "test.jsonl").read_text().splitlines()
    }
    words = ("eval", "score", answers, data / "test.jsonl", "--task", "vqa", "--out", scores)
    medalign(*words)
    found = json.loads(scores.read_text())["metrics"]
    n = {metric["name"]: metric["n"] for metric in found}
    assert n["open_recall"] == 4
    assert n["closed_accuracy"] == 8
