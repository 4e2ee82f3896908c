"""How much of the bare expert's speed does `cache build` keep, reading images from disk?

Prints images/s of the expert's forward on ready tensors and of the whole build on as many images,
in turns, and the ratio. The weights are random: speed does not depend on them.

Usage: python benchmarks/build.py [--expert demo|ViT-B-16|...] [--images 64] [--batch 16]
"""

import argparse
import atexit
import json
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path


def pictures(folder: Path, images: int) -> Path:
    """Write JPEGs of X-ray size and a manifest over them."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    lines = []
    for k in range(images):
        coarse = rng.integers(0, 256, (40, 48), dtype=np.uint8)
        Image.fromarray(coarse).resize((1024, 853)).save(folder / f"{k}.jpg", quality=90)
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "x"}]
        lines.append(json.dumps({"id": str(k), "image": f"{k}.jpg", "conversations": turns}))
    (folder / "m.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "m.jsonl"


def random_weights(architecture: str) -> Path:
    """Save a random open_clip checkpoint in a folder that goes with the process."""
    import open_clip
    from safetensors.torch import save_file

    model = open_clip.create_model(architecture, pretrained=None, load_weights=False)
    path = Path(tempfile.mkdtemp(prefix="medalign-bench-")) / "weights.safetensors"
    save_file({f"visual.{n}": t.contiguous() for n, t in model.visual.state_dict().items()}, path)
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--expert", default="demo")
    for name, value in (("images", 64), ("batch", 16), ("rounds", 3), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    import torch

    from medalign.pipeline.build import BuildOptions, build
    from medalign.pipeline.experts import load_expert

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    name, weights = given.expert, None
    if name != "demo":
        weights = random_weights(name)
        name = f"openclip:{name}"
    expert = load_expert(name, weights, device=device, dtype=dtype)
    side = expert.card.image_size
    ready = torch.rand(given.batch, 3, side, side, device=device, dtype=dtype)
    bare, whole = [], []
    with tempfile.TemporaryDirectory() as scratch:
        manifest = pictures(Path(scratch), given.images)
        for turn in range(given.rounds):
            begun = time.perf_counter()
            for _ in range(given.images // given.batch):
                expert.encode(ready).attention.cpu()
            bare.append(given.images // given.batch * given.batch / (time.perf_counter() - begun))
            options = BuildOptions(batch_size=given.batch, workers=given.workers)
            report = build(manifest, Path(scratch), Path(scratch) / f"c{turn}", expert, options)
            whole.append(report.encoded / report.seconds)
    a, b = statistics.median(bare), statistics.median(whole)
    print(f"bare forward {a:.1f} images/s, cache build {b:.1f} images/s, ratio {b / a:.2f}")
    print(json.dumps({"bare": bare, "build": whole, "device": device, "cpu": platform.machine()}))


if __name__ == "__main__":
    main()
