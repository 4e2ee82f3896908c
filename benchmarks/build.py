"""How much of the bare expert's speed does `cache build` keep, and what limits it?

Measured in turns on the same images, as images/s:

    forward     the expert alone, on ready tensors, at the build's batch size
    decode      reading and squaring alone, in as many processes as the build has
    write       writing shards alone: checksums, digests, fsync
    write_zarr  the same files, byte for byte, with every shard encoded by zarr-python
    build       `cache build` from files to committed shards
    build_zarr  the same with every shard encoded by zarr-python
    authors     one image at a time in one process, every block's attention map computed and kept,
                as the authors' notebooks do; nothing is written

The build overlaps the first three, so the smallest of them limits it. The weights are random:
speed does not depend on them. A second table has, for each encoder, the computing time that an
image takes, in all threads of the building process and in encoding alone, which other work on the
machine hardly changes; and how much of a build passes inside `encode` and inside `write`.

Usage: python benchmarks/build.py [--expert demo|ViT-B-16|...] [--images 64] [--batch 16]
"""

import argparse
import atexit
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


@contextmanager
def every_map(module: Any) -> Iterator[list[Any]]:
    """Let every attention of an open_clip tower compute its map, and keep it."""
    import torch

    maps: list[Any] = []
    restored = []
    for attention in module.modules():
        if not isinstance(attention, torch.nn.MultiheadAttention):
            continue

        def with_map(*inputs: Any, _plain: Any = attention.forward, **options: Any) -> Any:
            options |= {"need_weights": True, "average_attn_weights": False}
            output, weights = _plain(*inputs, **options)
            maps.append(weights.cpu())
            return output, weights

        restored.append((attention, attention.forward))
        setattr(attention, "forward", with_map)  # noqa: B010 - mypy refuses a plain assignment
    try:
        yield maps
    finally:
        for attention, plain in restored:
            setattr(attention, "forward", plain)  # noqa: B010


