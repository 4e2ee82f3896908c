"""How many rows a second does `data prepare` make, and how does its memory grow?

Makes two sets in exactly the forms in which they are handed out: PathVQA's official release
(pickles, eight questions an image) and MIMIC-CXR as PhysioNet's two folders (compressed tables,
one text a study, two images a study, all frontal). Image files are a few bytes: they are looked
for, never opened. Then two sides, in turns, each in a process of its own:

    limit     the source read by Python's own library (pickle; gzip and csv, every text), every
              image file looked for, and a dict of each row written as a line of JSON
    prepare   the whole of `data prepare`, without loading Python's libraries

Rows a second of the process's own computing time, ratio to the limit, and peak memory above what
it began with; the line of JSON has the seconds on the clock too.

Usage: python benchmarks/prepare.py [--rows 10000 100000] [--rounds 3]
"""

import argparse
import csv
import gzip
import json
import os
import pickle  # noqa: TID251 - makes PathVQA's files, and the limit reads them
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SETS = ("pathvqa", "mimic-cxr-report")
SIDES = ("limit", "prepare")
SPLITS = {"train": 0.8, "val": 0.1, "test": 0.1}
JPG = "mimic-cxr-jpg/2.1.0"
TEXTS = "mimic-cxr/2.0.0/files"
REPORT = """FINAL REPORT
 EXAMINATION: CHEST (PA AND LAT)
 INDICATION: Invented patient {study} with an invented cough.
 FINDINGS: {findings}
 IMPRESSION: No acute process in study {study}.
"""
SENTENCES = (
    "The lungs are clear without focal consolidation. ",
    "There is no pleural effusion or pneumothorax. ",
    "The cardiac and mediastinal silhouettes are unremarkable. ",
)


def make_pathvqa(root: Path, rows: int) -> None:
    for split, share in SPLITS.items():
        images, folder = root / "images" / split, root / "qas" / split
        images.mkdir(parents=True)
        folder.mkdir(parents=True)
        count = round(rows * share)
        items = [
            {
                "image": f"{split}_{k // 8:06}",
                "question": f"is structure {k} of the epithelium shown here intact?",
                "answer": "yes" if k % 2 else f"columnar epithelium of kind {k}",
            }
            for k in range(count)
        ]
        (folder / f"{split}_qa.pkl").write_bytes(pickle.dumps(items, 3))
        for name in {item["image"] for item in items}:
            (images / f"{name}.jpg").write_bytes(b"made up")


def make_mimic(root: Path, rows: int) -> None:
    split = ["dicom_id,study_id,subject_id,split"]
    metadata = ["dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows"]
    names = ["validate" if k % 10 == 8 else "test" if k % 10 == 9 else "train" for k in range(10)]
    for k in range(rows):
        study, patient = 50_000_000 + k // 2, 10_000_000 + k // 4
        dicom = f"{k:08x}-0123abcd-4567cdef-89abcdef-01234567"
        folder = f"p{patient // 10**6}/p{patient}"
        split.append(f"{dicom},{study},{patient},{names[k // 4 % 10]}")
        metadata.append(f'{dicom},{patient},{study},"CHEST (PA, LAT)",{("PA", "AP")[k % 2]},3056')
        image = root / JPG / "files" / folder / f"s{study}" / f"{dicom}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(b"made up")
        text = root / TEXTS / folder / f"s{study}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        findings = "".join(SENTENCES[: 1 + k // 2 % 3]) * 2
        text.write_text(REPORT.format(study=study, findings=findings))
    for name, lines in (("split", split), ("metadata", metadata)):
        with gzip.open(root / JPG / f"mimic-cxr-2.0.0-{name}.csv.gz", "wt") as file:
            file.write("\n".join(lines) + "\n")


def read_pathvqa(root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for split in SPLITS:
        items = pickle.loads((root / "qas" / split / f"{split}_qa.pkl").read_bytes())
        for item in items:
            yield root / "images" / split / f"{item['image']}.jpg", item


def read_mimic(root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    with gzip.open(root / JPG / "mimic-cxr-2.0.0-metadata.csv.gz", "rt", newline="") as file:
        views = {row["dicom_id"]: row["ViewPosition"] for row in csv.DictReader(file)}
    with gzip.open(root / JPG / "mimic-cxr-2.0.0-split.csv.gz", "rt", newline="") as file:
        shots = list(csv.DictReader(file))
    texts: dict[str, str] = {}
    for shot in shots:
        folder, study = f"p{shot['subject_id'][:2]}/p{shot['subject_id']}", f"s{shot['study_id']}"
        if study not in texts:
            texts[study] = (root / TEXTS / folder / f"{study}.txt").read_text()
        image = root / JPG / "files" / folder / study / f"{shot['dicom_id']}.jpg"
        yield image, shot | {"view": views[shot["dicom_id"]], "text": texts[study]}


def limit(read: Callable[[Path], Iterator[tuple[Path, dict[str, Any]]]], root: Path) -> None:
    seen: set[Path] = set()
    with (root / "limit.jsonl").open("w") as out:
        for image, row in read(root):
            if image not in seen:
                image.stat()
                seen.add(image)
            out.write(json.dumps(row) + "\n")


def measure(name: str, side: str, root: Path) -> dict[str, float]:
    from medalign.pipeline.datasets.prepare import PrepareOptions, prepare
    from medalign.pipeline.datasets.registry import DATA_SETS

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status("VmRSS")
    with tempfile.TemporaryDirectory(prefix="medalign-bench-") as out:
        begun, computed = time.perf_counter(), time.process_time()
        if side == "limit":
            limit(read_pathvqa if name == "pathvqa" else read_mimic, root)
        else:
            done = prepare(DATA_SETS[name], root, Path(out), PrepareOptions())
            assert not done.problems
        seconds, cpu = time.perf_counter() - begun, time.process_time() - computed
    return {"seconds": seconds, "cpu": cpu, "mb": (status("VmHWM") - before) / 1e6}


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def rounds_of(name: str, rows: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="medalign-bench-") as root:
        (make_pathvqa if name == "pathvqa" else make_mimic)(Path(root), rows)
        for _ in range(rounds):
            for side in SIDES:
                words = [sys.executable, __file__, f"--set={name}", f"--side={side}"]
                done = subprocess.check_output([*words, f"--root={root}"], text=True)
                found[side].append(json.loads(done.splitlines()[-1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", choices=SETS, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(measure(given.set, given.side, given.root)))
        return
    lines = []
    print("| set | rows | limit, rows/s | prepare, rows/s | of the limit | its peak MB | peak MB |")
    print("|---|---|---|---|---|---|---|")
    for name in SETS:
        for rows in given.rows:
            found = rounds_of(name, rows, given.rounds)
            middle = {
                side: {key: statistics.median(one[key] for one in each) for key in each[0]}
                for side, each in found.items()
            }
            bare, ours = middle["limit"], middle["prepare"]
            print(
                f"| {name} | {rows:,} | {rows / bare['cpu']:,.0f} "
                f"| {rows / ours['cpu']:,.0f} | {bare['cpu'] / ours['cpu']:.2f} "
                f"| {bare['mb']:.0f} | {ours['mb']:.0f} |"
            )
            lines.append({"set": name, "rows": rows, "rounds": found})
    machine = {"machine": platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"lines": lines, **machine}))


if __name__ == "__main__":
    main()
