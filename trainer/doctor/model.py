"""Does the student's folder load, as far as one can tell without its weights?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ...pipeline.manifest import Record
from ..amounts import counted, of_bytes
from ..lengths import Lengths
from ..students.spec import StudentError, StudentSpec, first_line, read_student
from .check import Check, first

_INDEX = "model.safetensors.index.json"
_BARS = 8
_WIDTH = 30


def read(path: Path, geometry: str) -> tuple[StudentSpec | None, Check]:
    """Read config, processor, chat template and image token."""
    try:
        spec = read_student(path, geometry)
    except StudentError as error:
        return None, Check("student", "failed", str(error), "see the README for what students are")
    encoder = spec.encoder
    text = (
        f"{path}: {spec.layers} layers, {spec.grid} visual tokens, geometry {spec.geometry}, "
        f"image token {encoder.image_token!r}"
    )
    return spec, Check("student", "ok", text)


def weights(folder: Path) -> Check:
    """Find every weight file and read its header; no tensor is loaded."""
    try:
        names = _files(folder)
    except (OSError, ValueError) as error:
        return Check("weights", "failed", f"{folder / _INDEX}: {error}", "copy the folder again")
    if not names:
        if list(folder.glob("pytorch_model*.bin")):
            text = f"{folder} has its weights as pytorch_model.bin alone"
            return Check("weights", "warning", text, "save them as safetensors")
        return Check("weights", "failed", f"{folder} holds no weights", "copy *.safetensors there")
    wrong, tensors, size = [], 0, 0
    for name in names:
        try:
            with safe_open(folder / name, "pt") as file:
                tensors += len(list(file.keys()))
            size += (folder / name).stat().st_size
        except (OSError, SafetensorError) as error:
            missing = "is missing" if not (folder / name).is_file() else first_line(error)
            wrong.append(f"{name}: {missing}")
    if wrong:
        text = f"{len(wrong)} of {counted(len(names), 'weight file')} cannot be read"
        return Check("weights", "failed", text, "copy them again", first(wrong))
    text = f"{counted(tensors, 'tensor')} in {counted(len(names), 'file')}, {of_bytes(size)}"
    return Check("weights", "ok", text)


def _files(folder: Path) -> list[str]:
    index = folder / _INDEX
    if index.is_file():
        listed: dict[str, Any] = json.loads(index.read_text())
        return sorted(set(listed["weight_map"].values()))
    return sorted(path.name for path in folder.glob("*.safetensors"))


def lengths(found: Lengths, records: Sequence[Record], max_length: int) -> Check:
    """Say what `data.max_length` does to the conversations."""
    seen = counted(found.scanned, "conversation")
    if not len(found.tokens):
        text = f"none of {seen} can be used"
    else:
        quartiles = sorted(found.tokens.tolist())
        middle = quartiles[len(quartiles) // 2]
        text = f"{seen} of {quartiles[0]:,} to {quartiles[-1]:,} tokens, median {middle:,}"
    if found.scanned < len(records):
        text += f" (of {len(records):,})"
    text += f"; data.max_length {max_length:,} cuts {found.cut:,}"
    unusable = [f"{record!r}: {reason}" for record, reason in (*found.too_long, *found.unusable)]
    bars = tuple(histogram(found, max_length))
    if unusable:
        text += f"; {len(found.too_long):,} do not fit at all, {len(found.unusable):,} unusable"
        advice = (
            "raise data.max_length: image tokens are never cut"
            if found.too_long
            else "mend them, or they are skipped"
        )
        status = "warning" if len(found.tokens) else "failed"
        return Check("lengths", status, text, advice, (*bars, *first(unusable)))
    advice = "raise data.max_length, or accept shortened answers" if found.cut else ""
    return Check("lengths", "warning" if found.cut else "ok", text, advice, bars)


def histogram(found: Lengths, max_length: int) -> list[str]:
    """Text bars of lengths, `data.max_length` marked."""
    if not len(found.tokens):
        return []
    low, high = int(found.tokens.min()), int(found.tokens.max())
    step = max(1, -(-(high - low + 1) // _BARS))
    edges = range(low, high + 1, step)
    counts = [int(((found.tokens >= a) & (found.tokens < a + step)).sum()) for a in edges]
    most = max(counts)
    lines = []
    for edge, count in zip(edges, counts, strict=True):
        last = min(edge + step - 1, high)
        bar = "█" * max(bool(count), round(_WIDTH * count / most))
        mark = "  <- data.max_length" if edge <= max_length < edge + step else ""
        lines.append(f"{edge:>6,} to {last:>6,}  {bar:<{_WIDTH}}  {count:,}{mark}")
    return lines
