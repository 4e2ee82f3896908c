"""Which tensor goes where: every one of the source's once, every one of the model's once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import torch
from transformers import LlavaForConditionalGeneration

from .errors import ConvertError, told_of
from .names import (
    EMBEDDING,
    HEAD,
    SOURCE_HEAD,
    bare,
    natural,
    reason_unused,
    reason_unused_in_tower,
    target_of,
    target_of_tower,
)
from .tower import INSIDE, Tower
from .weights import Stored, Weights

DTYPES: Final = {"keep": None, "bf16": torch.bfloat16, "fp16": torch.float16}
FLOATS: Final = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
"""What safetensors and every reader of it can hold; narrower ones are quantised."""
_SHOWN: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One tensor of the converted folder.

    Attributes:
        target: its name there.
        source: its name where it is from.
        weights: that hold it.
        shape: in the converted folder; `rows` of it are new.
        rows: added at the end, each the mean of the others.
        dtype: in the converted folder.
    """

    target: str
    source: str
    weights: Weights
    shape: tuple[int, ...]
    rows: int
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Size in the converted folder."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Unused:
    """A tensor of the source that the converted folder does without."""

    source: str
    file: str
    stored: Stored
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All tensors of a conversion."""

    pieces: tuple[Piece, ...]
    unused: tuple[Unused, ...]


def plan(weights: Weights, tower: Tower, config: Any, rows: int, dtype: torch.dtype | None) -> Plan:
    """Give every tensor of the source its place, or the reason why it needs none.

    Args:
        weights: of the checkpoint.
        tower: the vision tower.
        config: of the converted model.
        rows: to add to embedding and head.
        dtype: of the converted tensors; None keeps each as it is.

    Raises:
        ConvertError: a tensor is unknown, missing, twice there, or has another shape.
    """
    pieces: list[Piece] = []
    unused: list[Unused] = []
    unknown: list[str] = []
    for source, held, kept in _sources(weights, tower, tied=config.tie_word_embeddings):
        stored = held.tensors[source]
        place, reason = kept
        if reason is not None:
            unused.append(Unused(source, stored.file.name, stored, reason))
        elif place is None:
            unknown.append(source)
        elif stored.dtype not in FLOATS:
            kind = str(stored.dtype).removeprefix("torch.")
            raise ConvertError(f"{stored.file}: {source} is stored as {kind}: quantised weights")
        else:
            more = rows if place in (EMBEDDING, HEAD) and stored.shape else 0
            pieces.append(
                Piece(
                    target=place,
                    source=source,
                    weights=held,
                    shape=(stored.shape[0] + more, *stored.shape[1:]) if more else stored.shape,
                    rows=more,
                    dtype=stored.dtype if dtype is None else dtype,
                )
            )
    _check(weights, pieces, unknown, config)
    return Plan(tuple(sorted(pieces, key=lambda piece: natural(piece.target))), tuple(unused))


def _sources(
    weights: Weights, tower: Tower, *, tied: bool
) -> Iterator[tuple[str, Weights, tuple[str | None, str | None]]]:
    """Every tensor with its place or the reason why it needs none; neither, when it is unknown."""
    for name in sorted(weights.tensors, key=natural):
        reason = reason_unused(name)
        if name.startswith(INSIDE) and tower.origin == "folder":
            reason = "replaced by the tower of --vision-tower, as --tower-weights folder asks"
        elif name == SOURCE_HEAD and tied:
            reason = "the same matrix as the embedding (tie_word_embeddings)"
        yield name, weights, (target_of(name), reason)
    if tower.weights is not None:
        for name in sorted(tower.weights.tensors, key=natural):
            yield name, tower.weights, (target_of_tower(name), reason_unused_in_tower(name))


def _check(weights: Weights, pieces: Sequence[Piece], unknown: Sequence[str], config: Any) -> None:
    wanted = _wanted(weights, config)
    found: dict[str, Piece] = {}
    twice = [
        piece.source for piece in pieces if found.setdefault(bare(piece.target), piece) is not piece
    ]
    missing = [name for key, (name, _) in wanted.items() if key not in found]
    extra = [piece.source for key, piece in found.items() if key not in wanted]
    wrong = [
        f"{piece.source} {piece.shape} instead of {wanted[key][1]}"
        for key, piece in found.items()
        if key in wanted and piece.shape != wanted[key][1]
    ]
    problems = [
        _listed("unexpected tensors", [*unknown, *extra]),
        _listed("tensors that are there twice", twice),
        _listed("tensors missing", missing),
        _listed("tensors of another shape than config.json gives", wrong),
    ]
    told = "; ".join(problem for problem in problems if problem)
    if told:
        raise ConvertError(f"{weights.folder}: {told}")


def _listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what}: {', '.join(names[:_SHOWN])}{more}"


def _wanted(weights: Weights, config: Any) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that the model must find, by its bare name."""
    with told_of(f"{weights.folder / 'config.json'}: no model of that"), torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(config)
    shapes = {bare(name): (name, tuple(t.shape)) for name, t in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop(bare(HEAD), None)
    return shapes