class Bench:
    """One expert, one set of images; each method does them all once and returns images/s."""

    def __init__(self, name: str, folder: Path, options: argparse.Namespace) -> None:
        import torch

        from medalign.pipeline.experts import load_expert

        self.folder, self.turn = folder, 0
        self.images: int = options.images
        self.batch: int = options.batch
        self.workers: int = options.workers
        self.shares: dict[str, list[float]] = {}
        self.computing: dict[str, list[float]] = {}
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        weights = None if name == "demo" else random_weights(name)
        known = name if name == "demo" else f"openclip:{name}"
        self.expert = load_expert(known, weights, device=self.device, dtype=dtype)
        self.manifest = pictures(folder, options.images)
        side = self.expert.card.image_size
        self.ready = torch.rand(self.batch, 3, side, side, device=self.device, dtype=dtype)

    def forward(self) -> float:
        begun = time.perf_counter()
        for _ in range(self.images // self.batch):
            self.expert.encode(self.ready).attention.cpu()
        return self.images // self.batch * self.batch / (time.perf_counter() - begun)

    def decode(self) -> float:
        from functools import partial

        from medalign.pipeline.build_options import STUDENT_GRID
        from medalign.pipeline.decode import Source, View, read_squares
        from medalign.pipeline.geometry import mean_colour
        from medalign.pipeline.pixels import sha256_file
        from medalign.runtime.processes import Workers

        view = View(
            root=self.folder,
            geometry="pad",
            size=self.expert.card.image_size,
            fill=mean_colour(),
            alpha="black",
            grid=STUDENT_GRID,
        )
        names = [f"{k}.jpg" for k in range(self.images)]
        sources = [Source(name, sha256_file(self.folder / name)) for name in names]
        tasks = [sources[k : k + 4] for k in range(0, len(sources), 4)]
        with Workers(self.workers, preload="medalign.pipeline.decode") as workers:
            list(workers.map(partial(read_squares, view), tasks[: self.workers], 8))  # started
            begun = time.perf_counter()
            for _ in workers.map(partial(read_squares, view), tasks, 8):
                pass
            return self.images / (time.perf_counter() - begun)

    def write(self) -> float:
        import numpy as np

        from medalign.pipeline.build_options import BuildOptions, make_card
        from medalign.teacher_cache.schema import Plan
        from medalign.teacher_cache.writer import TeacherCacheWriter

        card = make_card(self.expert, BuildOptions())
        content = tuple(f"{k:064x}" for k in range(self.images))
        plan = Plan(content=content, paths={f"{k}.jpg": k for k in range(self.images)})
        writer = TeacherCacheWriter.begin(self._store(), card, plan)
        rng = np.random.default_rng(0)
        features = rng.standard_normal((card.shard_rows, 576, card.expert.width), np.float32)
        features = features.astype(np.float16)
        begun = time.perf_counter()
        for shard in writer.pending():
            rows = len(writer.rows_of(shard))
            writer.write(
                shard,
                features=features[:rows],
                attention=np.full((rows, 576), 0.001, np.float32),
                valid=np.ones((rows, 576), np.bool_),
                source_size=np.full((rows, 2), 336, np.int32),
            )
        return self.images / (time.perf_counter() - begun)

    def write_zarr(self) -> float:
        from encoders import shards_by_zarr

        with shards_by_zarr():
            return self.write()

    def build(self, encoder: str = "ours") -> float:
        from encoders import timed

        from medalign.pipeline.build import build
        from medalign.pipeline.build_options import BuildOptions
        from medalign.teacher_cache.format.arrays import RowArray
        from medalign.teacher_cache.writer import TeacherCacheWriter

        options = BuildOptions(batch_size=self.batch, workers=self.workers)
        computing = time.process_time()
        with timed(TeacherCacheWriter, "write") as write, timed(RowArray, "encode") as encode:
            report = build(self.manifest, self.folder, self._store(), self.expert, options)
        computing = (time.process_time() - computing) / report.encoded * 1000
        self.computing.setdefault(encoder, []).append(computing)
        for name, seconds in (("write", write), ("encode", encode)):
            self.shares.setdefault(f"{name}, {encoder}", []).append(sum(seconds) / report.seconds)
        rate: float = report.encoded / report.seconds
        return rate

    def build_zarr(self) -> float:
        from encoders import shards_by_zarr

        with shards_by_zarr():
            rate: float = self.build("zarr")
        return rate

    def encode_cost(self) -> dict[str, float]:
        """Return what encoding a full shard of features takes of computing time, ms an image."""
        import numpy as np
        from encoders import shards_by_zarr

        from medalign.pipeline.build_options import BuildOptions, make_card
        from medalign.teacher_cache.format.arrays import row_arrays

        rng, layouts = np.random.default_rng(0), row_arrays(make_card(self.expert, BuildOptions()))
        rows: int = layouts[0].shard_rows
        shard = {
            layout: rng.integers(0, 2, (rows, *layout.row_shape)).astype(layout.dtype)
            for layout in layouts
        }

        def cost() -> float:
            begun = time.process_time()
            for layout, values in shard.items():
                layout.encode(values)
            return (time.process_time() - begun) / rows * 1000

        ours = cost()
        with shards_by_zarr():
            cost()  # its arrays are made once
            return {"ours": ours, "zarr": cost()}

    def authors(self) -> float:
        import torch
        from PIL import Image

        some = max(1, self.images // 8)
        tower = self.expert._tower  # the whole tower, as the notebooks run it
        begun = time.perf_counter()
        with torch.no_grad(), every_map(tower.module) as maps:
            for k in range(some):
                image = Image.open(self.folder / f"{k}.jpg").convert("RGB")
                side = self.expert.card.image_size
                square = image.resize((side, side), Image.Resampling.BICUBIC)
                rgb = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
                pixels = self.expert.normalise(rgb.reshape(1, side, side, 3))
                tower.run(pixels.to(self.expert.dtype), normalised=False).attention.cpu()
                maps.clear()
        return some / (time.perf_counter() - begun)

    def _store(self) -> Path:
        self.turn += 1
        return self.folder / f"cache{self.turn}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--expert", default="demo")
    for name, value in (("images", 64), ("batch", 16), ("rounds", 3), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    from medalign.trainer.machine import quiet_libraries

    quiet_libraries()
    measured: dict[str, list[float]] = {}
    encoding: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options.expert, Path(scratch), options)
        stages = (
            *(bench.forward, bench.decode, bench.write, bench.write_zarr),
            *(bench.build, bench.build_zarr, bench.authors),
        )
        for _ in range(options.rounds):
            for stage in stages:
                measured.setdefault(stage.__name__, []).append(stage())
            for encoder, cost in bench.encode_cost().items():
                encoding.setdefault(encoder, []).append(cost)
    rates = {stage: statistics.median(values) for stage, values in measured.items()}
    print(f"{'stage':10} {'images/s':>9} {'of forward':>11}")
    for name, rate in rates.items():
        print(f"{name:10} {rate:9.1f} {rate / rates['forward']:11.2f}")
    limit = min(("forward", "decode", "write"), key=lambda name: rates[name])
    print(f"limit: {limit}; build reaches {rates['build'] / rates[limit]:.2f} of it")
    print(f"{'encoder':10} {'build ms':>9} {'encode ms':>10} {'of build: encode':>17} {'write':>6}")
    for encoder, costs in encoding.items():
        encode, write = (
            statistics.median(bench.shares[f"{name}, {encoder}"]) for name in ("encode", "write")
        )
        build, alone = statistics.median(bench.computing[encoder]), statistics.median(costs)
        print(f"{encoder:10} {build:9.2f} {alone:10.3f} {encode:17.3f} {write:6.3f}")
    results = {**measured, "build_ms": bench.computing, "encode_ms": encoding}
    results |= bench.shares
    print(json.dumps({**vars(options), "device": bench.device, **results}))


if __name__ == "__main__":
    main()
