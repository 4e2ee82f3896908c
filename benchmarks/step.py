"""What do the two losses cost a training step, beside plain LoRA and beside the authors' way?

Same random student, same batch, forward and backward, each variant in processes of its own that
take turns; prints a row per variant: median seconds, peak memory above the loaded model, and both
as ratios to plain.

    plain    LoRA alone: no teacher, no rotation, no probe
    ours     rotation, L_vis and L_att from cached rows, the probe beside SDPA
    eager    the same two losses from eager attention with `output_attentions` in every layer

Usage: python benchmarks/step.py [--batch 2] [--width 512] [--layers 8] [--rounds 3] [--steps 5]
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VARIANTS = ("plain", "ours", "eager")


def measure(variant: str, folder: Path, batch_size: int, steps: int) -> dict[str, float]:
    import numpy as np
    import torch

    from medalign.pipeline.manifest import Record, Turn
    from medalign.teacher_cache.reader import TeacherRow
    from medalign.trainer.batch import Sample, collate
    from medalign.trainer.losses import attention_alignment, spatial_alignment
    from medalign.trainer.objective import Objective, Share
    from medalign.trainer.quiet import quiet_libraries
    from medalign.trainer.recipe import LoraSection, LossSection
    from medalign.trainer.student import add_adapter, llava_of, load_base
    from medalign.trainer.students.spec import read_student
    from medalign.trainer.teacher import Patches

    quiet_libraries()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    spec = read_student(folder)
    base = load_base(folder, dtype, "eager" if variant == "eager" else "sdpa").to(device)
    layer = spec.layers // 2
    ours = variant != "plain"
    model = add_adapter(base, layer, LoraSection(), rotation=ours, projector=True)
    model.to(device).train()
    if variant == "eager":  # its own way of looking: whole maps, no probe
        attention = llava_of(model).model.language_model.layers[layer].self_attn
        attention.config._attn_implementation = "eager"

    rng = np.random.default_rng(0)
    n, side = spec.grid.size, spec.image_size

    def sample(k: int) -> Sample:
        turns = (Turn("human", "<image>\nWhich organ is shown?"), Turn("gpt", "the lungs"))
        record = Record(
            id=str(k), images=("x",), conversations=turns, answer_type=None, fields={}, line=k
        )
        row = TeacherRow(
            features=rng.standard_normal((n, 1024)).astype(np.float16),
            attention=(rng.random(n) / n).astype(np.float32),
            valid=np.ones(n, bool),
            source_size=(side, side),
        )
        pixels = rng.standard_normal((3, side, side)).astype(np.float32)
        encoded = spec.encoder.training(record, 4096)
        return Sample(str(k), encoded, (pixels,), (row,) if ours else (None,))

    batch = collate([sample(k) for k in range(batch_size)], 0).to(device, dtype)
    share = Share.of(batch.answer_tokens, batch.teacher_images, 1)
    objective = Objective(model, LossSection(layer=layer))

    def ours_or_plain() -> Any:
        return objective(batch, share)[0]

    def authors() -> Any:
        llava = llava_of(model)
        tap = batch.tap(llava.config.image_token_id)
        out = llava.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            pixel_values=batch.pixel_values,
            use_cache=False,
            output_attentions=True,
            tap=tap,
        )
        logits = llava.lm_head(out.last_hidden_state).float()
        picked = logits.flatten(0, 1)[batch.predicts]
        loss = torch.nn.functional.cross_entropy(picked, batch.targets)
        teacher = batch.teacher
        assert teacher is not None
        assert tap.states is not None
        maps = out.attentions[layer].mean(1)
        look = teacher.look
        seen = torch.stack(
            [maps[k, look.rows[k]][:, look.cols[k]].mean(0) for k in range(len(maps))]
        )
        assert isinstance(teacher.spatial, Patches)
        vis = spatial_alignment(tap.states, teacher.spatial.features)
        return loss + vis + 0.001 * attention_alignment(seen, teacher.attention)

    run = authors if variant == "eager" else ours_or_plain
    before = peak(device)
    seconds = []
    for _ in range(steps + 1):
        begun = time.perf_counter()
        run().backward()
        model.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return {"seconds": statistics.median(seconds[1:]), "bytes": peak(device) - before}


def peak(device: str) -> int:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    for name, value in (("batch", 2), ("width", 512), ("layers", 8), ("rounds", 3), ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--student", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.student, given.batch, given.steps)))
        return
    from medalign.trainer.students.tiny import DEMO_TEXTS, TinyStudent, make_student

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "student"
        sizes = TinyStudent(width=given.width, layers=given.layers, heads=8, key_heads=4)
        make_student(folder, DEMO_TEXTS, sizes)
        found: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
        for _ in range(given.rounds):
            for variant in VARIANTS:
                words = [__file__, "--one", variant, "--student", str(folder)]
                options = ["--batch", str(given.batch), "--steps", str(given.steps)]
                done = subprocess.run(
                    [sys.executable, *words, *options], capture_output=True, text=True, check=True
                )
                found[variant].append(json.loads(done.stdout.splitlines()[-1]))
    rows = {
        variant: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "bytes")}
        for variant, runs in found.items()
    }
    print(f"{'variant':8} {'seconds':>9} {'ratio':>6} {'peak MB':>9} {'ratio':>6}")
    for variant, row in rows.items():
        print(
            f"{variant:8} {row['seconds']:9.3f} {row['seconds'] / rows['plain']['seconds']:6.2f} "
            f"{row['bytes'] / 2**20:9.0f} {row['bytes'] / rows['plain']['bytes']:6.2f}"
        )
    sizes_used = {key: value for key, value in vars(given).items() if isinstance(value, int)}
    print(json.dumps({"rows": rows, **sizes_used, "machine": platform.machine()}))


if __name__ == "__main__":
    main()
