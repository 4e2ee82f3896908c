"""What does each ZeRO stage hold on a rank, and what does it cost in time?

Measured: `medalign train` on this machine's CPU with --ranks processes, a random student and both
losses; medians of the steps after the first two, and the highest memory of the process of rank 0,
also above stage 0. Rounds take turns. A stage that this version does not have is said so.

By formula: bytes a GPU holds for a 7B student in bf16, before activations, on --gpus GPUs. P frozen
and T trained parameters, N GPUs; a master copy and two moments in float32 take 12 bytes:

    stage 0   2P + 2T + 2T + 12T
    stage 1   2P + 2T + 2T + 12T / N
    stage 2   2P + 2T + (2T + 12T) / N
    stage 3   (2P + 2T + 2T + 12T) / N + two gathered layers

Usage: python benchmarks/zero.py [--stages 0,1,2,3] [--ranks 2] [--width 1024] [--layers 8]
           [--rank 64] [--steps 8] [--rounds 2] [--gpus 8]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from loader import pictures, records, store

RECIPE = """\
student: {{path: {folder}/student, dtype: fp32}}
loss: {{layer: {layer}, alpha: 1.0, beta: 0.1}}
lora: {{rank: {rank}, alpha: 16.0}}
data: {{manifest: {folder}/train.jsonl, images: {folder}, batch_size: 1, workers: 1}}
deepspeed: {{stage: {stage}}}
run: {{steps: {steps}, save_every: 1000000}}
"""


def train(folder: Path, stage: int, given: argparse.Namespace) -> dict[str, float] | str:
    """Train a few steps in a run folder of its own; a text says why that is not possible."""
    recipe = folder / f"stage-{stage}.yaml"
    recipe.write_text(
        RECIPE.format(
            folder=folder,
            layer=given.layers // 2,
            rank=given.rank,
            stage=stage,
            steps=given.steps,
        )
    )
    with tempfile.TemporaryDirectory() as out:
        words = [
            *("-m", "torch.distributed.run", "--nproc_per_node", str(given.ranks)),
            *("-m", "medalign", "train", str(recipe)),
            *("--cache", str(folder / "cache"), "--out", f"{out}/run"),
        ]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("medalign: ")]
            return said[0] if said else done.stderr[-300:]
        lines = (Path(out) / "run/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    seconds = [given.ranks / step["samples_per_second"] for step in steps[2:]]
    return {"seconds": statistics.median(seconds), "peak": steps[-1]["peak_bytes"]}


def measured(folder: Path, given: argparse.Namespace) -> list[dict[str, float | str]]:
    found: dict[int, list[dict[str, float]]] = {stage: [] for stage in given.stages}
    refused: dict[int, str] = {}
    for _ in range(given.rounds):
        for stage in given.stages:
            if stage in refused:
                continue
            row = train(folder, stage, given)
            if isinstance(row, str):
                refused[stage] = row
            else:
                found[stage].append(row)
    rows: list[dict[str, float | str]] = []
    first: dict[str, float] | None = None
    print(f"{'stage':>5}{'s/step':>9}{'ratio':>7}{'peak MB':>9}{'less MB':>9}")
    for stage in given.stages:
        if stage in refused:
            print(f"{stage:5}  {refused[stage]}")
            rows.append({"stage": stage, "refused": refused[stage]})
            continue
        row = {k: statistics.median(r[k] for r in found[stage]) for k in ("seconds", "peak")}
        first = first or row
        print(
            f"{stage:5}{row['seconds']:9.3f}{row['seconds'] / first['seconds']:7.2f}"
            f"{row['peak'] / 1e6:9.0f}{(first['peak'] - row['peak']) / 1e6:9.0f}"
        )
        rows.append({"stage": stage, **row})
    return rows


def by_formula(rank: int, gpus: int) -> list[dict[str, float]]:
    """Gigabytes a GPU holds for a Llava on Mistral-7B, before activations."""
    width, inner, keys, layers, vocabulary, tower = 4096, 14336, 1024, 32, 32064, 304e6
    linear = [(width, width), (width, keys), (width, keys), (width, width)]
    linear += [(width, inner), (width, inner), (inner, width)]
    layer = sum(a * b for a, b in linear)
    frozen = layers * layer + 2 * vocabulary * width + tower
    lora = layers * rank * sum(a + b for a, b in linear)
    trained = lora + (1024 * width + width * width) + width * width  # projector, W
    parts = {
        0: (2 * frozen + 2 * trained, 2 * trained, 12 * trained, 0.0),
        1: (2 * frozen + 2 * trained, 2 * trained, 12 * trained / gpus, 0.0),
        2: (2 * frozen + 2 * trained, 2 * trained / gpus, 12 * trained / gpus, 0.0),
        3: (
            (2 * frozen + 2 * trained) / gpus,
            2 * trained / gpus,
            12 * trained / gpus,
            4.0 * layer,
        ),
    }
    print(
        f"7B in bf16, LoRA rank {rank} ({trained / 1e6:.0f} M trained), {gpus} GPUs, GB a GPU "
        "before activations"
    )
    print(
        f"{'stage':>5}{'weights':>9}{'grads':>8}{'Adam':>8}{'gathered':>10}{'all':>8}{'of 80':>8}"
    )
    rows = []
    for stage, values in parts.items():
        all_of_it = sum(values)
        cells = [value / 1e9 for value in (*values, all_of_it)]
        print(
            f"{stage:5}{cells[0]:9.2f}{cells[1]:8.2f}{cells[2]:8.2f}{cells[3]:10.2f}"
            f"{cells[4]:8.2f}{all_of_it / 80e9:8.1%}"
        )
        rows.append({"stage": stage, "gigabytes": all_of_it / 1e9})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--stages", type=lambda text: [int(word) for word in text.split(",")], default=[0, 1, 2, 3]
    )
    for name, value, about in (
        ("ranks", 2, "processes"),
        ("width", 1024, "of the student's language model"),
        ("layers", 8, "of the student's language model"),
        ("rank", 64, "of LoRA"),
        ("steps", 8, "of a run; the first two are not timed"),
        ("rounds", 2, "turns of every stage"),
        ("gpus", 8, "for the formula"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=about)
    given = parser.parse_args()

    from medalign.trainer.machine import quiet_libraries

    quiet_libraries()
    from medalign.trainer.students.spec import read_student
    from medalign.trainer.students.tiny import DEMO_TEXTS, TinyStudent, make_student

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sizes = TinyStudent(width=given.width, layers=given.layers, heads=8, key_heads=4)
        make_student(folder / "student", DEMO_TEXTS, sizes)
        names, digests = pictures(folder, 8)
        store(folder / "cache", names, digests, read_student(folder / "student").grid)
        records(folder, names, 64)
        rows = measured(folder, given)
    formula = by_formula(given.rank, given.gpus)
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "ranks": given.ranks}
    print(json.dumps({"rows": rows, "formula": formula, **machine}))


if __name__ == "__main__":
    main()
