"""How fast are random single rows read, next to other ways of keeping the same arrays?

Every reader returns fresh copies of the same four arrays of a row. Readers take turns within a
round; each turn is a new process, or two at once, that opens its store and reads every row once in
an order of its own, as a worker does in an epoch. Page caches are treated alike before each turn:
`warm` reads all files of the reader through, `cold` drops them. zarr-python and tensorstore read
the very files that medalign wrote.

Usage: python benchmarks/read.py [--rows 512] [--rounds 5] [--only memmap medalign ...]
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medalign.teacher_cache.format.arrays import RowArray
from medalign.teacher_cache.format.shard_file import RowReader
from medalign.teacher_cache.metadata import zarr_json
from medalign.teacher_cache.storage.local import LocalStorage, OpenFiles

Arrays = dict[str, npt.NDArray[Any]]
Read = Callable[[int], object]
PATCHES, WIDTH = 576, 1024


@dataclass(frozen=True)
class Kind:
    """What a row holds: the large array, and how many rows a shard has."""

    name: str
    large: RowArray
    shard_rows: int
    rows: int

    @property
    def arrays(self) -> tuple[RowArray, ...]:
        S = self.shard_rows
        return (
            self.large,
            RowArray("attention", (PATCHES,), "float32", "NaN", S),
            RowArray("valid", (PATCHES,), "bool", False, S),
            RowArray("source_size", (2,), "int32", 0, S),
        )

    def values(self, start: int, stop: int) -> Arrays:
        """Rows from `start` to `stop`, the same each time."""
        rng = np.random.default_rng(start)
        rows, shape = stop - start, self.large.row_shape
        if self.large.dtype == "float16":
            patches = rng.standard_normal((rows, *shape), np.float32)
            large = (patches / np.linalg.norm(patches, axis=-1, keepdims=True)).astype(np.float16)
        else:  # bytes with the entropy that quantised factors have: about 5.7 bits each
            large = rng.normal(128, 13, (rows, *shape)).clip(0, 255).astype(np.uint8)
        return {
            self.large.name: large,
            "attention": rng.random((rows, PATCHES), np.float32),
            "valid": np.ones((rows, PATCHES), np.bool_),
            "source_size": np.full((rows, 2), 336, np.int32),
        }

    def shards(self) -> Iterator[tuple[int, Arrays]]:
        for shard in range(-(-self.rows // self.shard_rows)):
            start = shard * self.shard_rows
            yield shard, self.values(start, min(start + self.shard_rows, self.rows))


def kinds(rows: int) -> tuple[Kind, Kind]:
    features = RowArray("features", (PATCHES, WIDTH), "float16", "NaN", 64)
    codes = RowArray("codes", (96_000,), "uint8", 0, 256, 3)
    return Kind("fp16", features, 64, rows), Kind("compact", codes, 256, 4 * rows)


def write(kind: Kind, folder: Path) -> None:
    """Write the rows once for every reader."""
    for shard, values in kind.shards():
        for array in kind.arrays:
            path = folder / "medalign" / array.file_of(shard)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(array.encode(values[array.name]))
    for array in kind.arrays:
        metadata = zarr_json(array.metadata(kind.rows))
        (folder / "medalign" / array.name / "zarr.json").write_bytes(metadata)
        (folder / "memmap").mkdir(exist_ok=True)
        whole = np.lib.format.open_memmap(
            folder / "memmap" / f"{array.name}.npy",
            "w+",
            np.dtype(array.dtype),
            (kind.rows, *array.row_shape),
        )
        for shard, values in kind.shards():
            start = shard * kind.shard_rows
            whole[start : start + kind.shard_rows] = values[array.name]
        whole.flush()
    (folder / "safetensors").mkdir()
    from safetensors.numpy import save_file

    for shard, values in kind.shards():
        save_file(values, folder / "safetensors" / f"{shard}.safetensors")


def by_medalign(kind: Kind, folder: Path) -> Read:
    def rows_of(shard: int) -> range:
        return range(shard * kind.shard_rows, min((shard + 1) * kind.shard_rows, kind.rows))

    files = OpenFiles(LocalStorage(folder / "medalign"))
    readers = [RowReader(files, array, rows_of) for array in kind.arrays]
    return lambda row: [reader.read(row) for reader in readers]


def by_memmap(kind: Kind, folder: Path) -> Read:
    arrays = [np.load(folder / "memmap" / f"{array.name}.npy", "r") for array in kind.arrays]
    return lambda row: [np.array(array[row]) for array in arrays]


def by_memmap_checked(kind: Kind, folder: Path) -> Read:
    import google_crc32c

    arrays = [np.load(folder / "memmap" / f"{array.name}.npy", "r") for array in kind.arrays]

    def read(row: int) -> object:
        rows = [np.array(array[row]) for array in arrays]
        return rows, [google_crc32c.value(array.view(np.uint8).reshape(-1)) for array in rows]

    return read


def by_zarr(kind: Kind, folder: Path) -> Read:
    import zarr

    arrays = [zarr.open_array(folder / "medalign" / a.name, mode="r") for a in kind.arrays]
    return lambda row: [np.asarray(array[row]) for array in arrays]


def by_tensorstore(kind: Kind, folder: Path) -> Read:
    import tensorstore

    arrays = [
        tensorstore.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": str(folder / "medalign" / array.name)},
            },
            read=True,
        ).result()
        for array in kind.arrays
    ]
    return lambda row: [pending.result() for pending in [array[row].read() for array in arrays]]


def by_safetensors(kind: Kind, folder: Path) -> Read:
    from safetensors import safe_open

    names = [array.name for array in kind.arrays]
    opened: dict[int, Any] = {}

    def read(row: int) -> object:
        shard, position = divmod(row, kind.shard_rows)
        if shard not in opened:
            path = folder / "safetensors" / f"{shard}.safetensors"
            opened[shard] = safe_open(path, "numpy")
        return [opened[shard].get_slice(name)[position] for name in names]

    return read


READERS = {
    "np.memmap, no checksum": by_memmap,
    "np.memmap and CRC-32C": by_memmap_checked,
    "medalign": by_medalign,
    "zarr-python": by_zarr,
    "tensorstore": by_tensorstore,
    "safetensors, no checksum": by_safetensors,
}
FOLDERS = {by_memmap: "memmap", by_memmap_checked: "memmap", by_safetensors: "safetensors"}


def settle(folder: Path, *, warm: bool) -> None:
    """Bring all files below `folder` into the page cache, or drop them from it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                os.fsync(file.fileno())
                if warm:
                    while file.read(2**22):
                        pass
                else:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def turn(
    opener: Callable[[Kind, Path], Read], kind: Kind, folder: Path, processes: int, count: int
) -> tuple[float, float, list[float]]:
    """Return rows/s of all processes together, CPU ms of a row, and ms of every row."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(processes + 1), context.SimpleQueue()

    def job(number: int) -> None:
        order = np.random.default_rng(number).permutation(kind.rows)[:count].tolist()
        read, times = opener(kind, folder), []
        barrier.wait()
        used = time.process_time()
        begun = before = time.perf_counter()
        for row in order:
            read(row)
            after = time.perf_counter()
            times.append(1e3 * (after - before))
            before = after
        results.put((begun, before, 1e3 * (time.process_time() - used) / count, times))

    workers = [context.Process(target=job, args=(number,)) for number in range(processes)]
    for worker in workers:
        worker.start()
    barrier.wait()
    turns = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    seconds = max(turn[1] for turn in turns) - min(turn[0] for turn in turns)
    times = [time for turn in turns for time in turn[3]]
    return len(times) / seconds, statistics.mean(turn[2] for turn in turns), times


def measure(kind: Kind, folder: Path, readers: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Return a line per reader: medians over rounds."""
    modes = (("warm", 1), ("warm", 2), ("cold", 1))
    speeds: dict[Any, list[float]] = {}
    times: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    for _ in range(rounds):
        for mode, processes in modes:
            for name, opener in readers.items():
                settle(folder / FOLDERS.get(opener, "medalign"), warm=mode == "warm")
                count = kind.rows if mode == "warm" else min(kind.rows, 200)
                speed, used, latencies = turn(opener, kind, folder, processes, count)
                speeds.setdefault((name, mode, processes), []).append(speed)
                if (mode, processes) == modes[0]:
                    times.setdefault(name, []).extend(latencies)
                    cpu.setdefault(name, []).append(used)
    return [
        {
            "kind": kind.name,
            "reader": name,
            "warm_1": statistics.median(speeds[name, "warm", 1]),
            "warm_2": statistics.median(speeds[name, "warm", 2]),
            "cold_1": statistics.median(speeds[name, "cold", 1]),
            "cpu_ms": statistics.median(cpu[name]),
            "p50_ms": float(np.percentile(times[name], 50)),
            "p99_ms": float(np.percentile(times[name], 99)),
        }
        for name in readers
    ]


