"""Which tensor goes where: every one of the source's once, every one of the model's once."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import torch
from transformers import LlavaForConditionalGeneration

from .checkpoint_weights import Stored, Weights
from .errors import ConvertError, one_line
from .vision_tower import INSIDE, Tower

TEXT: Final = "language_model."
PROJECTOR: Final = "multi_modal_projector."
VISION: Final = "vision_tower.vision_model."
EMBEDDING: Final = f"{TEXT}model.embed_tokens.weight"
HEAD: Final = f"{TEXT}lm_head.weight"
SOURCE_EMBEDDING: Final = "model.embed_tokens.weight"
SOURCE_HEAD: Final = "lm_head.weight"
POSITIONS: Final = "embeddings.position_ids"

_WRAPPERS: Final = frozenset({"model", "language_model", "vision_model"})
_MLP: Final = {"0": "linear_1", "2": "linear_2"}
_PARTS: Final = {TEXT: "language model", PROJECTOR: "projector", VISION: "vision tower"}

DTYPES: Final = {"keep": None, "bf16": torch.bfloat16, "fp16": torch.float16}
FLOATS: Final = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
"""What safetensors and every reader of it can hold; narrower ones are quantised."""
_SHOWN: Final = 8


def target_of(name: str) -> str | None:
    """Name in the converted folder of a checkpoint's tensor; None when it has no place there."""
    if name.startswith(INSIDE):
        return VISION + name.removeprefix(INSIDE).removeprefix("vision_model.")
    if hit := re.fullmatch(r"model\.mm_projector\.([02])\.(weight|bias)", name):
        return f"{PROJECTOR}{_MLP[hit[1]]}.{hit[2]}"
    if re.match(r"model\.(embed_tokens|layers|norm)\.", name) or name == SOURCE_HEAD:
        return TEXT + name
    return None


def target_of_tower(name: str) -> str | None:
    """Name in the converted folder of a CLIP folder's tensor; None when it has no place there."""
    for prefix in ("vision_model.", "vision_tower.vision_tower.vision_model."):
        if name.startswith(prefix):
            return VISION + name.removeprefix(prefix)
    # Folders written by transformers 5 leave the wrapper's name away.
    if re.match(r"(embeddings|pre_layrnorm|encoder|post_layernorm)\.", name):
        return VISION + name
    return None


def reason_unused(name: str) -> str | None:
    """Why a tensor of a checkpoint is not needed; None when it must have a place."""
    if name.endswith("rotary_emb.inv_freq"):
        return "follows from rope_theta"
    if name.endswith(POSITIONS):
        return "the numbers 0, 1, 2, ..."
    if name == "model.image_newline":
        return "used by mm_patch_merge_type 'spatial' alone"
    return None


def reason_unused_in_tower(name: str) -> str | None:
    """Why a tensor of a CLIP folder is not needed; None when it must have a place."""
    if name.startswith("text_model.") or name in ("text_projection.weight", "logit_scale"):
        return "text half of CLIP"
    if name == "visual_projection.weight":
        return "leads from CLIP's image to its text"
    return reason_unused(name)


def part_of(target: str) -> str:
    """Part of the model that a converted tensor belongs to."""
    return next(part for prefix, part in _PARTS.items() if target.startswith(prefix))


def bare(name: str) -> str:
    """What is left of a tensor's name without the wrappers that versions put around it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def natural(name: str) -> list[tuple[int, str]]:
    """Key that sorts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


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
    for source, folder, (target, reason) in _sources(
        weights, tower, tied=config.tie_word_embeddings
    ):
        stored = folder.tensors[source]
        if reason is not None:
            unused.append(Unused(source, stored.file.name, stored, reason))
        elif target is None:
            unknown.append(source)
        elif stored.dtype not in FLOATS:
            kind = str(stored.dtype).removeprefix("torch.")
            raise ConvertError(f"{stored.file}: {source} is stored as {kind}: quantised weights")
        else:
            more = rows if target in (EMBEDDING, HEAD) and stored.shape else 0
            pieces.append(
                Piece(
                    target=target,
                    source=source,
                    weights=folder,
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
    needed = _needed(weights, config)
    by_name: dict[str, Piece] = {}
    twice = [
        piece.source
        for piece in pieces
        if by_name.setdefault(bare(piece.target), piece) is not piece
    ]
    missing = [name for key, (name, _) in needed.items() if key not in by_name]
    extra = [piece.source for key, piece in by_name.items() if key not in needed]
    wrong = [
        f"{piece.source} {piece.shape} instead of {needed[key][1]}"
        for key, piece in by_name.items()
        if key in needed and piece.shape != needed[key][1]
    ]
    problems = [
        _listed("unexpected tensors", [*unknown, *extra]),
        _listed("tensors that are there twice", twice),
        _listed("tensors missing", missing),
        _listed("tensors of another shape than config.json gives", wrong),
    ]
    if any(problems):
        raise ConvertError(f"{weights.folder}: {'; '.join(filter(None, problems))}")


def _listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what}: {', '.join(names[:_SHOWN])}{more}"


def _needed(weights: Weights, config: Any) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that the model must find, by its bare name."""
    with one_line(f"{weights.folder / 'config.json'}: no model of that"), torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(config)
    shapes = {bare(name): (name, tuple(t.shape)) for name, t in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop(bare(HEAD), None)
    return shapes


def check_claims(weights: Weights, tower: Weights | None, unused: Sequence[Unused]) -> None:
    """Read the tensors whose values must be known ones.

    Raises:
        ConvertError: position ids that do not count up, or a tied head that is another matrix.
    """
    for one in unused:
        folder = weights if one.source in weights.tensors else tower
        if folder is None:
            continue
        if one.source.endswith(POSITIONS):
            values = folder.read(one.source).flatten()
            if not torch.equal(values, torch.arange(len(values), dtype=values.dtype)):
                raise ConvertError(f"{one.stored.file}: {one.source} does not count 0, 1, 2, ...")
        if one.source == SOURCE_HEAD and not torch.equal(
            folder.read(SOURCE_HEAD), folder.read(SOURCE_EMBEDDING)
        ):
            raise ConvertError(
                f"{one.stored.file}: lm_head.weight differs from the embedding, but config.json "
                "says tie_word_embeddings: true; set it to false if the head was trained"
            )
