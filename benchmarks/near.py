"""Which distance of perceptual hashes tells copies of an image from different images?

Fingerprints every image of a folder and changed copies of it, as `data leakage` does. Prints, for
each kind of change, the distances of copies and how many lie within the limit; then the smallest
distances between different images; then the time to compare random hashes of many images.

Usage: python benchmarks/near.py FOLDER [--limit 16] [--train 100000] [--test 10000]
"""

import argparse
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from medalign.pipeline.hygiene.near_duplicates import BITS, Fingerprint, fingerprint, near_images
from medalign.pipeline.pixels import PixelsError, decode, read_image

Pixels = NDArray[np.uint8]


def copies(rgb: Pixels) -> Iterator[tuple[str, Pixels]]:
    height, width = rgb.shape[:2]
    image = Image.fromarray(rgb)
    for quality in (90, 75, 50, 20):
        yield f"JPEG {quality}", saved(image, "JPEG", quality)
    yield "WebP 60", saved(image, "WEBP", 60)
    for name, factor in (("half", 0.5), ("double", 2), ("quarter", 0.25)):
        size = max(1, round(width * factor)), max(1, round(height * factor))
        yield f"{name} size", np.asarray(image.resize(size))
    yield "224 x 224", np.asarray(image.resize((224, 224)))
    yield "336 x 336, JPEG 75", saved(image.resize((336, 336)), "JPEG", 75)
    yield "128 x 128, nearest", np.asarray(image.resize((128, 128), Image.Resampling.NEAREST))
    for gamma in (0.8, 0.5):
        yield f"gamma {gamma}", (255 * (rgb / 255) ** gamma).round().astype(np.uint8)
    contrast = (rgb.astype(float) - 128) * 1.2 + 140
    yield "contrast 1.2", np.clip(contrast, 0, 255).astype(np.uint8)
    yield "blur 1.5", np.asarray(image.filter(ImageFilter.GaussianBlur(1.5)))
    noise = np.random.default_rng(0).normal(0, 5, rgb.shape)
    yield "noise 5", np.clip(rgb + noise, 0, 255).astype(np.uint8)
    for share in (0.01, 0.02, 0.05):
        down, right = max(1, int(height * share)), max(1, int(width * share))
        yield f"{share:.0%} cut off", rgb[down : height - down, right : width - right]
    side = max(height, width)
    square = Image.new("RGB", (side, side))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    yield "padded to a square", np.asarray(square)
    yield "rotated by 2 degrees", np.asarray(image.rotate(2))
    yield "mirrored", rgb[:, ::-1]
    yield "inverted", 255 - rgb


def saved(image: Image.Image, kind: str, quality: int) -> Pixels:
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    pixels: Pixels = decode(file.getvalue(), "copy")
    return pixels


def distance(one: Fingerprint, other: Fingerprint) -> float:
    near = next(iter(near_images([one], [other], BITS)))
    return float(near.distances[0]) if len(near.numbers) else float("inf")


def of_copies(folder: Path) -> tuple[list[Fingerprint], dict[str, list[float]]]:
    prints: list[Fingerprint] = []
    found: dict[str, list[float]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            rgb = read_image(path).rgb
        except PixelsError:
            continue
        prints.append(fingerprint(rgb))
        for name, copy in copies(rgb):
            found.setdefault(name, []).append(distance(prints[-1], fingerprint(copy)))
    return prints, found


def of_others(prints: list[Fingerprint]) -> list[float]:
    found = enumerate(near_images(prints, prints, BITS))
    return sorted(
        far
        for place, near in found
        for other, far in zip(near.numbers.tolist(), near.distances.tolist(), strict=True)
        if place < other
    )


def seconds(train: int, test: int) -> float:
    draw = np.random.default_rng(0)

    def some(count: int) -> list[Fingerprint]:
        definite = np.packbits(draw.random((count, BITS)) < 0.94, axis=1)
        signs = draw.integers(0, 256, definite.shape, np.uint8) & definite
        return [
            Fingerprint("", a.tobytes(), b.tobytes()) for a, b in zip(signs, definite, strict=True)
        ]

    sides = some(train), some(test)
    begun = time.perf_counter()
    for _ in near_images(*sides, 16):
        pass
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=float, default=16)
    parser.add_argument("--train", type=int, default=100_000)
    parser.add_argument("--test", type=int, default=10_000)
    given = parser.parse_args()
    prints, found = of_copies(given.folder)
    print(f"{'copy':<22}{'median':>8}{'largest':>9}{'within':>8}")
    report: dict[str, Any] = {"images": len(prints), "limit": given.limit, "copies": {}}
    for name, far in found.items():
        within = float(np.mean(np.array(far) <= given.limit))
        print(f"{name:<22}{np.median(far):>8.1f}{max(far):>9.1f}{within:>8.0%}")
        report["copies"][name] = [float(np.median(far)), max(far), within]
    others = of_others(prints)
    report["others"] = {"pairs": len(others), "smallest": [round(far, 1) for far in others[:10]]}
    report["seconds"] = seconds(given.train, given.test)
    print(f"different images: {report['others']['smallest']} of {len(others):,} pairs")
    print(f"{given.train:,} x {given.test:,} hashes: {report['seconds']:.1f} s")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
