"""How do time and memory of `cache build` grow with the number of images?

Builds and seals caches of tiny synthetic PNGs with an expert that costs almost nothing, so what
is left is what the build itself spends on a row; each size in a process of its own. Prints rows
a second and the peak memory of the building process beside that of the smallest size.

Each size is built twice: with shards encoded by this package, and by zarr-python to the same
bytes. `CPU ms` is the building process' computing time a row without its decoding workers', which
other work on the machine hardly changes; `encode` the share of a build in which it encodes shards.

Usage: python benchmarks/growth.py [--rows 100 1000 10000 100000] [--workers 2]
"""

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import cast

SIDE, WIDTH = 4, 8


def pictures(folder: Path, rows: int) -> Path:
    """Write `rows` distinct PNGs of 8 x 8 pixels, 1,000 to a folder, and a manifest over them."""
    from PIL import Image

    with (folder / "m.jsonl").open("w") as manifest:
        for k in range(rows):
            name = f"p{k // 1000:04d}/{k}.png"
            (folder / name).parent.mkdir(exist_ok=True)
            pixels = bytes((k >> shift) & 255 for shift in (0, 8, 16)) * 64
            Image.frombytes("RGB", (8, 8), pixels).save(folder / name)
            turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "x"}]
            record = {"id": str(k), "image": name, "conversations": turns}
            manifest.write(json.dumps(record) + "\n")
    return folder / "m.jsonl"


def measure(rows: int, workers: int, encoder: str) -> dict[str, float | str]:
    import torch
    from encoders import shards_by_zarr, timed

    from medalign.pipeline.build import build
    from medalign.pipeline.build_options import BuildOptions
    from medalign.pipeline.experts import Expert, load_expert
    from medalign.pipeline.resample import ExpertOutput
    from medalign.teacher_cache.format.arrays import RowArray
    from medalign.teacher_cache.schema import ExpertCard, PatchGrid
    from medalign.teacher_cache.seal import seal

    demo = load_expert("demo")

    fields = {name: getattr(demo.card, name) for name in ExpertCard.__slots__}
    fields |= {"grid": PatchGrid(SIDE, SIDE), "width": WIDTH, "image_size": 16}
    small = ExpertCard(**fields)

    class Cheap:
        """Stands where an expert would, and gives every image the same patches."""

        card = small
        device, dtype, normalise = demo.device, demo.dtype, demo.normalise
        patches = torch.randn(SIDE * SIDE, WIDTH, generator=torch.Generator())

        def encode(self, pixels: torch.Tensor) -> ExpertOutput:
            patches = self.patches.expand(len(pixels), -1, -1)
            return ExpertOutput(patches, torch.full(patches.shape[:2], 0.05))

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        manifest = pictures(folder, rows)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        options = BuildOptions(grid=PatchGrid(SIDE, SIDE), workers=workers)
        encoding = shards_by_zarr() if encoder == "zarr" else contextlib.nullcontext()
        begun, computing = time.perf_counter(), time.process_time()
        with encoding, timed(RowArray, "encode") as encode:
            build(manifest, folder, folder / "cache", cast(Expert, Cheap()), options)
        built, computing = time.perf_counter(), time.process_time() - computing
        seal(folder / "cache")
        sealed = time.perf_counter()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "rows": rows,
        "encoder": encoder,
        "build": built - begun,
        "cpu_ms": computing / rows * 1000,
        "encode": sum(encode) / (built - begun),
        "seal": sealed - built,
        "before": before / 1024,
        "peak": after / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--encoder", default="ours", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.workers, options.encoder)))
        return
    results = []
    for rows, encoder in product(options.rows, ("ours", "zarr")):
        words = [__file__, "--one", str(rows), "--workers", str(options.workers)]
        words += ["--encoder", encoder]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    names = (
        "rows",
        "encoder",
        "build s",
        "rows/s",
        "CPU ms",
        "encode",
        "seal s",
        "peak MB",
        "more MB",
    )
    print(" ".join(f"{name:>8}" for name in names))
    for one in results:
        print(
            f"{one['rows']:8.0f} {one['encoder']:>8} {one['build']:8.1f} "
            f"{one['rows'] / one['build']:8.0f} {one['cpu_ms']:8.3f} {one['encode']:8.3f} "
            f"{one['seal']:8.2f} {one['peak']:8.0f} {one['peak'] - one['before']:8.0f}"
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
