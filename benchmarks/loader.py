"""How many samples a second does the data path give, and is it hidden behind the model?

Without the model: JPEGs of X-ray size are decoded, hashed, padded to the tower's square and
normalised, teacher rows of 576 x 1024 fp16 are read and checked, conversations are tokenised, all
is stacked. Two tables:

    workers   samples/s of a consumer that takes batches as fast as they come, seconds until the
              first batch; then the share of a step that is spent waiting by a consumer that takes
              --step-seconds for each (a sleep: a GPU does not take the cores)
    padding   tokens that are padding, of all tokens in batches: shuffled, with
              `data.group_by_length`, and if lengths were counted instead of estimated

A step of a 7B student is estimated where --step-seconds is not given: LoRA takes 4 * parameters *
tokens floating-point operations without checkpointing, of which a GPU does --teraflops a second.

Usage: python benchmarks/loader.py [--workers 0,1,2] [--batch 8] [--steps 25] [--rounds 3]
           [--start-method fork|spawn] [--manifest FILE]
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medalign.pipeline.manifest import Record, read_manifest
from medalign.teacher_cache.schema import CacheCard, ExpertCard, PatchGrid, Plan
from medalign.teacher_cache.seal import seal
from medalign.teacher_cache.writer import TeacherCacheWriter

SAMPLE = Path(__file__).parents[1] / "demo/sample/train.jsonl"
WIDTH = 1024
PARAMETERS = 7e9
GOAL = 0.01
"""Share of a step that may be spent waiting."""


def pictures(folder: Path, images: int) -> tuple[list[str], list[str]]:
    """Write JPEGs of X-ray size; return names and digests."""
    rng = np.random.default_rng(0)
    names, digests = [], []
    for k in range(images):
        coarse = rng.integers(0, 256, (40, 48), dtype=np.uint8)
        name = f"{k}.jpg"
        Image.fromarray(coarse).resize((1024, 853)).save(folder / name, quality=90)
        names.append(name)
        digests.append(hashlib.sha256((folder / name).read_bytes()).hexdigest())
    return names, digests


def store(path: Path, names: list[str], digests: list[str], grid: PatchGrid) -> None:
    """Write a sealed cache of random rows of ViT-L's width."""
    expert = ExpertCard(
        name="synthetic",
        architecture="none",
        weights_sha256="0" * 64,
        features="last",
        grid=grid,
        width=WIDTH,
        image_size=14 * grid.rows,
        normalise_before_interpolation=True,
        licence="none",
    )
    card = CacheCard(
        expert=expert,
        grid=grid,
        geometry="pad",
        mode="aligned",
        fill=(122, 116, 104),
        alpha="black",
        dtype="float32",
        interpolation="bilinear, align_corners=False",
        codec="fp16",
        shard_rows=64,
        versions={"medalign": "0"},
    )
    plan = Plan(
        content=tuple(digests),
        paths={name: row for row, name in enumerate(names)},
        failures=(),
    )
    writer = TeacherCacheWriter.begin(path, card, plan)
    rng = np.random.default_rng(0)
    for shard in writer.pending():
        rows = len(writer.rows_of(shard))
        patches = rng.standard_normal((rows, grid.size, WIDTH), np.float32)
        attention = rng.random((rows, grid.size), np.float32)
        writer.write(
            shard,
            features=(patches / np.linalg.norm(patches, axis=-1, keepdims=True)).astype(np.float16),
            attention=attention / attention.sum(1, keepdims=True),
            valid=np.ones((rows, grid.size), np.bool_),
            source_size=np.full((rows, 2), 1024, np.int32),
            failures={},
        )
    seal(path)


def records(folder: Path, names: list[str], count: int) -> Path:
    turns = [
        {"from": "human", "value": "<image>\nIs there a fracture of the left rib?"},
        {"from": "gpt", "value": "No fracture is seen; the heart size is within normal limits."},
    ]
    lines = [
        json.dumps({"id": str(k), "image": names[k % len(names)], "conversations": turns})
        for k in range(count)
    ]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "train.jsonl"


def consume(
    samples: Any, workers: int, given: argparse.Namespace, pause: float
) -> dict[str, float]:
    """Take --steps batches, with a pause after each, as a model that computes would."""
    from medalign.trainer.data.loader import micro_batches
    from medalign.trainer.data.order import StepOrder

    order = StepOrder(len(samples), 0, given.batch, 1, 0, 1, 0, given.steps + 1)
    begun = time.perf_counter()
    batches = micro_batches(samples, order, 0, workers, start_method=given.start_method)
    next(batches)
    first = time.perf_counter() - begun
    time.sleep(pause)
    begun, waited = time.perf_counter(), 0.0
    for _ in range(given.steps):
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
        time.sleep(pause)
    seconds = time.perf_counter() - begun
    return {
        "samples_per_second": given.steps * given.batch / seconds,
        "first_seconds": first,
        "waiting": waited / seconds,
    }