def table(lines: list[dict[str, Any]]) -> None:
    base = lines[0]
    print("\n| reader | rows/s | ratio | p50 ms | p99 ms | CPU ms | two | ratio | cold | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for line in lines:
        cells = [line["reader"], f"{line['warm_1']:.0f}", f"{line['warm_1'] / base['warm_1']:.2f}"]
        cells += [f"{line[key]:.3f}" for key in ("p50_ms", "p99_ms", "cpu_ms")]
        for key in ("warm_2", "cold_1"):
            cells += [f"{line[key]:.0f}", f"{line[key] / base[key]:.2f}"]
        print(f"| {' | '.join(cells)} |")


def by_pickle(rows: int, folder: Path) -> dict[str, float]:
    """The authors' way: one dict of float32 Gram matrices, unpickled whole by every rank."""
    import pickle  # noqa: TID251 - measured for comparison, on a file written here

    path = folder / "grams.pkl"
    gram = np.random.default_rng(0).random((PATCHES, PATCHES), np.float32)
    with path.open("wb") as file:
        pickle.dump({f"{row}.png": gram + row for row in range(rows)}, file, protocol=4)
    settle(folder, warm=True)
    before, begun = resident(), time.perf_counter()
    with path.open("rb") as file:
        grams = pickle.load(file)
    seconds, grown = time.perf_counter() - begun, resident() - before
    begun = time.perf_counter()
    for row in np.random.default_rng(0).permutation(rows).tolist():
        np.array(grams[f"{row}.png"])
    return {
        "rows": rows,
        "load_seconds": seconds,
        "resident_mb": grown / 2**20,
        "rows_per_second": rows / (time.perf_counter() - begun),
    }


def resident() -> int:
    """Bytes of memory that this process occupies."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def written(kind: Kind, folder: str | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="medalign-bench-", dir=folder) as scratch:
        write(kind, Path(scratch))
        yield Path(scratch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(READERS), help="begin with the base")
    parser.add_argument("--folder", help="where to write the data; decides which disk is measured")
    options = parser.parse_args()
    readers = {
        n: READERS[n] for n in options.only if n != "tensorstore" or find_spec("tensorstore")
    }
    lines: list[dict[str, Any]] = []
    for kind in kinds(options.rows):
        with written(kind, options.folder) as folder:
            measured = measure(kind, folder, readers, options.rounds)
            size = sum(p.stat().st_size for p in (folder / "medalign").rglob("c.*")) / kind.rows
        print(f"\n{kind.name}: {kind.rows} rows of {size / 1e3:.1f} KB in the store")
        table(measured)
        lines += measured
    with tempfile.TemporaryDirectory(prefix="medalign-bench-", dir=options.folder) as scratch:
        pickled = by_pickle(options.rows, Path(scratch))
    print(f"\nthe authors' pickle: {json.dumps({k: round(v, 2) for k, v in pickled.items()})}")
    print(json.dumps({"lines": lines, "pickle": pickled, "cpu": platform.machine()}))


if __name__ == "__main__":
    main()
