"""Write the golden store and what it has to say. Not run by tests: a released format stays.

Run once for each format version, from the folder above the checkout:
`python medalign/tests/teacher_cache/golden_v1/make.py`
"""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medalign.teacher_cache.format.arrays import row_arrays
from medalign.teacher_cache.gram.codec import decode, encode
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import CacheCard, ExpertCard, Failure, PatchGrid, Plan
from medalign.teacher_cache.seal import seal
from medalign.teacher_cache.writer import TeacherCacheWriter

HERE = Path(__file__).parent
BROKEN = {"torn.png": "cut short", "noise.dcm": "no decoder is installed"}
CERTIFICATE = {"rows": [0, 2], "min_cosine": 0.99999, "device": "cpu"}
CARD = CacheCard(
    expert=ExpertCard(
        name="golden",
        architecture="none",
        weights_sha256=hashlib.sha256(b"golden").hexdigest(),
        features="last",
        grid=PatchGrid(2, 3),
        width=5,
        image_size=42,
        normalise_before_interpolation=True,
        licence="CC0-1.0",
    ),
    grid=PatchGrid(2, 3),
    geometry="pad",
    mode="aligned",
    fill=(122, 116, 104),
    alpha="black",
    dtype="float32",
    interpolation="bilinear, align_corners=False",
    codec="fp16",
    shard_rows=3,
    versions={"medalign": "0.1.0"},
)


def sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def values_of(digest: str) -> dict[str, Any]:
    """Numbers from a digest's own bytes, so that no random generator has to stay the same."""
    raw = np.frombuffer(bytes.fromhex(digest), np.uint8).astype(np.float64)
    features = np.resize(raw - 127.5, (6, 5))
    attention = np.resize(raw[::-1] + 1, 6)
    return {
        "features": (features / np.linalg.norm(features, axis=1, keepdims=True)).astype("f2"),
        "attention": (attention / (2 * attention.sum())).astype("f4"),
        "valid": np.resize(raw[3:] > 80, 6),
        "source_size": np.array([raw[0] + 1, raw[1] + 1], "i4"),
    }


def build(store: Path, images: dict[str, str | None]) -> TeacherCacheWriter:
    """Add a folder of images, path -> content, to the store; None is a file that is not there."""
    content = list(dict.fromkeys(each for each in images.values() if each is not None))
    wanted = Plan(
        content=tuple(map(sha256, content)),
        paths={path: content.index(each) for path, each in images.items() if each is not None},
        failures=tuple(Failure(path, "no such file") for path, each in images.items() if not each),
    )
    writer = TeacherCacheWriter.begin(store, CARD, wanted)
    names = writer.plan.path_of_rows()
    for shard in writer.pending():
        span = writer.rows_of(shard)
        rows = [values_of(writer.plan.content_of(row)) for row in span]
        writer.write(
            shard,
            **{name: np.stack([row[name] for row in rows]) for name in rows[0]},
            failures={row: BROKEN[names[row]] for row in span if names[row] in BROKEN},
        )
    return writer


def patches_of(digest: str) -> Any:
    """Patches [6, 5] of the expert, float32, and which are image."""
    values = values_of(digest)
    return values["features"].astype("f4"), values["valid"] | (np.arange(6) < 4)


def build_gram(store: Path, error: float) -> dict[str, Any]:
    """Write and seal a store of codec `gram`; return what its rows have to say."""
    shutil.rmtree(store, ignore_errors=True)
    card = replace(CARD, codec="gram", max_gram_error=error)
    plan = Plan(content=tuple(map(sha256, "de")), paths={"d.png": 0, "e.png": 1})
    writer = TeacherCacheWriter.begin(store, card, plan)
    width = {array.name: array.row_shape for array in row_arrays(card)}["codes"][0]
    rows, grams, errors = [], [], []
    for digest in plan.content:
        patches, valid = patches_of(digest)
        blob, measured = encode(patches, card.grid, card.grid, valid, error)
        codes = np.frombuffer(blob.ljust(width, b"\0"), "u1")
        others = {name: values_of(digest)[name] for name in ("attention", "source_size")}
        pair = np.array([measured.rms, measured.max], "f4")
        rows.append({"codes": codes, "gram_error": pair, "valid": valid, **others})
        grams.append(decode(blob, card.grid, card.grid).gram().tolist())
        errors.append(pair.tolist())
    stacked: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    writer.write(0, **stacked)
    report = seal(store)
    return {"content_hash": report.content_hash, "grams": grams, "errors": errors}


def main() -> None:
    coded = build_gram(HERE / "store_gram", 1e-3)
    (HERE / "expected_gram.json").write_text(json.dumps(coded) + "\n")
    store = HERE / "store"
    shutil.rmtree(store, ignore_errors=True)
    first: dict[str, str | None] = {
        "a.png": "a",
        "b/ü.png": "b",
        "copy of a.png": "a",
        "torn.png": "torn",
        "lost.png": None,
        "changes.png": "before",
    }
    build(store, first)
    seal(store)
    second: dict[str, str | None] = {
        "changes.png": "after",
        "noise.dcm": "noise",
        "c.png": "c",
        "gone.png": None,
    }
    plan = build(store, second).plan
    report = seal(store, certify=lambda _: CERTIFICATE)
    numbers = plan.layout.numbers().tolist()
    names = plan.path_of_rows()
    lost = [row for row in numbers if names.get(row) in BROKEN]
    rows = {
        str(row): {
            name: values.tolist()
            if name == "source_size"
            else {"dtype": values.dtype.name, "values": values.tolist()}
            for name, values in values_of(plan.content_of(row)).items()
        }
        for row in numbers
        if row not in lost
    }
    expected = {
        "content_hash": report.content_hash,
        "fingerprint": CARD.fingerprint(),
        "certificate": CERTIFICATE,
        "card": CARD.to_json(),
        "row_numbers": numbers,
        "paths": dict(plan.paths),
        "content": {str(row): plan.content_of(row) for row in numbers},
        "failures": [[each.path, each.reason] for each in report.failures],
        "lost": lost,
        "rows": rows,
    }
    (HERE / "expected.json").write_text(json.dumps(expected, ensure_ascii=False) + "\n")
    assert TeacherCache.open(store).generations == 2


if __name__ == "__main__":
    main()
