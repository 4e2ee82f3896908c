"""What does it cost to check, while an image is decoded, that it is the one the cache saw?

Training hashes each image file and compares the digest with the cache's. Prints milliseconds of
reading an image as training does, and of the SHA-256 within, for kinds of image as they occur.

Usage: python benchmarks/content.py [--rounds 15]
"""

import argparse
import hashlib
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image


def pictures(folder: Path) -> dict[str, Path]:
    """Write one image of each kind; smooth content with some noise, as X-rays have."""
    rng = np.random.default_rng(0)
    results = {}
    for name, (width, height), file, quality in (
        ("JPEG 2544x3056, quality 95", (2544, 3056), "a.jpg", 95),
        ("JPEG 1024x853, quality 90", (1024, 853), "b.jpg", 90),
        ("PNG 512x512", (512, 512), "c.png", None),
        ("PNG 336x336", (336, 336), "d.png", None),
    ):
        coarse = Image.fromarray(rng.integers(0, 256, (40, 48), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height)), np.float32)
        noisy = (smooth + rng.normal(0, 3, smooth.shape)).clip(0, 255).astype(np.uint8)
        results[name] = folder / file
        Image.fromarray(noisy).save(results[name], quality=quality)
    return results


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    from medalign.pipeline.pixels import read_image

    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        print("| image | file, KB | reading it, ms | of that SHA-256, ms | share |")
        print("|---|---|---|---|---|")
        for name, path in pictures(Path(scratch)).items():
            data = path.read_bytes()
            whole = milliseconds(partial(read_image, path), options.rounds)
            check = milliseconds(partial(hashlib.sha256, data), options.rounds)
            size = len(data) / 1e3
            print(f"| {name} | {size:.0f} | {whole:.2f} | {check:.2f} | {check / whole:.1%} |")
            lines.append({"image": name, "kb": size, "read_ms": whole, "check_ms": check})
    print(json.dumps({"lines": lines, "cpu": platform.machine()}))


if __name__ == "__main__":
    main()
