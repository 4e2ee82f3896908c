"""What do a manifest's records cost in memory, and on the way to a spawned worker?

As objects (`read_manifest`) and in compact form (`PackedRecords`), each in a process of its own:
seconds to read, resident memory that stays and peak, pickled size, seconds to pickle and to
unpickle, which a spawned worker pays once, and seconds to estimate all lengths.

Usage: python benchmarks/records.py [--records 200000]
"""

import argparse
import json
import os
import pickle  # noqa: TID251 - what a spawned worker receives
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

KINDS = ("objects", "packed")
QUESTIONS = (
    "Is there a fracture of the left rib?",
    "What imaging modality was used to take this image?",
    "Describe the findings of this chest X-ray in a few sentences, please.",
)
ANSWERS = ("No", "X-ray", "The heart size is within normal limits. " * 4)


def write(path: Path, count: int) -> None:
    with path.open("w") as file:
        for k in range(count):
            record = {
                "id": f"patient-{k // 7}-study-{k}-q{k % 3}",
                "image": f"files/p{k % 100}/p{k // 7}/s{k}/{k:032x}.jpg",
                "answer_type": ("CLOSED", "OPEN")[k % 2],
                "split": "train",
                "conversations": [
                    {"from": "human", "value": f"<image>\n{QUESTIONS[k % 3]}"},
                    {"from": "gpt", "value": ANSWERS[k % 3]},
                ],
            }
            file.write(json.dumps(record) + "\n")


def measure(kind: str, path: Path) -> dict[str, float]:
    from medalign.pipeline.manifest import Record, checked_records, read_manifest
    from medalign.trainer.data.dataset import PackedRecords
    from medalign.trainer.data.order import estimated_lengths

    before, begun = status("VmRSS"), time.perf_counter()
    records: Sequence[Record]
    records = read_manifest(path) if kind == "objects" else PackedRecords(checked_records(path))
    row = {"read_s": time.perf_counter() - begun, "held_mb": (status("VmRSS") - before) / 1e6}
    row["peak_mb"] = (status("VmHWM") - before) / 1e6
    begun = time.perf_counter()
    sent = pickle.dumps(records)
    row["pickle_s"], row["pickled_mb"] = time.perf_counter() - begun, len(sent) / 1e6
    begun = time.perf_counter()
    pickle.loads(sent)
    row["unpickle_s"] = time.perf_counter() - begun
    begun = time.perf_counter()
    estimated_lengths(records, 576, 2048)
    row["lengths_s"] = time.perf_counter() - begun
    return row


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.kind:
        print(json.dumps(measure(given.kind, given.file)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "manifest.jsonl"
        write(path, given.records)
        size = path.stat().st_size / 1e6
        rows = {}
        for kind in KINDS:
            words = [sys.executable, __file__, f"--kind={kind}", f"--file={path}"]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            rows[kind] = json.loads(done.stdout)
    print(f"{given.records} records, a manifest of {size:.0f} MB")
    print(f"{'':8}" + "".join(f"{key:>12}" for key in rows["packed"]))
    for kind, row in rows.items():
        print(f"{kind:8}" + "".join(f"{value:12.2f}" for value in row.values()))
    machine = {"machine": platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"rows": rows, "records": given.records, "manifest_mb": size, **machine}))


if __name__ == "__main__":
    main()
