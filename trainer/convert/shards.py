"""All weight files of a conversion: which tensors go into which, what is left to write."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ...teacher_cache.durable import write_durably
from ..amounts import of_bytes
from .describe import as_json
from .errors import ConvertError
from .plan import Piece
from .shard import Written, write_shard
from .stage import Stage
from .weights import SAFETENSORS_INDEX
from .workplace import Workplace

_SPARE: Final = 50_000_000
"""Bytes left over for tokenizer and report."""


def write_shards(
    pieces: Iterable[Piece], limit: int, place: Workplace, stage: Stage
) -> tuple[dict[str, tuple[Sequence[Piece], Written]], int]:
    """Write the files that an earlier run did not finish, and the index of all.

    Args:
        pieces: of the model, in order.
        limit: most bytes of a file, unless one tensor is larger.
        place: to write into.
        stage: told how far it is.

    Returns:
        Pieces and result of every file, and how many of them were there already.

    Raises:
        ConvertError: there is too little room, or a tensor is damaged.
        OSError: the disk is full, say.
    """
    groups = _grouped(pieces, limit)
    named = {_file_name(k, len(groups)): group for k, group in enumerate(groups)}
    done = {name: found for name in named if (found := place.finished(name)) is not None}
    reused = len(done)
    place.keep_only([*done])
    check_room(place, sum(p.bytes for name in named if name not in done for p in named[name]))
    written: dict[str, tuple[Sequence[Piece], Written]] = {}
    with stage("converting", sum(p.bytes for group in groups for p in group)) as told:
        for name, group in named.items():
            if name in done:
                told(sum(piece.bytes for piece in group))
            else:
                done[name] = write_shard(place.folder / name, group, told)
                place.note(name, done[name])
            written[name] = (group, done[name])
    if len(groups) > 1:
        write_durably(place.folder / SAFETENSORS_INDEX, as_json(_index(named)))
    return written, reused


def _index(named: Mapping[str, Sequence[Piece]]) -> dict[str, Any]:
    pieces = [piece for group in named.values() for piece in group]
    return {
        "metadata": {"total_size": sum(piece.bytes for piece in pieces)},
        "weight_map": {p.target: name for name, group in named.items() for p in group},
    }


def check_room(place: Workplace, left: int) -> None:
    """Look whether what is left to write fits on the disk.

    Args:
        place: to write into.
        left: bytes.

    Raises:
        ConvertError: it does not.
    """
    free = shutil.disk_usage(place.path).free
    if free < left + _SPARE:
        kept = f"; {place.path} keeps what is written already" if place.begun() else ""
        raise ConvertError(
            f"{place.path.parent} has {of_bytes(free)} free, what is left to write needs "
            f"{of_bytes(left + _SPARE)}: free some space or choose another --out{kept}"
        )


def _grouped(pieces: Iterable[Piece], limit: int) -> list[tuple[Piece, ...]]:
    """Cut pieces into files of at most `limit` bytes, unless one tensor is larger."""
    files: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        if files[-1] and size + piece.bytes > limit:
            files.append([])
            size = 0
        files[-1].append(piece)
        size += piece.bytes
    return [tuple(file) for file in files]


def _file_name(number: int, count: int) -> str:
    """Name of the shard with a number from 0, as transformers names them."""
    if count == 1:
        return "model.safetensors"
    return f"model-{number + 1:05}-of-{count:05}.safetensors"
