"""One safetensors file, written a few megabytes at a time, so that no tensor is ever held whole."""

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ...runtime.files import Draft, naming
from .errors import FruitlessError
from .tensor_plan import Piece

CHUNK: Final = 4_000_000
"""Numbers that are converted at a time."""

_CODES: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
_ALIGNMENT: Final = 8


@dataclass(frozen=True, slots=True)
class Written:
    """A finished shard.

    Attributes:
        bytes: of the file.
        sha256: of the file.
        zeros: matrices that hold nothing but zeros.
    """

    bytes: int
    sha256: str
    zeros: tuple[str, ...]


@dataclass(slots=True)
class _Sink:
    file: Draft
    advance: Callable[[int], None]
    digest: Any = field(default_factory=hashlib.sha256)
    bytes: int = 0

    def write(self, data: Any) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.bytes += len(data)
        self.advance(len(data))


def write_shard(path: Path, pieces: Sequence[Piece], advance: Callable[[int], None]) -> Written:
    """Write one file under a temporary name, whole and on disk, and give it its name.

    The bytes depend on the pieces alone.

    Args:
        path: of the file.
        pieces: in it.
        advance: counts the bytes that are written.

    Raises:
        FruitlessError: a tensor holds values that are not finite, here or in the wanted dtype.
        OSError: the disk is full, say; nothing of the file is left.
    """
    # Wide numbers first, so that each tensor begins where its dtype may.
    ordered = sorted(pieces, key=lambda piece: -piece.dtype.itemsize)
    with naming(path), Draft(path) as draft:
        sink = _Sink(draft, advance)
        sink.write(_header(ordered))
        alive = {piece.target: _write(sink, piece) for piece in ordered}
        draft.finish()
        draft.place()
    zeros = tuple(p.target for p in ordered if len(p.shape) > 1 and not alive[p.target])
    return Written(sink.bytes, sink.digest.hexdigest(), zeros)


def _header(pieces: Sequence[Piece]) -> bytes:
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for piece in pieces:
        end = begin + piece.bytes
        head[piece.target] = {
            "dtype": _CODES[piece.dtype],
            "shape": list(piece.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    data = json.dumps(head, separators=(",", ":")).encode()
    data += b" " * (-len(data) % _ALIGNMENT)
    return struct.pack("<Q", len(data)) + data


def _write(sink: _Sink, piece: Piece) -> bool:
    """Write one tensor; say whether any number in it is not zero."""
    tensor = piece.weights.read(piece.source)
    alive = False
    for part in parts_of(tensor):
        converted = part.to(piece.dtype)
        finite, some = look(converted)
        if not finite:
            raise FruitlessError(_not_finite(piece, part))
        alive = alive or some
        sink.write(_bytes(converted))
    if piece.rows:
        row = mean_row(tensor).to(piece.dtype)
        sink.write(_bytes(row.repeat(piece.rows)))
    return alive


def parts_of(tensor: Tensor) -> Iterator[Tensor]:
    """Cut a tensor's numbers into pieces of at most `CHUNK`."""
    flat = tensor.reshape(-1)
    for begin in range(0, len(flat), CHUNK):
        yield flat[begin : begin + CHUNK]


def look(part: Tensor) -> tuple[bool, bool]:
    """Whether all numbers are finite, and whether any is not zero."""
    # NaN becomes both extremes; one pass, and ten times as fast as `isfinite`.
    low, high = torch.aminmax(part)
    return bool(torch.isfinite(low) & torch.isfinite(high)), bool((low != 0) | (high != 0))


def _bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().view(torch.uint8).numpy().data


def mean_row(tensor: Tensor) -> Tensor:
    """Mean over the rows of [R, C], summed in float64.

    As a row of the head, its logit is the mean of the others' logits: never the largest.
    """
    total = torch.zeros(tensor.shape[1], dtype=torch.float64)
    step = max(1, CHUNK // 8 // tensor.shape[1])  # eight bytes a number while they are summed
    for begin in range(0, len(tensor), step):
        total += tensor[begin : begin + step].sum(0, dtype=torch.float64)
    return total / len(tensor)


def _not_finite(piece: Piece, part: Tensor) -> str:
    name = f"tensor {piece.source} of {piece.weights.tensors[piece.source].file}"
    if look(part)[0]:
        return f"{name} has values too large for {piece.dtype}: give --dtype keep or bf16"
    return f"{name} has values that are not finite (NaN or infinite): the checkpoint is damaged"
