"""What does it cost each process to open a cache of 400,000 rows and to find rows in it?

Builds and seals a real store with that many rows and MIMIC-like paths; only the numbers in a row
are few, which neither opening nor looking up touches. Each round is a new process.

Usage: python benchmarks/open.py [--rows 400000] [--rounds 5]
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

PATCHES, WIDTH, SHARD_ROWS = 1, 1, 64


def path_of(row: int) -> str:
    """Name an image as MIMIC-CXR does: 80 characters."""
    name = hashlib.sha256(str(row).encode()).hexdigest()
    patient, study = 10_000_000 + row // 3, 50_000_000 + row
    groups = "-".join(name[k : k + 8] for k in range(0, 40, 8))
    return f"files/p{patient // 10**6}/p{patient}/s{study}/{groups}.jpg"


@patch("os.fsync")  # nobody needs this store after a loss of power
def build(store: Path, rows: int, _fsync: object) -> None:
    """Write and seal a store."""
    import numpy as np

    from medalign.teacher_cache.schema import CacheCard, ExpertCard, PatchGrid, Plan
    from medalign.teacher_cache.seal import seal
    from medalign.teacher_cache.writer import TeacherCacheWriter

    grid = PatchGrid(PATCHES, 1)
    expert = ExpertCard(
        name="none",
        architecture="none",
        weights_sha256="0" * 64,
        features="last",
        grid=grid,
        width=WIDTH,
        image_size=14,
        normalise_before_interpolation=True,
        licence="CC0-1.0",
    )
    card = CacheCard(
        expert=expert,
        grid=grid,
        geometry="pad",
        mode="aligned",
        fill=(0, 0, 0),
        alpha="black",
        dtype="float32",
        interpolation="none",
        codec="fp16",
        shard_rows=SHARD_ROWS,
    )
    paths = [path_of(row) for row in range(rows)]
    content = tuple(hashlib.sha256(path.encode()).hexdigest() for path in paths)
    plan = Plan(content=content, paths=dict(zip(paths, range(rows), strict=True)))
    writer = TeacherCacheWriter.begin(store, card, plan)
    for shard in range(writer.shards):
        count = len(writer.rows_of(shard))
        writer.write(
            shard,
            features=np.ones((count, PATCHES, WIDTH), np.float16),
            attention=np.ones((count, PATCHES), np.float32),
            valid=np.ones((count, PATCHES), np.bool_),
            source_size=np.ones((count, 2), np.int32),
        )
    seal(store)


def resident_mb() -> float:
    """Memory that this process occupies, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def microseconds(call: Callable[[str], object], paths: Sequence[str]) -> list[float]:
    """Time `call` for each path, ascending."""
    times = []
    for path in paths:
        begun = time.perf_counter()
        call(path)
        times.append(1e6 * (time.perf_counter() - begun))
    return sorted(times)


def measure(store: Path, rows: int) -> dict[str, float]:
    """Open the store in this process, look rows up, read some."""
    from medalign.teacher_cache.reader import TeacherCache

    imports = resident_mb()
    paths = [path_of(hash_ * 7919 % rows) for hash_ in range(2000)]
    begun = time.perf_counter()
    cache = TeacherCache.open(store)
    opened = time.perf_counter() - begun
    first = microseconds(cache.row_of, paths[:1])[0]
    results = microseconds(cache.row_of, paths)
    digests = microseconds(lambda path: cache.sha256_of(cache.row_of(path)), paths)
    after = resident_mb()
    return {
        "open_seconds": opened,
        "first_lookup_ms": first / 1e3,
        "lookup_p50_us": results[len(results) // 2],
        "lookup_p99_us": results[-len(results) // 100],
        "content_p50_us": digests[len(digests) // 2],
        "read_p50_us": statistics.median(microseconds(lambda path: cache[path], paths)),
        "imports_mb": imports,
        "resident_mb": after,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.rows)))
        return
    with tempfile.TemporaryDirectory(prefix="medalign-bench-") as scratch:
        store = Path(scratch) / "cache"
        begun = time.perf_counter()
        build(store, options.rows)
        print(f"{options.rows} rows built and sealed in {time.perf_counter() - begun:.0f} s")
        words = [sys.executable, __file__, "--measure", str(store), "--rows", str(options.rows)]
        lines = [json.loads(subprocess.check_output(words)) for _ in range(options.rounds)]
    limits = {"open_seconds": 0.5, "lookup_p50_us": 50, "resident_mb": 150}
    print("| what | median | limit |\n|---|---|---|")
    for key in lines[0]:
        print(f"| {key} | {statistics.median(x[key] for x in lines):.3g} | {limits.get(key, '')} |")
    print(json.dumps({"lines": lines, "cpu": platform.machine()}))


if __name__ == "__main__":
    main()
