"""What do the two losses cost a training step, beside plain LoRA, the authors' way and others?

Same random student, same batch; forward, backward and update. Each side runs in processes of its
own that take turns; a row per side gives the median seconds a step, the peak memory, and how much
of it is above the loaded student (its weights alone), each as a ratio to plain.

    plain    LoRA alone in our loop: alpha = beta = 0, no teacher, no hooks
    ours     rotation, L_vis and L_att from cached rows, the probe beside SDPA
    online   the same, with the expert in the same process instead of the cache
    eager    the authors' way: eager attention with `output_attentions` in every layer
    trainer  the same LoRA step by transformers' Trainer and PEFT
    trl      the same by TRL's SFTTrainer, where `trl` is installed

`--size toy` has 576 visual tokens and suits a CPU; `--size 7b` is a Llava in the shape of
Mistral-7B and needs a GPU of 80 GB. It is made there in bf16 and never written to disk.

Usage: python benchmarks/step.py [--size toy|7b] [--batch 2 | 1,4,8] [--checkpointing off,on]
           [--sides plain,ours] [--rounds 3] [--steps 5]
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("plain", "ours", "online", "eager", "trainer", "trl")
GOALS = {"seconds": 1.03, "peak": 1.02}
"""How much ours may take of plain's time and memory, at 7B."""


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one side in this process, for every batch size and kind of checkpointing asked."""
    from medalign.trainer.machine import quiet_libraries

    quiet_libraries()
    import torch
    from sides import SIDES, SIZES, Bench

    from medalign.trainer.students.spec import read_student

    if given.side not in SIDES:
        return []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = read_student(given.student)
    found = []
    for checkpointing in given.checkpointing:
        for samples in given.batch:
            bench = Bench(
                size=SIZES[given.size],
                spec=spec,
                samples=samples,
                checkpointing=checkpointing,
                device=device,
            )
            case = {"batch": samples, "checkpointing": checkpointing}
            try:
                found.append({**case, **one_case(SIDES[given.side], bench, given.steps)})
            except torch.OutOfMemoryError:
                found.append({**case, "full": True})
            gc.collect()
            torch.cuda.empty_cache()
    return found


def one_case(make: Any, bench: Any, steps: int) -> dict[str, Any]:
    import torch

    def settle() -> None:
        if bench.device.type == "cuda":
            torch.cuda.synchronize()

    weights = bench.weights_bytes()
    forget_peak(bench.device)
    begun = peak(bench.device)
    side = make(bench)
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        next(side.steps)
        settle()
        seconds.append(time.perf_counter() - started)
    highest = peak(bench.device)
    if bench.device.type == "cpu":
        highest -= begun  # Python and its libraries are nobody's cost
    return {
        "seconds": statistics.median(seconds[1:]),
        "peak": highest,
        "above": highest - weights,
        "expert": side.expert_bytes,
    }


def peak(device: Any) -> int:
    """Highest memory so far: of the GPU's allocator, or of this process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def forget_peak(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def in_turns(given: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Start every side in processes of its own, round after round."""
    import torch

    # One process for all cases saves loading 7B; on a CPU memory that was freed would count.
    together = torch.cuda.is_available()
    cases = [(b, c) for c in given.checkpointing for b in given.batch]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in given.sides}
    for _ in range(given.rounds):
        for name in given.sides:
            for batch, checkpointing in [(None, None)] if together else cases:
                options = {
                    "size": given.size,
                    "steps": given.steps,
                    "batch": ",".join(map(str, given.batch if batch is None else [batch])),
                    "checkpointing": ",".join(
                        "on" if c else "off"
                        for c in (given.checkpointing if checkpointing is None else [checkpointing])
                    ),
                }
                words = [f"--{key}={value}" for key, value in options.items()]
                done = subprocess.run(
                    [sys.executable, __file__, f"--side={name}", f"--student={folder}", *words],
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                found[name] += json.loads(done.stdout.splitlines()[-1])
                print(f"{name} {options['batch']} done", file=sys.stderr)
    return found


def middle(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians over the rounds, by case and side, with ratios to plain."""
    grouped: dict[tuple[bool, int, str], list[dict[str, Any]]] = {}
    for name, runs in found.items():
        for run in runs:
            grouped.setdefault((run["checkpointing"], run["batch"], name), []).append(run)
    rows = []
    plain: dict[str, Any] = {}
    order = {name: place for place, name in enumerate(NAMES)}
    for key in sorted(grouped, key=lambda key: (key[0], key[1], order[key[2]])):
        runs, name = grouped[key], key[2]
        row: dict[str, Any] = {"checkpointing": key[0], "batch": key[1], "side": name}
        if any("full" in run for run in runs):
            rows.append({**row, "full": True})
            continue
        for value in ("seconds", "peak", "above", "expert"):
            row[value] = statistics.median(run[value] for run in runs)
        plain = row if name == "plain" else plain
        same = plain and (plain["checkpointing"], plain["batch"]) == key[:2]
        for value in ("seconds", "peak", "above"):
            row[f"{value}_ratio"] = row[value] / plain[value] if same else None
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'checkpt':8}{'batch':>5}  {'side':8}{'s/step':>9}{'ratio':>7}"
        f"{'peak GB':>9}{'ratio':>7}{'above GB':>10}{'ratio':>7}{'expert GB':>11}"
    )
    for row in rows:
        head = f"{'on' if row['checkpointing'] else 'off':8}{row['batch']:5}  {row['side']:8}"
        if "full" in row:
            print(f"{head}  the GPU's memory is full")
            continue
        ratios = [
            "" if row[f"{value}_ratio"] is None else f"{row[f'{value}_ratio']:.3f}"
            for value in ("seconds", "peak", "above")
        ]
        print(
            f"{head}{row['seconds']:9.3f}{ratios[0]:>7}{row['peak'] / 1e9:9.2f}{ratios[1]:>7}"
            f"{row['above'] / 1e9:10.2f}{ratios[2]:>7}{row['expert'] / 1e9:11.2f}"
        )
    for row in rows:
        if row["side"] == "ours" and row.get("seconds_ratio"):
            told = ", ".join(
                f"{name} {row[f'{name}_ratio'] - 1:+.1%} (goal at 7B +{goal - 1:.0%}, "
                f"{'met' if row[f'{name}_ratio'] <= goal else 'missed'})"
                for name, goal in GOALS.items()
            )
            kind = "with" if row["checkpointing"] else "without"
            print(f"ours, batch {row['batch']}, {kind} checkpointing: {told}")


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    from importlib.metadata import version

    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "deepspeed")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def switches(text: str) -> list[bool]:
        return [{"off": False, "on": True}[word] for word in text.split(",")]

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser.add_argument("--size", choices=("toy", "7b"), default="toy", help="of the student")
    parser.add_argument("--batch", type=numbers, default=[2], help="conversations, as in 1,4,8")
    parser.add_argument("--checkpointing", type=switches, default=[False], help="off, on or off,on")
    parser.add_argument("--sides", type=lambda text: text.split(","), default=list(NAMES))
    parser.add_argument("--rounds", type=int, default=3, help="turns of every side")
    parser.add_argument("--steps", type=int, default=5, help="timed steps a turn, after one more")
    parser.add_argument("--side", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--student", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(measure(given)))
        return
    from sides import SIZES, small_student

    from medalign.trainer.machine import quiet_libraries

    quiet_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "student"
        small_student(folder, SIZES[given.size])
        rows = middle(in_turns(given, folder))
    show(rows)
    print(json.dumps({"size": given.size, "rows": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
