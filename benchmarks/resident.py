"""Is a plain step of our loop larger than transformers', or does the allocator keep more?

Peak resident memory of three plain LoRA steps on a CPU, each way in a process of its own, with
glibc told to give freed memory back at once; and what autograd keeps of one forward pass.

    engine        our objective in our engine
    bare          our objective and AdamW
    transformers  transformers' own forward with labels, and AdamW

Usage: python benchmarks/resident.py [--samples 2]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

WAYS = ("engine", "bare", "transformers")
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measure(way: str, samples: int, folder: Path) -> dict[str, float]:
    import torch
    from sides import SIZES, Bench, engine_steps, small_student

    from medalign.trainer.machine import quiet_libraries
    from medalign.trainer.objective import Objective, Share
    from medalign.trainer.preflight.measure import SavedTensors

    quiet_libraries()
    size, device = SIZES["toy"], torch.device("cpu")
    spec = small_student(folder / "student", size)
    bench = Bench(size=size, spec=spec, samples=samples, checkpointing=False, device=device)
    batch, recipe = bench.batch(teacher=False), bench.recipe(alpha=0.0, beta=0.0, rotation=False)
    model = bench.plain_student()
    objective = Objective(model, recipe.loss)
    labels = torch.full_like(batch.input_ids, -100)
    labels.view(-1)[batch.predicts + 1] = batch.targets

    def loss() -> torch.Tensor:
        if way != "transformers":
            total, _ = objective(batch, Share(1 / batch.answer_tokens, 1.0))
        else:
            total = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                pixel_values=batch.pixel_values,
                labels=labels,
            ).loss
        assert isinstance(total, torch.Tensor)
        return total

    if way == "engine":
        steps = engine_steps(bench, objective, recipe, lambda: batch.to(device, bench.dtype))
        for _ in range(3):
            next(steps)
    else:
        adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        for _ in range(3):
            torch.autograd.backward(loss())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            adam.zero_grad()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with SavedTensors(model) as kept:
        loss()
    return {"peak": peak, "kept": kept.bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(measure(given.way, given.samples, Path(scratch))))
        return
    print(f"{'way':13} {'peak MB':>8} {'autograd keeps, MB':>19}")
    for way in WAYS:
        words = [sys.executable, __file__, f"--way={way}", f"--samples={given.samples}"]
        done = subprocess.run(
            words, env={**os.environ, **_GIVE_BACK}, capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"{way:13} {found['peak'] / 1e6:8.0f} {found['kept'] / 1e6:19.0f}")


if __name__ == "__main__":
    main()