def padding(items: list[Record], encoder: Any, batch: int) -> dict[str, float]:
    """Share of padding in an epoch of batches, four of which make a step."""
    from medalign.trainer.data.order import StepOrder, estimated_lengths

    counted = np.array([len(encoder.training(item, 1 << 20).input_ids) for item in items], np.int32)
    guessed = estimated_lengths(items, encoder.tokens_per_image, 1 << 20)
    steps = len(items) // (4 * batch)
    shares = {}
    for name, lengths in (("shuffled", None), ("grouped", guessed), ("counted", counted)):
        order = StepOrder(len(items), 0, batch, 4, 0, 1, 0, max(1, steps), lengths)
        tokens = [counted[numbers] for numbers in order]
        whole = sum(int(part.max()) * len(part) for part in tokens)
        shares[name] = 1 - sum(int(part.sum()) for part in tokens) / whole
    return shares


def show_workers(samples: Any, given: argparse.Namespace, step: float) -> list[dict[str, float]]:
    found: dict[int, list[dict[str, float]]] = {workers: [] for workers in given.workers}
    for _ in range(given.rounds):
        for workers in given.workers:
            fast = consume(samples, workers, given, 0.0)
            behind = consume(samples, workers, given, step)
            found[workers].append({**fast, "waiting": behind["waiting"]})
    need = given.batch / step
    print(f"a step of {step:.3f} s with batch {given.batch} takes {need:.1f} samples/s")
    print(f"{'workers':>7}{'samples/s':>11}{'of need':>9}{'first, s':>10}{'waiting':>9}  goal")
    rows = []
    for workers, runs in found.items():
        row: dict[str, float] = {"workers": workers}
        for key in runs[0]:
            row[key] = statistics.median(run[key] for run in runs)
        met = "met" if row["waiting"] <= GOAL else "missed"
        print(
            f"{workers:7}{row['samples_per_second']:11.1f}{row['samples_per_second'] / need:9.2f}"
            f"{row['first_seconds']:10.2f}{row['waiting']:9.2%}  at most {GOAL:.0%}: {met}"
        )
        rows.append(row)
    return rows


def show_padding(items: list[Record], encoder: Any) -> list[dict[str, float]]:
    print(f"{'batch':>7}{'shuffled':>11}{'grouped':>9}{'counted':>9}  share of padding")
    rows = []
    for batch in (2, 4, 8):
        shares = padding(items, encoder, batch)
        print(
            f"{batch:7}{shares['shuffled']:11.2%}{shares['grouped']:9.2%}{shares['counted']:9.2%}"
        )
        rows.append({"batch": batch, **shares})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workers",
        type=lambda text: [int(word) for word in text.split(",")],
        default=list(range((os.cpu_count() or 1) + 1)),
        help="numbers of worker processes, as in 0,1,2",
    )
    parser.add_argument("--batch", type=int, default=8, help="conversations")
    parser.add_argument("--steps", type=int, default=25, help="batches a turn, after one more")
    parser.add_argument("--rounds", type=int, default=3, help="turns")
    parser.add_argument("--images", type=int, default=64, help="different images")
    parser.add_argument("--step-seconds", type=float, help="of the model; estimated otherwise")
    parser.add_argument("--teraflops", type=float, default=400.0, help="of the GPU, sustained")
    parser.add_argument("--start-method", choices=("auto", "fork", "spawn"), default="auto")
    parser.add_argument("--manifest", type=Path, default=SAMPLE, help="to measure padding on")
    given = parser.parse_args()

    from medalign.trainer.machine import quiet_libraries

    quiet_libraries()
    from medalign.teacher_cache.reader import TeacherCache
    from medalign.trainer.data.dataset import Conversations, select
    from medalign.trainer.students.spec import read_student
    from medalign.trainer.students.tiny import DEMO_TEXTS, TinyStudent, make_student

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_student(folder / "student", DEMO_TEXTS, TinyStudent(vocabulary=4096))
        student = read_student(folder / "student")
        names, digests = pictures(folder, given.images)
        store(folder / "cache", names, digests, student.grid)
        cache = TeacherCache.open(folder / "cache")
        chosen = select(read_manifest(records(folder, names, 4 * given.images)), cache, "fail")
        samples = Conversations(chosen.records, folder, student, 2048, cache)
        encoded = samples[0].encoded
        assert encoded is not None
        tokens = len(encoded.input_ids)
        step = given.step_seconds
        if step is None:
            step = 4 * PARAMETERS * tokens * given.batch / (given.teraflops * 1e12)
        workers = show_workers(samples, given, step)
        pad = show_padding(read_manifest(given.manifest), student.encoder)
    about = {"tokens": tokens, "batch": given.batch, "step_seconds": step}
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "start": given.start_method}
    print(json.dumps({"workers": workers, "padding": pad, **about, **machine}))


if __name__ == "__main__":
    main()
