"""What is prepared goes through the rest of medalign: cache, batch of training, scores."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medalign.eval.predictions import gold
from medalign.eval.score import score
from medalign.pipeline.build import build
from medalign.pipeline.build_options import BuildOptions
from medalign.pipeline.datasets.prepare import Prepared
from medalign.pipeline.experts import Expert
from medalign.pipeline.manifest import read_manifest
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import PatchGrid


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_a_cache_has_a_row_for_every_image(
    tmp_path: Path,
    tiny_expert: Expert,
    pathvqa_folder: Callable[..., Path],
    path_item: Callable[..., dict[str, Any]],
    parquet_folder: Callable[..., Path],
    prepared: Callable[..., Prepared],
    form: str,
) -> None:
    names = [f"train_000{number}" for number in range(3)]
    items = [path_item(name, question) for name in names for question in ("a?", "b?")]
    root = pathvqa_folder({"train": items})
    folder = root / "images" / "train"
    draw = np.random.default_rng(0)
    for name in names:
        pixels = draw.integers(0, 256, size=(20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.jpg")
    if form == "parquet":
        rows = [
            ((folder / f"{item['image']}.jpg").read_bytes(), None, item["question"], "no")
            for item in items
        ]
        root = parquet_folder(
            {f"{split}-00000-of-00001": rows for split in ("train", "validation", "test")}
        )
    done = prepared("pathvqa", root)
    manifest = done.out / "train.jsonl"
    build(
        manifest,
        Path(done.report["images"]),
        tmp_path / "store",
        tiny_expert,
        BuildOptions(grid=PatchGrid(4, 4), shard_rows=4, workers=0),
    )
    cache = TeacherCache.open(tmp_path / "store", allow_building=True)
    assert len(cache) == 3
    for record in read_manifest(manifest):
        assert cache[record.images[0]].features.shape[0] == 16


def test_open_and_closed_questions_are_scored_as_such(
    tmp_path: Path,
    slake_folder: Callable[..., Path],
    slake_item: Callable[..., dict[str, Any]],
    prepared: Callable[..., Prepared],
) -> None:
    items = [
        slake_item(1, 1, answer="Liver", answer_type="OPEN"),
        slake_item(2, 1, answer="Yes", answer_type="CLOSED"),
        slake_item(3, 1, answer="Left", answer_type="CLOSED"),
    ]
    root = slake_folder({"train.json": [], "validate.json": [], "test.json": items})
    manifest = prepared("slake", root).out / "test.jsonl"
    answers = [
        {
            "id": record.id,
            "prompt": "",
            "text": gold(record),
            "answer": gold(record),
            "decoder": "greedy",
            "seed": 0,
            "new_tokens": 1,
        }
        for record in read_manifest(manifest)
    ]
    predictions = tmp_path / "answers.jsonl"
    predictions.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    scores = score(predictions, manifest, "vqa")
    assert (scores.counts["open"], scores.counts["closed"], scores.counts["choice"]) == (1, 2, 0)
    values = {(metric.protocol, metric.name): metric.value for metric in scores.metrics}
    assert values["strict", "open_recall"] == 100
    assert values["strict", "closed_accuracy"] == 100
    # LLaVA-Med's scorer never counts a closed answer without yes or no.
    assert values["llava-med", "closed_accuracy"] == 50
