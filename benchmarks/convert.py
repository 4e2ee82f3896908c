"""What does `student convert` cost beside copying the same bytes?

A LLaVA-Med checkpoint of random bfloat16 weights is made once, by the tests' own maker, and stays
in the page cache. Then three sides, in turns, each in a process of its own and to its end on disk:

    copy          every weight file, as `shutil.copyfile` does it
    hash twice    every file read and hashed, then read again, written and hashed: a conversion
                  knows its source by SHA-256 and writes down that of what it made
    convert       the whole conversion without loading Python's libraries

Seconds, bytes of weights a second and the ratio to `copy`, the process's own computing time and
its ratio, and the most memory of its own that it held above what it began with; pages of the
mapped checkpoint belong to the page cache.

Usage: python benchmarks/convert.py [--gb 1] [--form safetensors|bin] [--rounds 3]
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

MAKER = Path(__file__).parents[1] / "tests/trainer/convert/original.py"
SIDES = ("copy", "hash twice", "convert")
WIDTH = 2048
LAYER_GB = 0.0755
"""Of one layer of width 2048, with matrices twice as wide in its MLP."""
BLOCK = 8_000_000


def maker() -> ModuleType:
    """The tests' maker of original checkpoints."""
    spec = spec_from_file_location("original_checkpoints", MAKER)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def make(folder: Path, gb: float, form: str) -> None:
    originals = maker()
    layers = max(1, round(gb / LAYER_GB))
    sizes = originals.Sizes(width=WIDTH, layers=layers, heads=16, key_heads=8, tower_width=512)
    originals.make_llava_med(folder, sizes, form=form)


def weights_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))


def copy(source: Path, out: Path) -> None:
    out.mkdir()
    for path in weights_of(source):
        shutil.copyfile(path, out / path.name)
        with (out / path.name).open("rb") as file:
            os.fsync(file.fileno())


def hash_twice(source: Path, out: Path) -> None:
    out.mkdir()
    for path in weights_of(source):
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
    for path in weights_of(source):
        digest = hashlib.sha256()
        with path.open("rb") as file, (out / path.name).open("wb") as target:
            while block := file.read(BLOCK):
                target.write(block)
                digest.update(block)
            target.flush()
            os.fsync(target.fileno())


def converter() -> Callable[[Path, Path], object]:
    from medalign.trainer.convert.checkpoint_families import ORIGINALS
    from medalign.trainer.convert.convert import Wish, convert
    from medalign.trainer.machine import quiet_libraries

    quiet_libraries()

    @contextmanager
    def stage(_what: str, _total: int) -> Iterator[Callable[[int], None]]:
        yield lambda _count: None

    return lambda source, out: convert(source, out, ORIGINALS["llava-med"], Wish(), stage)


def own_bytes() -> int:
    """Memory of this process that belongs to no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def measure(side: str, source: Path, out: Path) -> dict[str, float]:
    run: dict[str, Callable[[Path, Path], object]] = {"copy": copy, "hash twice": hash_twice}
    work = run[side] if side in run else converter()
    done, before, peak = threading.Event(), own_bytes(), own_bytes()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, own_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun, computed = time.perf_counter(), time.process_time()
    work(source, out)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - computed
    done.set()
    watcher.join()
    return {"seconds": seconds, "cpu": cpu, "mb": (peak - before) / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=1)
    parser.add_argument("--form", choices=("safetensors", "bin"), default="safetensors")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(measure(given.side, given.folder / "made", given.folder / "out")))
        return
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="medalign-bench-") as scratch:
        make(Path(scratch) / "made", given.gb, given.form)
        size = sum(path.stat().st_size for path in weights_of(Path(scratch) / "made"))
        for _ in range(given.rounds):
            for side in SIDES:
                words = [sys.executable, __file__, f"--side={side}", f"--folder={scratch}"]
                lines = subprocess.check_output(words, text=True).splitlines()
                found[side].append(json.loads(lines[-1]))
                shutil.rmtree(Path(scratch) / "out")
                os.sync()  # so that nobody waits for what the one before has written
    rows = {
        side: {key: statistics.median(one[key] for one in each) for key in each[0]}
        for side, each in found.items()
    }
    print(f"{size / 1e9:.2f} GB of weights as {given.form}, medians of {given.rounds} rounds")
    print("| side | seconds | MB/s | ratio | computing, s | ratio | memory, MB |")
    print("|---|---|---|---|---|---|---|")
    first = rows["copy"]
    for side, row in rows.items():
        speed, ratio = size / 1e6 / row["seconds"], row["seconds"] / first["seconds"]
        print(
            f"| {side} | {row['seconds']:.2f} | {speed:.0f} | {ratio:.2f} | {row['cpu']:.2f} "
            f"| {row['cpu'] / first['cpu']:.2f} | {row['mb']:.0f} |"
        )
    machine = {"machine": platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"bytes": size, "form": given.form, "rounds": found, **machine}))


if __name__ == "__main__":
    main()
